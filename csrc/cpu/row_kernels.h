// The row arithmetic of csrc/include/softmax_row.h, compiled for several x86 levels of which the
// loader picks the best at run time.
#pragma once

#include <cstdint>

#include "../include/softmax_row.h"

namespace selavi::cpu {

RowSoftmax softmax_row(const float* log_p, const double* v, double lam, int64_t count, double* x,
                       float* exponentials);
RowSoftmax softmax_row(const double* log_p, const double* v, double lam, int64_t count, double* x,
                       double* exponentials);

void add_scaled_row(const float* exponentials, double factor, int64_t count, double* accumulator);
void add_scaled_row(const double* exponentials, double factor, int64_t count, double* accumulator);

void add_log_softmax_row(const float* logits, double logsumexp, double weight, int64_t count,
                         double* accumulator);
void add_log_softmax_row(const double* logits, double logsumexp, double weight, int64_t count,
                         double* accumulator);

}  // namespace selavi::cpu
