"""What a job must do at least: the two floors of its time. `python floors.py` prints a table.

Bytes over the memory's bandwidth, each input read and each output written as often as the job has
to; exponentials over the rate of the units that make them. What is printed is computed, not
measured: for the full size, at the rates of a data sheet.
"""

from dataclasses import dataclass, replace

EXPONENTIALS_A_CLOCK = 16  # of a multiprocessor of an NVIDIA GPU of compute capability 8.0 or later


@dataclass(frozen=True)
class Work:
    """Bytes read and written in device memory, and exponentials."""

    read: float
    written: float
    exponentials: float

    @property
    def bytes(self) -> float:
        return self.read + self.written

    def times(self, count: int) -> "Work":
        return replace(
            self,
            read=count * self.read,
            written=count * self.written,
            exponentials=count * self.exponentials,
        )


def iteration(heads: int, rows: int, columns: int, size: int) -> Work:
    """One read of (heads, rows, columns) entries of `size` bytes, an exponential for each."""
    entries = heads * rows * columns
    return Work(entries * size, 0, entries)


def fixed_iterations(
    rows: int, columns: int, size: int, plan_size: int, iterations: int, on_chip: bool
) -> Work:
    """`iterations` and the plan: each reads the scores, or, on chip, all read them once."""
    entries = rows * columns
    reads = 1 if on_chip else iterations + 1
    return Work(reads * entries * size, entries * plan_size, (iterations + 1) * entries)


def accumulate(
    views: int, heads: int, batch: int, columns: int, size: int, store_size: int
) -> Work:
    """Each logit read once, each of the batch's entries in the store read and written once."""
    entries = heads * batch * columns
    store = entries * store_size
    return Work(views * entries * size + store, store, views * entries)


# H100 SXM by its data sheet: HBM3, and 132 multiprocessors at 1.98 GHz.
_BANDWIDTH = 3.35e12
_EXPONENTIALS = 132 * 1.98e9 * EXPONENTIALS_A_CLOCK
_FULL = {
    "one iteration, 10 x 1,000,000 x 309, float32": iteration(10, 1_000_000, 309, 4),
    "one iteration, 10 x 1,000,000 x 309, bfloat16": iteration(10, 1_000_000, 309, 2),
    "labels, 10 x 170,752 x 309, float32, a pass": iteration(10, 170_752, 309, 4),
    "2,048 x 65,536, 3 iterations, bfloat16": fixed_iterations(2048, 65_536, 2, 4, 3, False),
    **{
        f"4,096 x 3,000, {count} iterations, {name}, on chip": fixed_iterations(
            4096, 3000, size, 4, count, True
        )
        for name, size in (("bfloat16", 2), ("float32", 4))
        for count in (3, 10)
    },
    "4,096 x 4,096, float32, a pass from memory": iteration(1, 4096, 4096, 4),
    "accumulate, 2 x 10 x 4,096 x 309, float32": accumulate(2, 10, 4096, 309, 4, 4),
    "accumulate, 2 x 10 x 4,096 x 309, bfloat16": accumulate(2, 10, 4096, 309, 2, 4),
    "10,000,000 x 309, bfloat16, a pass": iteration(1, 10_000_000, 309, 2),
}


def main() -> None:
    print("| case | read MB | written MB | M exponentials | bytes' floor | exponentials' floor |")
    print("|---|---|---|---|---|---|")
    for name, work in _FULL.items():
        cells = (
            name,
            f"{work.read / 1e6:,.0f}",
            f"{work.written / 1e6:,.0f}",
            f"{work.exponentials / 1e6:,.0f}",
            f"{1e3 * work.bytes / _BANDWIDTH:.3g} ms",
            f"{1e3 * work.exponentials / _EXPONENTIALS:.3g} ms",
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
