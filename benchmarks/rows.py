"""The lines of the tables: what is compared, and the goals."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a table: a quantity of every case that both methods were run on.

    Attributes:
        quantity: "time" (theirs / ours), "slowdown" (ours / theirs), "memory" (ours / theirs),
            "passes" (ours), "warm" (passes, ours / theirs), "floor" (bytes at the measured
            bandwidth / ours), "seconds" (ours), "peak" (memory with the matrix / the matrix).
        goal: at least, for "time" and "floor"; at most, for the others.
        theirs: the peer's method; None where the quantity is of ours alone.
        cases: which of the section's cases, by how their names begin.
        other_case: theirs is not of the same case but of this one.
        package: what theirs needs, if it may be absent.
    """

    title: str
    peer: str
    quantity: str
    goal: float
    section: str
    theirs: str | None
    ours: str = "selavi"
    cases: str = ""
    other_case: str | None = None
    package: str | None = None


MORE_IS_BETTER = ("time", "floor")

_ASSIGN = "labels, {} family, column error 2e-6"
_POT = "labels, both families, uniform prior"
_PLAIN = "plain (the reference)"
_FIXED = "3 iterations, plan written"
ROWS = (
    Row(_ASSIGN.format("hard"), "the reference", "time", 20, "labels", "reference", cases="hard"),
    Row(_ASSIGN.format("hard"), "the reference", "memory", 0.55, "labels", "reference", cases="h"),
    Row(_ASSIGN.format("easy"), "the reference", "time", 50, "labels", "reference", cases="easy"),
    Row(_POT, "POT, log domain", "time", 30, "labels", "pot_log"),
    Row(_POT, "POT, kernel domain", "time", 20, "labels", "pot"),
    Row("one pass, float32", "x.sum()", "slowdown", 2.0, "pass", "sum", cases="float32"),
    Row(
        "one pass, bfloat16",
        "x.sum() in float32",
        "slowdown",
        1.3,
        "pass",
        "sum",
        cases="bfloat16",
        other_case="float32",
    ),
    Row("one pass, bfloat16", "x.sum() in bfloat16", "slowdown", 1.3, "pass", "sum", cases="bf"),
    Row("dense cost, error 1e-6", "POT, log domain", "time", 10, "dense", "pot_log"),
    Row("dense cost, error 1e-6", "OTT-JAX", "time", 3, "dense", "ott"),
    Row("dense cost, error 1e-6", "OTT-JAX, Anderson", "time", 3, "dense", "ott_anderson"),
    Row("dense cost, error 1e-6", "geomloss", "time", 10, "dense", "geomloss"),
    Row(_FIXED, "SwAV/DINO, eager", "time", 5, "fixed iterations", "eager"),
    Row(_FIXED, "SwAV/DINO, compiled", "time", 2, "fixed iterations", "compiled"),
    Row("passes, trained run's logits", "plain", "passes", 12, "trained", "plain"),
    Row(
        "passes, hard family",
        _PLAIN,
        "passes",
        40,
        "labels",
        "reference",
        cases="hard",
    ),
    Row(
        "passes, easy family",
        _PLAIN,
        "passes",
        12,
        "labels",
        "reference",
        cases="easy",
    ),
    Row("passes after a 10% change", "cold", "warm", 0.4, "warm start", "cold", "warm"),
)


def _gpu_rows(backend: str) -> Iterator[Row]:
    def row(title: str, peer: str, quantity: str, goal: float, section: str, **more: str) -> Row:
        theirs = more.pop("theirs", None)
        title = f"{title} ({backend})"
        return Row(title, peer, quantity, goal, section, theirs, ours=backend, **more)

    bandwidth, loop = "its bytes at the measured bandwidth", "SwAV/DINO"
    for dtype in ("float32", "bfloat16"):
        title = f"one iteration, 10 x 1M x 309, {dtype}"
        yield row(title, bandwidth, "floor", 0.9, "iteration", cases=dtype)
    title = "labels, 10 heads x 170,752 x 309, hard family, column error 2e-6"
    yield row(
        title, "the reference, head after head", "time", 100, "gpu labels", theirs="reference"
    )
    yield row(title, "-", "seconds", 0.05, "gpu labels")
    section, wide = "gpu fixed iterations", "wide, bfloat16, 3 iterations"
    title = "2,048 x 65,536, 3 iterations, bfloat16"
    yield row(title, f"{loop}, eager", "time", 10, section, theirs="eager", cases=wide)
    yield row(title, f"{loop}, compiled", "time", 3, section, theirs="compiled", cases=wide)
    yield row(title, f"4 reads and 1 write: {bandwidth}", "floor", 0.8, section, cases=wide)
    for dtype in ("bfloat16", "float32"):
        few, many = (f"batch, {dtype}, {count} iterations" for count in (3, 10))
        title = f"4,096 x 3,000, 10 iterations, {dtype}"
        yield row(
            *(title, "3 iterations", "slowdown", 1.5, section),
            theirs=backend,
            cases=many,
            other_case=few,
        )
    for peer, theirs, goal, package in (
        ("POT, log domain", "pot_log", 10, "POT"),
        ("OTT-JAX", "ott", 3, "ott-jax"),
    ):
        title = "dense cost, 4,096 x 4,096, error 1e-6"
        yield row(title, peer, "time", goal, "gpu dense", theirs=theirs, package=package)
    title = "points in 64 dimensions, 4,096 x 4,096, error 1e-6"
    flash = {"theirs": "flash_sinkhorn", "package": "flash-sinkhorn"}
    yield row(title, "flash-sinkhorn", "time", 3, "gpu points", **flash)
    for dtype in ("float32", "bfloat16"):
        title = f"accumulate, 2 x 10 x 4,096 x 309, {dtype}"
        yield row(title, bandwidth, "floor", 0.85, "accumulate", cases=dtype)
    yield row("labels, 10M x 309, bfloat16", "the matrix", "peak", 1.05, "memory")


GPU_ROWS = (*_gpu_rows("cuda"), *_gpu_rows("triton"))
