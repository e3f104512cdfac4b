// The schemas of selavi's operators, and nothing else. Every backend implements these under its own
// dispatch key; selavi/ops/_library.py holds the fake (meta) kernels.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(selavi, m) {
  m.def(
      "sinkhorn_pass(Tensor log_p, Tensor v, Tensor row_marginal, Tensor lam) "
      "-> (Tensor col_mass, Tensor mean_logsumexp)");
  m.def(
      "sinkhorn_iterations(Tensor log_p, Tensor v, Tensor row_marginal, Tensor col_marginal, "
      "Tensor lam, int count) -> (Tensor v, Tensor col_mass, Tensor mean_logsumexp)");
  m.def("sinkhorn_overlap(Tensor log_p, Tensor v, Tensor row_marginal, Tensor lam) -> Tensor");
  m.def(
      "sinkhorn_labels(Tensor log_p, Tensor v, Tensor lam) "
      "-> (Tensor labels, Tensor logsumexp, Tensor confidence)");
  m.def(
      "sinkhorn_plan(Tensor log_p, Tensor v, Tensor row_marginal, Tensor lam, ScalarType dtype) "
      "-> Tensor");
  m.def("sinkhorn_column_logsumexp(Tensor log_p, Tensor u, Tensor lam) -> Tensor");
  m.def("permute_prior(Tensor prior, Tensor mass) -> Tensor");
  m.def(
      "accumulate_log_softmax_(Tensor(a!) store, Tensor[] logits, Tensor index, Tensor? weight) "
      "-> ()");
}
