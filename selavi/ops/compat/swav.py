"""SwAV's code assignment (Caron et al. 2020; `distributed_sinkhorn` in facebookresearch/swav).

Differences from the original: the log domain, so any finite scores give finite codes where
exp(out / epsilon) overflows; unequal batches per process; epsilon and the number of iterations are
arguments where the script reads its command line.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from selavi.ops._library import Backend
from selavi.ops.compat._fixed_iterations import assign


@torch.no_grad()
def distributed_sinkhorn(
    out: Tensor,
    epsilon: float = 0.05,
    sinkhorn_iterations: int = 3,
    group: dist.ProcessGroup | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Codes of the samples: soft assignments to prototypes that share the batch equally.

    Follows the version that takes `out` itself; an older one, with the same result, takes
    Q = exp(out / epsilon).t(): give this one the `out` from before that line. No gradient; `out` is
    not written to.

    Args:
        out: (B, K) scores, samples by prototypes; float32, float64, bfloat16 or float16, any
            strides. A prototype that is -inf for every sample gets nothing. NaN, +inf, or a sample
            that is -inf throughout give NaN, as in the original: a check would cost a read.
        epsilon: the temperature, in the units of `out`.
        sinkhorn_iterations: exactly how many, at least 1.
        group: the processes whose samples share the prototypes. None is every process where
            torch.distributed is initialised, else this one. All must call, with the same K and
            iterations; B may differ and may be 0. Iterations exchange K float64 each, the first
            twice that.
        backend: as in `selavi.ops.sinkhorn`.

    Returns:
        (B, K), rows summing to 1; float64 for float64 scores, else float32.

    Raises:
        ValueError: scores that are not (B, K), epsilon <= 0, no iterations.
        TypeError: scores of another dtype.
    """
    dtype = torch.promote_types(out.dtype, torch.float32)
    return assign(out, float(epsilon), sinkhorn_iterations, group, dtype, backend)
