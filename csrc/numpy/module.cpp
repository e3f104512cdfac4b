// selavi.ops._numpy: the primitives of the Sinkhorn solvers on NumPy arrays. Definitions:
// selavi/ops/_definition.py. Torch-free: plain loops over csrc/include on the calling thread, so it
// also checks that core without the blocks, threads and tensors of csrc/cpu.
#include <pybind11/numpy.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "../include/row_reader.h"
#include "../include/softmax_row.h"

namespace py = pybind11;

namespace selavi::numpy {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;
using Shape = std::vector<py::ssize_t>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void check(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);  // ValueError
}

// The extent of an axis of log_p, which is (B, N, K).
py::ssize_t extent(const py::array& log_p, int axis) {
  check(log_p.ndim() == 3, "log_p must be (B, N, K)");
  return log_p.shape(axis);
}

const double* data_of(const Doubles& array, const Shape& shape, const char* message) {
  check(Shape(array.shape(), array.shape() + array.ndim()) == shape, message);
  return array.data();
}

Doubles zeros(const Shape& shape) {
  Doubles array(shape);
  std::fill_n(array.mutable_data(), array.size(), 0.0);
  return array;
}

// The rows of one problem and their softmax: all arithmetic of csrc/include is called here.
template <typename Storage>
struct Rows {
  Rows(const MatrixView<Storage>& matrix, double lam)
      : count(matrix.rows),
        columns(matrix.columns),
        lam(lam),
        exponentials(static_cast<size_t>(columns)),
        reader(matrix),
        x(static_cast<size_t>(columns)) {}

  const Compute<Storage>* entries(int64_t i) { return reader.row(i, count); }

  // Fills exponentials with exp(x_ik - max_k x_ik), x_ik = lam log_p_ik + v_k.
  RowSoftmax softmax(int64_t i, const double* v) {
    return softmax_row_template(entries(i), v, lam, columns, x.data(), exponentials.data());
  }

  // accumulator_k += factor * exponentials_k for k >= first
  void add(double factor, double* accumulator, int64_t first = 0) const {
    add_scaled_row_template(exponentials.data() + first, factor, columns - first,
                            accumulator + first);
  }

  const int64_t count, columns;
  const double lam;
  std::vector<Compute<Storage>> exponentials;
  RowReader<Storage> reader;
  std::vector<double> x;
};

// Calls body(b, rows) for every problem, without the GIL.
template <typename Storage, typename Body>
void for_each_problem_of(const py::array& log_p, const double* lam, const Body& body) {
  constexpr auto kSize = static_cast<py::ssize_t>(sizeof(Storage));
  bool aligned = (log_p.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
  for (int axis = 0; axis < 3; ++axis) aligned = aligned && log_p.strides(axis) % kSize == 0;
  check(aligned, "log_p must be aligned, with strides of whole elements");
  const py::gil_scoped_release release;
  for (py::ssize_t b = 0; b < log_p.shape(0); ++b) {
    const char* data = static_cast<const char*>(log_p.data()) + b * log_p.strides(0);
    Rows<Storage> rows({reinterpret_cast<const Storage*>(data), log_p.shape(1), log_p.shape(2),
                        log_p.strides(1) / kSize, log_p.strides(2) / kSize},
                       lam[b]);
    body(b, rows);
  }
}

template <typename Body>
void for_each_problem(const py::array& log_p, const Doubles& lam, const Body& body) {
  const double* lams = data_of(lam, {extent(log_p, 0)}, "lam must be (B,)");
  if (py::isinstance<py::array_t<float>>(log_p)) {
    for_each_problem_of<float>(log_p, lams, body);
  } else if (py::isinstance<py::array_t<double>>(log_p)) {
    for_each_problem_of<double>(log_p, lams, body);
  } else if (log_p.dtype().equal(py::dtype("e"))) {
    for_each_problem_of<Float16>(log_p, lams, body);
  } else {
    throw py::type_error("log_p must be float32, float64 or float16 of native byte order");
  }
}

py::tuple sinkhorn_pass(const py::array& log_p, const Doubles& v, const Doubles& row_marginal,
                        const Doubles& lam) {
  const auto problems = extent(log_p, 0), n = extent(log_p, 1), k = extent(log_p, 2);
  check(v.ndim() == 3, "v must be (B, S, K)");
  const auto candidates = v.shape(1);
  const double* potentials = data_of(v, {problems, candidates, k}, "v must be (B, S, K)");
  const double* c = data_of(row_marginal, {problems, n}, "row_marginal must be (B, N)");
  Doubles mass = zeros({problems, candidates, k}), value = zeros({problems, candidates});
  double *masses = mass.mutable_data(), *values = value.mutable_data();
  for_each_problem(log_p, lam, [=](int64_t b, auto& rows) {
    for (int64_t i = 0; i < n; ++i) {
      const double weight = c[b * n + i];
      if (weight == 0.0) continue;
      for (int64_t s = b * candidates; s < (b + 1) * candidates; ++s) {
        const RowSoftmax softmax = rows.softmax(i, potentials + s * k);
        rows.add(weight / softmax.sum, masses + s * k);
        values[s] += weight * (softmax.max + std::log(softmax.sum));
      }
    }
  });
  return py::make_tuple(mass, value);
}

Doubles sinkhorn_overlap(const py::array& log_p, const Doubles& v, const Doubles& row_marginal,
                         const Doubles& lam) {
  const auto problems = extent(log_p, 0), n = extent(log_p, 1), k = extent(log_p, 2);
  const double* potential = data_of(v, {problems, k}, "v must be (B, K)");
  const double* c = data_of(row_marginal, {problems, n}, "row_marginal must be (B, N)");
  Doubles overlap = zeros({problems, k, k});
  double* overlaps = overlap.mutable_data();
  for_each_problem(log_p, lam, [=](int64_t b, auto& rows) {
    double* target = overlaps + b * k * k;
    for (int64_t i = 0; i < n; ++i) {
      const double weight = c[b * n + i];
      if (weight == 0.0) continue;
      const RowSoftmax softmax = rows.softmax(i, potential + b * k);
      const double factor = weight / (softmax.sum * softmax.sum);
      for (int64_t j = 0; j < k; ++j) {  // the upper triangle; most of a sharp row is 0
        const auto e = static_cast<double>(rows.exponentials[static_cast<size_t>(j)]);
        if (e != 0.0) rows.add(factor * e, target + j * k, j);
      }
    }
    for (int64_t j = 0; j < k; ++j) {
      for (int64_t l = 0; l < j; ++l) target[j * k + l] = target[l * k + j];
    }
  });
  return overlap;
}

py::tuple sinkhorn_labels(const py::array& log_p, const Doubles& v, const Doubles& lam) {
  const auto problems = extent(log_p, 0), n = extent(log_p, 1), k = extent(log_p, 2);
  const double* potential = data_of(v, {problems, k}, "v must be (B, K)");
  py::array_t<int64_t> label(Shape{problems, n});
  Doubles logsumexp = zeros({problems, n}), confidence = zeros({problems, n});
  int64_t* labels = label.mutable_data();
  double *logsumexps = logsumexp.mutable_data(), *confidences = confidence.mutable_data();
  for_each_problem(log_p, lam, [=](int64_t b, auto& rows) {
    for (int64_t i = 0; i < n; ++i) {
      const RowSoftmax softmax = rows.softmax(i, potential + b * k);
      logsumexps[b * n + i] = softmax.max + std::log(softmax.sum);
      confidences[b * n + i] = 1.0 / softmax.sum;
      const auto* row = rows.entries(i);
      double best = -kInfinity;
      labels[b * n + i] = 0;
      for (int64_t j = 0; j < k; ++j) {
        const double x = rows.lam * static_cast<double>(row[j]) + potential[b * k + j];
        if (x > best) best = x, labels[b * n + i] = j;
      }
    }
  });
  return py::make_tuple(label, logsumexp, confidence);
}

Doubles sinkhorn_plan(const py::array& log_p, const Doubles& v, const Doubles& row_marginal,
                      const Doubles& lam) {
  const auto problems = extent(log_p, 0), n = extent(log_p, 1), k = extent(log_p, 2);
  const double* potential = data_of(v, {problems, k}, "v must be (B, K)");
  const double* c = data_of(row_marginal, {problems, n}, "row_marginal must be (B, N)");
  Doubles plan = zeros({problems, n, k});
  double* plans = plan.mutable_data();
  for_each_problem(log_p, lam, [=](int64_t b, auto& rows) {
    for (int64_t i = 0; i < n; ++i) {
      const double weight = c[b * n + i];
      if (weight == 0.0) continue;
      rows.add(weight / rows.softmax(i, potential + b * k).sum, plans + (b * n + i) * k);
    }
  });
  return plan;
}

Doubles sinkhorn_column_logsumexp(const py::array& log_p, const Doubles& u, const Doubles& lam) {
  const auto problems = extent(log_p, 0), n = extent(log_p, 1), k = extent(log_p, 2);
  const double* potential = data_of(u, {problems, n}, "u must be (B, N)");
  Doubles logsumexp = zeros({problems, k});
  double* logsumexps = logsumexp.mutable_data();
  for_each_problem(log_p, lam, [=](int64_t b, auto& rows) {
    std::vector<double> max(static_cast<size_t>(k), -kInfinity), sum(static_cast<size_t>(k));
    for (const bool have_max : {false, true}) {
      for (int64_t i = 0; i < n; ++i) {
        const double shift = potential[b * n + i];
        if (shift == -kInfinity) continue;
        const auto* row = rows.entries(i);
        for (size_t j = 0; j < max.size(); ++j) {
          const double x = rows.lam * static_cast<double>(row[j]) + shift;
          if (!have_max) {
            max[j] = std::max(max[j], x);
          } else if (x != -kInfinity) {
            sum[j] += std::exp(x - max[j]);
          }
        }
      }
    }
    for (size_t j = 0; j < max.size(); ++j)
      logsumexps[static_cast<size_t>(b * k) + j] = max[j] + std::log(sum[j]);
  });
  return logsumexp;
}

}  // namespace
}  // namespace selavi::numpy

PYBIND11_MODULE(_numpy, m) {
  using namespace pybind11::literals;
  using namespace selavi::numpy;
  m.doc() = "The primitives of selavi.ops._definition on NumPy arrays; log_p of any strides.";
  m.def("sinkhorn_pass", &sinkhorn_pass, "log_p"_a, "v"_a, "row_marginal"_a, "lam"_a);
  m.def("sinkhorn_overlap", &sinkhorn_overlap, "log_p"_a, "v"_a, "row_marginal"_a, "lam"_a);
  m.def("sinkhorn_labels", &sinkhorn_labels, "log_p"_a, "v"_a, "lam"_a);
  m.def("sinkhorn_plan", &sinkhorn_plan, "log_p"_a, "v"_a, "row_marginal"_a, "lam"_a);
  m.def("sinkhorn_column_logsumexp", &sinkhorn_column_logsumexp, "log_p"_a, "u"_a, "lam"_a);
}
