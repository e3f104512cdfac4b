"""When the labels are re-assigned: often early, rarely late."""


def round_steps(total_steps: int, num_rounds: int, power: float = 1.5) -> list[int]:
    """Training steps before which a clustering round runs, ascending, the first at 0.

    Round j of n falls at total_steps (j / n)^power. Rounds that would fall on one step are one
    round. The labelling after the last step is not part of this list.
    """
    return sorted({int(total_steps * (j / num_rounds) ** power) for j in range(num_rounds)})
