#include "row_kernels.h"

// Run-time dispatch needs glibc's ifuncs and a GCC that knows these levels; sanitizers run before
// ifuncs are resolved. Elsewhere there is one plain version, which gives the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && \
    defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#define SELAVI_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SELAVI_CLONES
#endif

namespace selavi::cpu {

SELAVI_CLONES RowSoftmax softmax_row(const float* log_p, const double* v, double lam, int64_t count,
                                     double* x, float* exponentials) {
  return softmax_row_template(log_p, v, lam, count, x, exponentials);
}

SELAVI_CLONES RowSoftmax softmax_row(const double* log_p, const double* v, double lam,
                                     int64_t count, double* x, double* exponentials) {
  return softmax_row_template(log_p, v, lam, count, x, exponentials);
}

SELAVI_CLONES void add_scaled_row(const float* exponentials, double factor, int64_t count,
                                  double* accumulator) {
  add_scaled_row_template(exponentials, factor, count, accumulator);
}

SELAVI_CLONES void add_scaled_row(const double* exponentials, double factor, int64_t count,
                                  double* accumulator) {
  add_scaled_row_template(exponentials, factor, count, accumulator);
}

SELAVI_CLONES void add_log_softmax_row(const float* logits, double logsumexp, double weight,
                                       int64_t count, double* accumulator) {
  add_log_softmax_row_template(logits, logsumexp, weight, count, accumulator);
}

SELAVI_CLONES void add_log_softmax_row(const double* logits, double logsumexp, double weight,
                                       int64_t count, double* accumulator) {
  add_log_softmax_row_template(logits, logsumexp, weight, count, accumulator);
}

}  // namespace selavi::cpu
