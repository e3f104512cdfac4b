"""Table (markdown), plot (PNG) and README's copy of a results file: report.py RESULTS.json."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from results import steps

README = Path(__file__).parents[1] / "README.md"
_BEGIN, _END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
MET, MISSED, INK = "#2f6f9f", "#c8553d", "#222222"
_UNITS = {"time": "x less time", "slowdown": "x its time", "memory": "x its peak extra memory"}


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"


def _range(row: dict[str, Any]) -> str:
    low, high = sorted((_number(row["worst"]), _number(row["best"])), key=float)
    return low if low == high else f"{low} to {high}"


def _goal(row: dict[str, Any]) -> str:
    sign = "≥" if row["quantity"] == "time" else "≤"
    return f"{sign} {row['goal']:g}{_UNITS.get(row['quantity'], '')}"


def _measured(row: dict[str, Any]) -> str:
    failed = f"ours failed: {', '.join(row['missing'])}" if row["missing"] else ""
    if row["worst"] is None:
        return failed or "not run"
    text = f"{_range(row)}{'' if row['quantity'] in ('passes', 'warm') else 'x'}"
    if row["quantity"] == "passes":
        least, most = (f"{count:,}" for count in row["peer_steps"])
        text += f"; it takes {least if least == most else f'{least} to {most}'}"
    if row["quantity"] in ("time", "passes") and row["peer_unconverged"]:
        count = f"{row['peer_unconverged']} of {len(row['values'])}"
        text += f"; it ends unconverged in {count}, error up to {row['peer_error']:.0e}"
    return f"{text}; {failed}" if failed else text


def table(results: dict[str, Any]) -> str:
    lines = ["| case | compared with | goal | measured | met |", "|---|---|---|---|---|"]
    met = {True: "yes", False: "**no**", None: "-"}
    for row in results["rows"]:
        cells = (row["title"], row["peer"], _goal(row), _measured(row), met[row["met"]])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def details(results: dict[str, Any]) -> str:
    """Every case: median time, quartiles, iterations or passes, error, peak extra memory."""
    lines = [
        "| section | case | method | seconds (quartiles) | iterations | error | peak extra MB |",
        "|---|---|---|---|---|---|---|",
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
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def machine(results: dict[str, Any]) -> str:
    said = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in said["versions"].items())
    state = " with changes that were not committed" if results["dirty"] else ""
    return (
        f"{said['cpu']}, {said['cores']} cores, {said['threads']} threads; Python "
        f"{said['python_version']}, {versions}; {said['compiler']}. Size: {results['size']}. "
        f"Commit {results['commit'][:7]}{state}."
    )


def plot(results: dict[str, Any], path: Path) -> None:
    """How many times longer each peer takes. The bar is the worst case, the line's end the best."""
    rows = [row for row in results["rows"] if row["quantity"] == "time" and row["values"]]
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.5), layout="constrained")
    for place, row in enumerate(rows):
        color = MET if row["met"] else MISSED
        axes.barh(place, row["worst"] - 1, height=0.56, color=color, left=1)
        axes.plot([row["worst"], row["best"]], [place, place], color=color, lw=1.6)
        axes.plot([row["goal"]] * 2, [place - 0.38, place + 0.38], color=INK, lw=2.2)
        right = max(row["best"], row["goal"])
        text = f"{_range(row)}x{' *' if row['peer_unconverged'] else ''}"
        axes.text(right * 1.1, place, text, va="center", fontsize=9, color=INK)
    names = [f"{row['peer']}\n{row['title'].split(', column')[0]}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("log")
    values = [row[key] for row in rows for key in ("worst", "best", "goal")]
    axes.set_xlim(min(1.0, *values) * 0.7, max(values) * 3)
    axes.axvline(1, color=INK, lw=0.8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_xlabel("peer's time / selavi's time   (* stopped before it reached selavi's error)")
    axes.set_title("Sinkhorn on a CPU: worst case (bar) to best (line)", loc="left", fontsize=11)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=MET, label="goal met"),
        plt.Rectangle((0, 0), 1, 1, color=MISSED, label="goal missed"),
        plt.Line2D([], [], color=INK, lw=2.2, label="goal"),
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def into_readme(text: str) -> None:
    before, rest = README.read_text().split(_BEGIN)
    after = rest.split(_END)[1]
    README.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


def main(source: Path) -> None:
    results = json.loads(source.read_text())
    parts = (table(results), machine(results), details(results))
    source.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    picture = source.with_suffix(".png")
    plot(results, picture)
    if results["size"] == "full":
        link = f"![peers' times]({picture.relative_to(README.parent).as_posix()})"
        into_readme("\n\n".join((machine(results), table(results), link)))
    print(table(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
