"""Table (markdown) and plot (PNG) of a results file: report.py RESULTS.json.

README's table of a CPU is that of the file given; its table of a GPU that of the newest file in
results/, and it says so where there is none: report.py alone brings it up to date.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from kernel_hash import RESULTS, newest_gpu_result
from results import steps
from rows import MORE_IS_BETTER

README = Path(__file__).resolve().parents[1] / "README.md"
MET, MISSED, INK = "#2f6f9f", "#c8553d", "#222222"
_UNITS = {
    "time": "x less time",
    "slowdown": "x its time",
    "memory": "x its peak extra memory",
    "floor": "x its speed",
    "seconds": " s",
    "peak": "x its size",
}
_ABSOLUTE = ("passes", "warm", "seconds")


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"


def _range(row: dict[str, Any]) -> str:
    digits = "{:.3f}" if row["quantity"] in ("floor", "peak") else None
    low, high = sorted(
        (digits.format(row[key]) if digits else _number(row[key]) for key in ("worst", "best")),
        key=float,
    )
    return low if low == high else f"{low} to {high}"


def _goal(row: dict[str, Any]) -> str:
    sign = "≥" if row["quantity"] in MORE_IS_BETTER else "≤"
    return f"{sign} {row['goal']:g}{_UNITS.get(row['quantity'], '')}"


def _measured(row: dict[str, Any]) -> str:
    failed = f"ours failed: {', '.join(row['missing'])}" if row["missing"] else ""
    if row["worst"] is None:
        return failed or (f"{row['package']} is not installed" if row["absent"] else "not run")
    text = f"{_range(row)}{'' if row['quantity'] in _ABSOLUTE else 'x'}"
    if row["quantity"] == "passes":
        least, most = (f"{count:,}" for count in row["peer_steps"])
        text += f"; it takes {least if least == most else f'{least} to {most}'}"
    if row["quantity"] in ("time", "passes") and row["peer_unconverged"]:
        count = f"{row['peer_unconverged']} of {len(row['values'])}"
        text += f"; it ends unconverged in {count}, error up to {row['peer_error']:.0e}"
    return f"{text}; {failed}" if failed else text


def table(results: dict[str, Any]) -> str:
    """On a GPU also our times and the two floors of each, from the least case to the most."""
    heads = ["case", "compared with", "goal", "measured", "met"]
    gpu = results["machine"]["gpu"] is not None
    if gpu:
        heads[4:4] = ["ms", "bytes' floor, ms", "exponentials' floor, ms"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    met = {True: "yes", False: "**no**", None: "-"}
    for row in results["rows"]:
        cells = [row["title"], row["peer"], _goal(row), _measured(row), met[row["met"]]]
        if gpu:
            floors = list(zip(*row["floors"], strict=True)) or [(), ()]
            cells[4:4] = [_milliseconds(times) for times in (row["medians"], *floors)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _milliseconds(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    low, high = (f"{1e3 * value:.3g}" for value in (min(seconds), max(seconds)))
    return low if low == high else f"{low} to {high}"


def details(results: dict[str, Any]) -> str:
    """Every case: median time, quartiles, iterations or passes, error, peak extra memory."""
    lines = [
        "| section | case | method | seconds (quartiles) | iterations | error | peak extra MB |"
        " floors: bytes; exponentials |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in results["cases"]:
        seconds = f"{case['median']:.3g}"
        if case["rounds"] > 1:
            seconds += f" ({case['q1']:.3g} to {case['q3']:.3g})"
        iterations = steps(case) or ""
        capped = iterations == case.get("cap")
        peak = case["peak_extra_bytes"]
        cells = (
            case["section"],
            case["case"],
            f"{case['method']} {case['dtype']}",
            seconds,
            f"{iterations} (the cap)" if capped else iterations,
            f"{case['error']:.1e}" if "error" in case else "",
            "" if peak is None else f"{peak / 1e6:.0f}",
            f"{case['floor_bytes']:.3g}; {case['floor_exponentials']:.3g}"
            if "floor_bytes" in case
            else "",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def machine(results: dict[str, Any]) -> str:
    said = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in said["versions"].items())
    state = " with changes that were not committed" if results["dirty"] else ""
    text = (
        f"{said['cpu']}, {said['cores']} cores, {said['threads']} threads; Python "
        f"{said['python_version']}, {versions}; {said['compiler']}. Size: {results['size']}. "
        f"Commit {results['commit'][:7]}{state}."
    )
    if gpu := said["gpu"]:
        measured = ", ".join(
            f"{kind} {value / 1e12:.2f} TB/s" for kind, value in results["bandwidth"].items()
        )
        text = (
            f"{gpu['name']}, {gpu['multiprocessors']} multiprocessors, driver "
            f"{gpu['driver_version']}, CUDA {gpu['cuda']}; SM clock found at {gpu['clocks.sm']}, "
            f"at most {gpu['clocks.max.sm']}; bandwidth measured in this run: "
            f"{measured or 'none'}. {text} Kernels {results['kernel_hash']}."
        )
    return text


def plot(results: dict[str, Any], path: Path) -> None:
    """How many times longer each peer takes; of a GPU also the share of the floor's speed."""
    panels = [
        ("time", "peer's time / selavi's time   (* stopped before it reached selavi's error)")
    ]
    if results["machine"]["gpu"]:
        panels.append(("floor", "its bytes at the measured bandwidth / selavi's time"))
    chosen = [
        ([row for row in results["rows"] if row["quantity"] == quantity and row["values"]], label)
        for quantity, label in panels
    ]
    chosen = [(rows, label) for rows, label in chosen if rows]
    heights = [len(rows) + 2 for rows, _ in chosen] or [1]
    figure, grid = plt.subplots(
        *(len(heights), 1),
        figsize=(9, 0.5 * sum(heights) + 0.5),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axes, (rows, label) in zip(grid[:, 0], chosen, strict=False):
        _bars(axes, rows, label)
    title = results["machine"]["gpu"]["name"] if results["machine"]["gpu"] else "a CPU"
    grid[0, 0].set_title(f"Sinkhorn on {title}: worst case (bar) to best (line)", loc="left")
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=MET, label="goal met"),
        plt.Rectangle((0, 0), 1, 1, color=MISSED, label="goal missed"),
        plt.Line2D([], [], color=INK, lw=2.2, label="goal"),
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _bars(axes: plt.Axes, rows: list[dict[str, Any]], label: str) -> None:
    ratio = rows[0]["quantity"] == "time"
    start = 1.0 if ratio else 0.0
    for place, row in enumerate(rows):
        color = MET if row["met"] else MISSED
        axes.barh(place, row["worst"] - start, height=0.56, color=color, left=start)
        axes.plot([row["worst"], row["best"]], [place, place], color=color, lw=1.6)
        axes.plot([row["goal"]] * 2, [place - 0.38, place + 0.38], color=INK, lw=2.2)
        right = max(row["best"], row["goal"])
        text = f"{_range(row)}x{' *' if row['peer_unconverged'] else ''}"
        axes.text(right * 1.1 if ratio else right + 0.02, place, text, va="center", fontsize=9)
    names = [row["title"].split(", column")[0] for row in rows]
    if ratio:
        names = [f"{row['peer']}\n{name}" for row, name in zip(rows, names, strict=True)]
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.invert_yaxis()
    values = [row[key] for row in rows for key in ("worst", "best", "goal")]
    if ratio:
        axes.set_xscale("log")
        axes.set_xlim(min(1.0, *values) * 0.7, max(values) * 3)
        axes.axvline(1, color=INK, lw=0.8)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    else:
        axes.set_xlim(0, max(1.0, *values) * 1.2)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def into_readme(kind: str, text: str) -> None:
    """Between <!-- kind --> and <!-- /kind -->."""
    begin, end = f"<!-- {kind} -->", f"<!-- /{kind} -->"
    before, rest = README.read_text().split(begin)
    after = rest.split(end)[1]
    README.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def section(results: dict[str, Any], picture: Path) -> str:
    link = f"![peers' times]({picture.relative_to(README.parent).as_posix()})"
    return "\n\n".join((machine(results), table(results), link))


def gpu_section() -> str:
    """README's, of the newest file of full size."""
    newest = newest_gpu_result()
    if newest is None:
        return "No GPU figure exists yet."
    path, results = newest
    return section(results, path.with_suffix(".png"))


def main(source: Path) -> None:
    results = json.loads(source.read_text())
    parts = [table(results), machine(results), details(results)]
    if results["steps"]:
        parts.insert(1, "\n".join(("```", *results["steps"], "```")))
    source.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    picture = source.with_suffix(".png")
    plot(results, picture)
    if results["size"] == "full" and not results["machine"]["gpu"] and source.parent == RESULTS:
        into_readme("benchmarks", section(results, picture))
    print(table(results))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve())
    into_readme("gpu-benchmarks", gpu_section())
