"""One clustering round: predictions of all clips in, labels of every head out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from selavi import distributed
from selavi.errors import SelaviError
from selavi.labelling.config import LabellingConfig
from selavi.ops import accumulate_log_softmax_, sinkhorn

# (index (B,), one (H, B, K) logits tensor a modality, (modalities, B) presence)
Prediction = tuple[Tensor, list[Tensor], Tensor]
Predictions = Iterable[Prediction]


@dataclass(frozen=True)
class Assignment:
    """Labels of H heads, and how well their assignment problems were solved.

    Attributes:
        labels: (H, N) int64.
        potentials: (H, K) float64, v of Q_ik = exp(lambda log p_ik + u_i + v_k).
        error: (H,) float64, sum_k |m_k - r_k|.
        converged: (H,) bool.
        passes: (H,) int64, reads of the matrix.
    """

    labels: Tensor
    potentials: Tensor
    error: Tensor
    converged: Tensor
    passes: Tensor


def mean_log_softmax(
    passes: list[Predictions], num_clips: int, num_heads: int, num_clusters: int
) -> Tensor:
    """log P_ik = mean over views and modalities of log softmax_k (paper eq. 5): (H, N, K) float32.

    Each of `passes` runs over this rank's clips (`distributed.shard`) in one augmentation. A clip
    that lacks a modality averages over the ones it has. Every rank gets the whole store.
    """
    local = distributed.shard(num_clips)
    position = torch.full((num_clips,), -1)
    position[local] = torch.arange(len(local))
    store: Tensor | None = None
    for predictions in passes:
        for index, logits, present in predictions:
            if store is None:
                device = logits[0].device
                store = torch.zeros(num_heads, len(local), num_clusters, device=device)
                position = position.to(device)
            weight = present.float() / (present.sum(0).clamp_min(1) * len(passes))
            rows = position[index.to(store.device)]
            accumulate_log_softmax_(store, logits, rows, weight.to(store.device))
    if store is None:
        store = torch.zeros(num_heads, 0, num_clusters)
    return distributed.gather_shards(store, num_clips, dim=1)


def assign(log_p: Tensor, prior: Tensor, config: LabellingConfig) -> Assignment:
    """Solve eq. 2 for every head of log_p (H, N, K), the prior matched by eq. 4.

    Rank 0 solves and the others receive its answer. A row of zeros, which no log-softmax is, is a
    clip that nothing is known of: it takes no part, and its label means nothing.

    Raises:
        SelaviError: log_p has a NaN or an infinity: the model has diverged. Or it is zero
            throughout: no clip could be read.
    """
    num_heads, num_clips, num_clusters = log_p.shape
    device = log_p.device
    finite = bool(log_p.isfinite().all())
    if distributed.any_rank(not finite, device):
        raise SelaviError(
            "the model's log-probabilities hold NaN or infinity: training diverged; "
            "use a smaller training.lr or training.clip_norm"
        )
    known = (log_p != 0).flatten(2).any(-1).any(0)
    if not known.any():
        raise SelaviError("no clip could be read: were the files moved after the scan?")
    labels = torch.empty(num_heads, num_clips, dtype=torch.int64, device=device)
    potentials = torch.empty(num_heads, num_clusters, dtype=torch.float64, device=device)
    report = torch.empty(3, num_heads, dtype=torch.float64, device=device)
    if distributed.is_main():
        result = sinkhorn(
            log_p,
            lam=config.lam,
            row_marginal=known.double(),
            col_marginal=prior.to(device),
            permute=True,
            tol=config.tol,
            max_iterations=config.max_iterations,
        )
        labels.copy_(result.labels)
        potentials.copy_(result.col_potential)
        report.copy_(torch.stack([result.error, result.converged, result.n_passes]))
    for tensor in (labels, potentials, report):
        distributed.broadcast(tensor)
    return Assignment(labels, potentials, report[0], report[1].bool(), report[2].long())


def head_groups(num_heads: int, config: LabellingConfig, *, seed: int, round_: int) -> list[Tensor]:
    """Heads that share an augmentation draw: two random halves, or all in one group."""
    if not config.second_view or num_heads == 1:
        return [torch.arange(num_heads)]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + round_)
    order = torch.randperm(num_heads, generator=generator)
    return [half.sort().values for half in order.chunk(2)]


def clustering_round(
    predict: Callable[[Tensor, int], Predictions],
    groups: list[Tensor],
    num_clips: int,
    prior: Tensor,
    config: LabellingConfig,
    first_draw: int,
    earlier: Tensor | None = None,
) -> tuple[Assignment, Tensor | None]:
    """Label each group of heads from its own augmentation draws, and join the groups' answers.

    Args:
        predict: (heads, draw) -> predictions of those heads over this rank's clips.
        groups: disjoint sets of heads that cover all, from `head_groups`.
        first_draw: augmentation draws first_draw, first_draw + 1, ... are used.
        earlier: (H, N, K) log-probabilities of the rounds before, where `config.memory` asks.

    Returns:
        The assignment, and the log-probabilities to pass as `earlier` next time.
    """
    parts, stores = [], []
    for number, heads in enumerate(groups):
        draws = range(first_draw + number * config.views, first_draw + (number + 1) * config.views)
        log_p = mean_log_softmax(
            [predict(heads, draw) for draw in draws], num_clips, len(heads), config.num_clusters
        )
        if earlier is not None:
            log_p.lerp_(earlier[heads.to(earlier.device)], config.memory)
        parts.append(assign(log_p, prior, config))
        if config.memory:
            stores.append(log_p)
    order = torch.cat(groups).argsort().to(parts[0].labels.device)
    joined = Assignment(
        *(torch.cat([getattr(p, f) for p in parts])[order] for f in Assignment.__dataclass_fields__)
    )
    return joined, torch.cat(stores)[order] if stores else None
