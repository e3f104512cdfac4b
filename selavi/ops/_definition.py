"""The primitives in plain PyTorch, in float64: what every fused backend must reproduce.

Shapes: B problems, N rows (samples), K columns (clusters), S candidate potentials; lam (B,). With
x_ik = lam * log_p_ik + v_k, Z_i = logsumexp_k x_ik and pi_ik = exp(x_ik - Z_i), the transport plan
for the column potential v is Q_ik = c_i pi_ik: the row potential is u_i = log c_i - Z_i, so v alone
is the state of a solver. Rows of weight c_i = 0 are skipped. Everything returned is float64.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

# Rows handled at once, so that the float64 temporaries stay small beside log_p.
_CHUNK = 16384


def _scaled_rows(
    log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of x (B, n, K) and of the weights c (B, n), with a harmless x where c is 0."""
    for chunk, weight in zip(
        log_p.split(_CHUNK, dim=1), row_marginal.split(_CHUNK, dim=1), strict=True
    ):
        x = lam[:, None, None] * chunk.double() + v[:, None, :]
        yield x.masked_fill(weight[..., None] == 0, 0.0), weight


def sinkhorn_pass(
    log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor
) -> tuple[Tensor, Tensor]:
    """Column masses sum_i c_i pi_ik (B, S, K) and sum_i c_i Z_i (B, S) at v (B, S, K).

    log_p is (B, N, K) of any floating dtype and strides, row_marginal (B, N) float64. A candidate
    that begins with NaN is not tried, which a backend makes use of: its results are NaN, and mean
    nothing in a problem without weight.
    """
    mass = torch.zeros_like(v)
    mean_logsumexp = v.new_zeros(v.shape[:2])
    for s in range(v.shape[1]):
        for x, weight in _scaled_rows(log_p, v[:, s], row_marginal, lam):
            mass[:, s] += torch.einsum("bn,bnk->bk", weight, x.softmax(-1))
            mean_logsumexp[:, s] += (weight * x.logsumexp(-1)).sum(-1)
    return mass, mean_logsumexp


Pass = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def repeat_pass(
    one: Pass,
    log_p: Tensor,
    v: Tensor,
    row_marginal: Tensor,
    col_marginal: Tensor,
    lam: Tensor,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """sinkhorn_iterations for a backend whose sinkhorn_pass is `one`."""
    v = v.clone()
    mass, mean_logsumexp = one(log_p, v[:, None], row_marginal, lam)
    for _ in range(1, count):
        v += sinkhorn_update(mass[:, 0], col_marginal)
        mass, mean_logsumexp = one(log_p, v[:, None], row_marginal, lam)
    return v, mass[:, 0], mean_logsumexp[:, 0]


def sinkhorn_update(mass: Tensor, col_marginal: Tensor) -> Tensor:
    """log r - log m; a column without mass takes the largest finite step."""
    return col_marginal.log() - mass.clamp_min(torch.finfo(mass.dtype).tiny).log()


def sinkhorn_iterations(
    log_p: Tensor,
    v: Tensor,
    row_marginal: Tensor,
    col_marginal: Tensor,
    lam: Tensor,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`count` passes, between which v (B, K) += log r - log m; the last v and its pass's (m, f)."""
    return repeat_pass(sinkhorn_pass, log_p, v, row_marginal, col_marginal, lam, count)


def sinkhorn_overlap(log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor) -> Tensor:
    """sum_i c_i pi_i pi_i^T (B, K, K) for v (B, K): how much the clusters compete for rows."""
    overlap = v.new_zeros(*v.shape, v.shape[-1])
    for x, weight in _scaled_rows(log_p, v, row_marginal, lam):
        rows = x.softmax(-1) * weight.sqrt()[..., None]
        overlap += rows.mT @ rows
    return overlap


def sinkhorn_labels(log_p: Tensor, v: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """argmax_k x (ties to the lowest k) int64, Z and max_k pi, each (B, N), for v (B, K)."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for chunk in log_p.split(_CHUNK, dim=1):
        x = lam[:, None, None] * chunk.double() + v[:, None, :]
        logsumexp = x.logsumexp(-1)
        top = x.amax(-1)
        parts.append((x.argmax(-1), logsumexp, (top - logsumexp).exp()))
    labels, logsumexps, confidences = zip(*parts, strict=True)
    return torch.cat(labels, 1), torch.cat(logsumexps, 1), torch.cat(confidences, 1)


def sinkhorn_plan(
    log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor, dtype: torch.dtype
) -> Tensor:
    """Q_ik = c_i pi_ik (B, N, K) in dtype, for v (B, K): one read and one write."""
    plan = torch.empty(log_p.shape, dtype=dtype, device=log_p.device)
    first = 0
    for x, weight in _scaled_rows(log_p, v, row_marginal, lam):
        plan[:, first : first + x.shape[1]] = weight[..., None] * x.softmax(-1)
        first += x.shape[1]
    return plan


def sinkhorn_column_logsumexp(log_p: Tensor, u: Tensor, lam: Tensor) -> Tensor:
    """logsumexp_i(lam log_p_ik + u_i) (B, K) for u (B, N): the other half of an iteration.

    -inf where a column is -inf throughout; rows with u_i = -inf are skipped.
    """
    running = torch.full_like(log_p[:, 0], -torch.inf, dtype=torch.float64)
    for chunk, shift in zip(log_p.split(_CHUNK, dim=1), u.split(_CHUNK, dim=1), strict=True):
        x = lam[:, None, None] * chunk.double() + shift[..., None]
        x = x.masked_fill(shift[..., None].isneginf(), -torch.inf)
        running = torch.logaddexp(running, x.logsumexp(-2))
    return running


def permute_prior(prior: Tensor, mass: Tensor) -> Tensor:
    """prior (B, K) rearranged so that its largest entry stands where mass (B, K) is largest."""
    heaviest = mass.argsort(dim=-1, descending=True, stable=True)
    largest = prior.sort(dim=-1, descending=True).values
    return torch.empty_like(prior).scatter_(-1, heaviest, largest)


def accumulate_log_softmax_(
    store: Tensor, logits: Sequence[Tensor], index: Tensor, weight: Tensor | None
) -> None:
    """store[h, index[b], :] += sum_m weight[m, b] * log_softmax(logits[m][h, b, :])."""
    total = torch.zeros_like(store[:, index], dtype=torch.float64)
    for m, view in enumerate(logits):
        term = view.double().log_softmax(-1)
        if weight is None:
            total += term / len(logits)
        else:  # where, not a product: a skipped sample may hold anything
            w = weight[m][None, :, None]
            total += torch.where(w == 0, 0.0, w * term)
    store[:, index] = (store[:, index] + total).to(store.dtype)
