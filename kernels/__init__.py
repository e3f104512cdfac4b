"""The primitives of selavi.ops in Triton: the portable GPU backend. Needs Triton.

The module itself is the backend (see Primitives in selavi/ops/_library.py). Every primitive is a
`torch.library.triton_op`, so that torch.compile sees the kernels inside. Nothing is read back on
the host, and every sum has a fixed order: results repeat bit for bit.
"""

if __name__ != "selavi.kernels":
    raise ImportError(f"this folder is the package selavi.kernels, but was imported as {__name__}")

from selavi.kernels.accumulate_log_softmax import accumulate_log_softmax_
from selavi.kernels.permute_prior import permute_prior
from selavi.kernels.sinkhorn_columns import sinkhorn_column_logsumexp
from selavi.kernels.sinkhorn_overlap import sinkhorn_overlap
from selavi.kernels.sinkhorn_pass import sinkhorn_iterations, sinkhorn_pass
from selavi.kernels.sinkhorn_rows import sinkhorn_labels, sinkhorn_plan

__all__ = [
    "accumulate_log_softmax_",
    "permute_prior",
    "sinkhorn_column_logsumexp",
    "sinkhorn_iterations",
    "sinkhorn_labels",
    "sinkhorn_overlap",
    "sinkhorn_pass",
    "sinkhorn_plan",
]
