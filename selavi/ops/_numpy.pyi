"""csrc/numpy/module.cpp. log_p is float32, float64 or float16, of any strides."""

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Floats = NDArray[np.floating]

def sinkhorn_pass(
    log_p: Floats, v: Doubles, row_marginal: Doubles, lam: Doubles
) -> tuple[Doubles, Doubles]: ...
def sinkhorn_overlap(log_p: Floats, v: Doubles, row_marginal: Doubles, lam: Doubles) -> Doubles: ...
def sinkhorn_labels(
    log_p: Floats, v: Doubles, lam: Doubles
) -> tuple[NDArray[np.int64], Doubles, Doubles]: ...
def sinkhorn_plan(
    log_p: Floats, v: Doubles, row_marginal: Doubles, lam: Doubles, dtype: np.dtype[np.floating]
) -> Floats: ...
def sinkhorn_column_logsumexp(log_p: Floats, u: Doubles, lam: Doubles) -> Doubles: ...
