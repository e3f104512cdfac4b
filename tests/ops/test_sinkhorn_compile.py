"""torch.compile, torch.export and tracing take a solve as it is."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from selavi.ops import sinkhorn
from selavi.ops._solve import Options, solve
from tests.ops import on_device
from tests.ops.problems import random_log_p, zipf

FUNCTION = torch.ops.selavi.solve.default
ROWS, COLUMNS = 60, 5


def loss_and_labels(logits):
    log_p = logits.log_softmax(-1)
    labels = sinkhorn(log_p.detach(), col_marginal=zipf(COLUMNS), permute=True).labels
    result = sinkhorn(log_p, lam=2.0)
    cross_entropy = torch.nn.functional.nll_loss(log_p, labels)
    return cross_entropy - result.value, labels, result.error.detach()


def logits_of(seed=0):
    return random_log_p(ROWS, COLUMNS, seed=seed).requires_grad_()


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiles_as_one_graph_forward_and_backward(compiler):
    torch.compiler.reset()
    compiled = torch.compile(loss_and_labels, fullgraph=True, backend=compiler)
    for seed in range(2):
        logits = logits_of(seed)
        loss, labels, error = loss_and_labels(logits)
        expected = torch.autograd.grad(loss, logits)[0]
        compiled_loss, compiled_labels, compiled_error = compiled(logits)
        actual = torch.autograd.grad(compiled_loss, logits)[0]
        assert torch.equal(compiled_labels, labels) and labels.unique().numel() > 1
        torch.testing.assert_close(compiled_loss, loss)
        torch.testing.assert_close(compiled_error, error)
        torch.testing.assert_close(actual, expected)


def test_compiles_for_any_number_of_rows():
    torch.compiler.reset()

    def of(log_p):
        result = sinkhorn(log_p, lam=2.0)
        return result.labels, result.value

    compiled = torch.compile(of, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (10, 33, 71):
        log_p = random_log_p(rows, COLUMNS)
        for actual, expected in zip(compiled(log_p), of(log_p), strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_compiled_function_says_what_has_no_gradient(compiler):
    """aot_eager differentiates every output that could be: it raises when it compiles."""
    torch.compiler.reset()
    compiled = torch.compile(lambda x: sinkhorn(x).error.sum(), fullgraph=True, backend=compiler)
    with pytest.raises(RuntimeError, match="only `value` has a gradient; detach"):
        compiled(logits_of()).backward()
    with pytest.raises(Exception, match="labels of sinkhorn has no gradient"):
        torch.compile(lambda x: sinkhorn(x).labels, fullgraph=True, backend=compiler)(logits_of())


class Assign(torch.nn.Module):
    def forward(self, logits):
        result = sinkhorn(logits.log_softmax(-1), col_marginal=zipf(COLUMNS))
        return result.labels, result.value, result.plan(torch.float32)


@pytest.mark.parametrize("rows", ["static", "dynamic"])
def test_exports(rows, tmp_path):
    shapes = ({0: torch.export.Dim("rows", min=2)},) if rows == "dynamic" else None
    logits = logits_of().detach()
    program = torch.export.export(Assign(), (logits,), dynamic_shapes=shapes)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "selavi.solve.default" in names
    torch.export.save(program, tmp_path / "assign.pt2")
    program = torch.export.load(tmp_path / "assign.pt2")
    inputs = [logits, logits_of(1).detach()]
    if rows == "dynamic":
        inputs.append(random_log_p(101, COLUMNS))
    for given in inputs:
        for actual, expected in zip(program.module()(given), Assign()(given), strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def arguments(log_p, row_marginal=None, col_marginal=None, init=None, **options):
    defaults = dict(
        lam=2.0, permute=False, tol=1e-9, max_iterations=300, solver="auto", backend="auto"
    )
    return (log_p, row_marginal, col_marginal, init, *(defaults | options).values())


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((2, 9, 4), torch.float64, {}),
        ((2, 9, 4), torch.float64, {"row_marginal": torch.rand(2, 9), "solver": "anderson"}),
        ((1, 9, 4), torch.float32, {"col_marginal": zipf(4), "permute": True, "tol": 2e-6}),
        ((1, 9, 4), torch.bfloat16, {"init": torch.zeros(4), "tol": 2e-6}),
        ((1, 9, 4), torch.float64, {"tol": None, "max_iterations": 5}),
        ((1, 9, 4), torch.float64, {"backend": "torch"}),
        ((0, 9, 4), torch.float64, {}),
    ],
    ids=["plain", "weighted", "permuted", "warm", "fixed", "definition", "empty"],
)
def test_opcheck(shape, dtype, options):
    log_p = random_log_p(*shape, scale=1.0).to(dtype)
    torch.library.opcheck(FUNCTION, arguments(log_p, **options))


class ValueOnly(torch.nn.Module):
    """opcheck differentiates every output, and only `value` can be."""

    def forward(self, log_p):
        return FUNCTION(*arguments(log_p))[-1]


def test_gradient_of_the_operator_is_traced_as_it_is():
    from torch.testing._internal.optests import aot_autograd_check

    log_p = random_log_p(2, 9, 4, scale=1.0).double().requires_grad_()
    aot_autograd_check(ValueOnly(), (log_p,), {}, dynamic=False)
    aot_autograd_check(ValueOnly(), (log_p,), {}, dynamic=True)


# The fixed-iteration mode -------------------------------------------------------------------------


def trace(backend, **options):
    """The whole solve as a graph, of tensors without values: reading one on the host fails."""
    settings = dict(lam=2.0, permute=False, tol=None, max_iterations=4, solver="auto")
    options = Options(**settings | options, backend=backend)

    def function(log_p, c, r, v):
        return tuple(solve(log_p, c, r, v, options, 0, log_p.shape[1], None))

    example = random_log_p(2, 30, 5), torch.ones(30), zipf(5), torch.zeros(5)
    return function, example, make_fx(function, tracing_mode="fake")(*example)


@pytest.mark.parametrize("permute", [False, True])
@pytest.mark.parametrize("which", ["torch", "cpu"])
def test_fixed_iterations_read_nothing_on_the_host(which, permute, compiled):
    function, example, graph = trace(which, permute=permute)
    for actual, expected in zip(graph(*example), function(*example), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"solver": "sinkhorn"}, {"solver": "anderson"}])
def test_iterations_to_a_tolerance_do(options):
    with pytest.raises(Exception, match=r"data-dependent|_local_scalar_dense"):
        trace("torch", tol=1e-6, **options)


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_fixed_iterations_are_sinkhorns(backend, iterations):
    log_p = random_log_p(2, 40, 6, scale=1.0)
    r, c = zipf(6) / zipf(6).sum(), torch.rand(40, dtype=torch.float64)
    c /= c.sum()
    result = on_device.sinkhorn(
        log_p,
        lam=3.0,
        row_marginal=c,
        col_marginal=r,
        tol=None,
        max_iterations=iterations,
        backend=backend,
    )
    assert (result.n_passes == iterations).all()
    for b in range(2):
        kernel, column = (3.0 * log_p[b].double()).exp(), torch.ones(6, dtype=torch.float64)
        row = c / (kernel @ column)
        for _ in range(1, iterations):
            column = r / (kernel.T @ row)
            row = c / (kernel @ column)
        plan = row[:, None] * kernel * column
        torch.testing.assert_close(result.plan()[b], plan, rtol=2e-5, atol=1e-9)
        error = (plan.sum(0) - r).abs().sum()
        torch.testing.assert_close(result.error[b], error, rtol=1e-4, atol=1e-7)
        assert torch.equal(result.labels[b], plan.argmax(-1))
    assert torch.equal(result.converged, result.error <= 2e-6)


def test_fixed_iterations_run_on_when_converged():
    result = sinkhorn(torch.zeros(10, 4), tol=None, max_iterations=7)
    assert result.converged and result.n_passes == 7
    permuted = sinkhorn(torch.zeros(10, 4), tol=None, max_iterations=7, permute=True)
    assert permuted.n_passes == 8
