"""How good a labelling is, and what simpler methods reach."""

from selavi.evaluation.baselines import baselines
from selavi.evaluation.metrics import cluster_metrics

__all__ = ["baselines", "cluster_metrics"]
