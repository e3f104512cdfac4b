// sinkhorn_pass for other operators of this backend.
#pragma once

#include "launcher.h"

namespace selavi::cuda {

// mass (B, S, K) and value (B, S) at v (B, S, K), all contiguous float64.
void sinkhorn_pass_into(Launcher& launcher, const Tensor& log_p, const double* v,
                        int64_t candidates, const double* row_marginal, const double* lam,
                        double* mass, double* value);

}  // namespace selavi::cuda
