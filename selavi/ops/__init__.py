"""Fused operators for clustering by optimal transport. Imports torch and nothing else.

from selavi.ops import sinkhorn
labels = sinkhorn(logits.log_softmax(-1), lam=20.0).labels
"""

from selavi.ops._library import backends
from selavi.ops.accumulate_log_softmax import accumulate_log_softmax_
from selavi.ops.permute_prior import permute_prior
from selavi.ops.sinkhorn import SinkhornResult, sinkhorn

__all__ = ["SinkhornResult", "accumulate_log_softmax_", "backends", "permute_prior", "sinkhorn"]
