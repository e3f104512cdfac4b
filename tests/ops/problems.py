"""Assignment problems for the tests of the operators, and what a solution of one is."""

import torch


def zipf(k):
    return 1.0 / torch.arange(1, k + 1, dtype=torch.float64)


def random_log_p(*shape, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator)).log_softmax(-1)


def hard_log_p(n, k, confidence, noise, seed=0):
    """Confident and noisy: what plain iteration does not solve. Class sizes ~ rank^-0.5."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.arange(1, k + 1, dtype=torch.float64) ** -0.5
    y = torch.multinomial(sizes, n, replacement=True, generator=generator)
    w = torch.randn(k, 24, generator=generator)
    logits = noise * (w @ w.T / 5)[y] + noise * torch.randn(n, k, generator=generator)
    logits[torch.arange(n), y] += confidence
    return logits.log_softmax(-1)


def one_hot_log_p(n, k, depth, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.multinomial(zipf(k), n, replacement=True, generator=generator)
    log_p = torch.full((n, k), -float(depth))
    log_p[torch.arange(n), y] = 0.0
    return log_p


def assert_solves(result, log_p, tol=2e-6):
    """The marginals hold to tol in float64, whatever arithmetic found the solution."""
    assert result.converged.all()
    plan = result.plan()
    error = (plan.sum(-2) - result.col_marginal).abs().sum(-1)
    assert (error <= 1.1 * tol).all(), error
    row_sums = torch.full(log_p.shape[:-1], 1.0 / log_p.shape[-2], dtype=torch.float64)
    torch.testing.assert_close(plan.sum(-1), row_sums, rtol=1e-6, atol=0)


HARD = {
    "confident and noisy": hard_log_p(1500, 60, 8.0, 2.0),
    "most confident": hard_log_p(1500, 60, 15.0, 3.0),
    "one-hot rows": one_hot_log_p(1000, 10, 100),
    "one-hot rows at -1e4": one_hot_log_p(1000, 10, 1e4),
    "a column that no row favors": random_log_p(500, 12) - 1e4 * torch.eye(12)[3],
    "duplicate columns": random_log_p(500, 6)[:, [0, 0, 1, 2, 3, 4, 5, 5]],
    "-inf entries": random_log_p(500, 8).masked_fill(
        torch.eye(8).repeat(63, 1)[:500] > 0, -torch.inf
    ),
    "identical rows": random_log_p(1, 8).expand(300, 8),
    "K = 1": torch.zeros(50, 1),
    "N = 1": random_log_p(1, 7),
    "N = 1, K = 1": torch.zeros(1, 1),
}
