"""When the labels are re-assigned: often early, rarely late."""


def round_steps(
    total_steps: int, num_rounds: int, power: float = 1.5, first_step: int = 0
) -> list[int]:
    """Training steps before which a clustering round runs, ascending, the first at first_step.

    Round j of n falls at first_step + (total_steps - first_step) (j / n)^power. Rounds that would
    fall on one step are one round. The labelling after the last step is not part of this list.
    """
    span = total_steps - first_step
    return sorted({first_step + int(span * (j / num_rounds) ** power) for j in range(num_rounds)})
