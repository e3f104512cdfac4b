"""Teacher targets of DINOv2 and DINOv3 (`sinkhorn_knopp_teacher` of their losses).

The originals are methods of a loss class; these are functions. To use them there:

    DINOLoss.sinkhorn_knopp_teacher = staticmethod(sinkhorn_knopp_teacher)            # v2, v3
    iBOTPatchLoss.sinkhorn_knopp_teacher = staticmethod(ibot_sinkhorn_knopp_teacher)  # v2
    SinkhornKnoppTeacher.forward = staticmethod(ibot_sinkhorn_knopp_teacher)          # v3, iBOT

DINOv3 runs them within a subgroup: bind it first, functools.partial(..., group=the subgroup).

Differences from the originals: the log domain, so any finite output gives finite targets; unequal
batches per process; arguments are left as they are, where iBOT's sums n_masked_patches_tensor over
the processes in place. Forks that subtract each sample's largest logit first change the targets, as
that weighs the samples; here nothing is subtracted.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from selavi.ops._library import Backend
from selavi.ops.compat._fixed_iterations import assign


@torch.no_grad()
def sinkhorn_knopp_teacher(
    teacher_output: Tensor,
    teacher_temp: float,
    n_iterations: int = 3,
    group: dist.ProcessGroup | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Targets of the class tokens: soft assignments to prototypes that share the batch equally.

    No gradient; teacher_output is not written to.

    Args:
        teacher_output: (B, K) logits, samples by prototypes; float32, float64, bfloat16 or float16,
            any strides. A prototype that is -inf for every sample gets nothing. NaN, +inf, or a
            sample that is -inf throughout give NaN, as in the original.
        teacher_temp: the temperature, in the units of teacher_output.
        n_iterations: exactly how many, at least 1.
        group: the processes whose samples share the prototypes. None is every process where
            torch.distributed is initialised, else this one. All must call, with the same K and
            n_iterations; B may differ and may be 0. Iterations exchange K float64 each, the first
            twice that.
        backend: as in `selavi.ops.sinkhorn`.

    Returns:
        (B, K) float32, rows summing to 1.

    Raises:
        ValueError: an output that is not (B, K), teacher_temp <= 0, no iterations.
        TypeError: an output of another dtype.
    """
    temperature = float(teacher_temp)
    return assign(teacher_output, temperature, n_iterations, group, torch.float32, backend)


@torch.no_grad()
def ibot_sinkhorn_knopp_teacher(
    teacher_output: Tensor,
    teacher_temp: float,
    n_masked_patches_tensor: Tensor,
    n_iterations: int = 3,
    group: dist.ProcessGroup | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Targets of the masked patches: `sinkhorn_knopp_teacher` with iBOT's arguments.

    n_masked_patches_tensor is not read. The original divides by its sum over the processes in each
    iteration and multiplies by it at the end: it cancels, so the result is the same for every
    count, and no process waits for it. As in the original every row of teacher_output takes part:
    cut off padding before the call.
    """
    return sinkhorn_knopp_teacher(
        teacher_output, teacher_temp, n_iterations, group, backend=backend
    )
