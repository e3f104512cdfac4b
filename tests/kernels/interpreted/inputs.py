"""Arguments of the primitives, and their comparison with the definition in float64."""

import torch

from selavi import kernels
from selavi.ops import _definition
from tests.ops.problems import random_log_p

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CLOSE = {"rtol": 1e-6, "atol": 3e-6}  # what is accumulated


def arguments(problems=2, n=20, k=37, candidates=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    log_p = random_log_p(problems, n, k, seed=seed)
    v = torch.randn(problems, candidates, k, generator=generator, dtype=torch.float64)
    c = torch.rand(problems, n, generator=generator, dtype=torch.float64) + 0.01
    c[:, ::7] = 0.0
    return log_p, v, c / c.sum(-1, keepdim=True).clamp_min(1e-9), lams(problems)


def lams(problems, lam=20.0):
    return torch.full((problems,), lam, dtype=torch.float64)


def tolerance(name, dtype):
    if dtype == torch.float64:
        return {"rtol": 1e-12, "atol": 1e-14}
    if name == "sinkhorn_overlap":
        return {"rtol": 1.2e-2, "atol": 1e-6}  # its factors are bfloat16
    if name in ("sinkhorn_labels", "sinkhorn_column_logsumexp"):
        return {"rtol": 3e-6, "atol": 3e-7}
    return {"rtol": 3e-6, "atol": 3e-8}


def calls(log_p, v, c, lam):
    one = v[:, 0].contiguous()
    u = torch.where(c > 0, c.log(), -torch.inf) - lam[:, None] * log_p.double().amax(-1)
    return {
        "sinkhorn_pass": (log_p, v, c, lam),
        "sinkhorn_overlap": (log_p, one, c, lam),
        "sinkhorn_labels": (log_p, one, lam),
        "sinkhorn_plan": (log_p, one, c, lam, torch.float64),
        "sinkhorn_column_logsumexp": (log_p, u, lam),
    }


def assert_matches(log_p, v, c, lam, without=()):
    for name, call in calls(log_p, v, c, lam).items():
        if name in without:
            continue
        torch.testing.assert_close(
            getattr(kernels, name)(*call),
            getattr(_definition, name)(*call),
            **tolerance(name, log_p.dtype),
            msg=lambda m, name=name: f"{name}: {m}",
        )


def transposed(x):
    return x.mT.contiguous().mT


def strided(x):
    """Every other element; the gaps hold NaN."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    return wide[..., ::2]


def padded_rows(x):
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 3), torch.nan)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def views_and_store(views, heads=2, n=30, batch=7, k=19, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    store = torch.randn(heads, n, k, generator=generator)
    logits = [4 * torch.randn(heads, batch, k, generator=generator) for _ in range(views)]
    index = torch.randperm(n, generator=generator)[:batch]
    weight = torch.rand(views, batch, generator=generator, dtype=torch.float64)
    return store, [view.to(dtype) for view in logits], index, weight
