"""Metrics of an accuracy matrix: average accuracy, backward and forward transfer, forgetting, p_o and p_s.

The matrix R has N + 1 rows and N columns: R[i][j] is the score on task j+1 after i tasks were learned, so row 0
is the pre-trained model with untrained heads.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]

METRICS = ("average_accuracy", "backward_transfer", "forgetting", "forward_transfer", "p_o", "p_s")


# What a single task has; the others compare it with an earlier or a later one.
OF_ONE_TASK = ("average_accuracy", "p_s")


def sequence_metrics(matrix: Matrix, *, from_start: bool = False) -> dict[str, float | None]:
    """All metrics of one run; None for those that are not defined.

    A single task has no earlier one: its p_s is its score, and p_o, forgetting and the transfers are None.

    With T = N tasks, R as above and 1-based task numbers:
        average_accuracy = mean_j R[T][j]                                (Lopez-Paz & Ranzato 2017)
        backward_transfer = mean_{j<T} R[T][j] - R[j][j]                 (likewise; negative if it forgot)
        forgetting = mean_{j<T} max_{1<=i<T} R[i][j] - R[T][j]           (Chaudhry et al. 2018, equation 3)
        forward_transfer = mean_{j>1} R[j-1][j] - R[0][j]                (Lopez-Paz & Ranzato 2017)
        p_o = mean_{j<T} R[T][j], p_s = R[T][T]                          (arXiv 2404.01317, there for T = 2)

    Args:
        matrix: R.
        from_start: whether the first task was learned before the run, so that R[0] is not the pre-trained model. The
            forward transfer is then None.

    Raises:
        ValueError: no task, or not N + 1 rows of N scores.
    """
    tasks = len(matrix) - 1
    if tasks < 1 or any(len(row) != tasks for row in matrix):
        raise ValueError(f"An accuracy matrix has N + 1 rows of N >= 1 scores, not {[len(r) for r in matrix]}.")
    last = matrix[tasks]
    if tasks == 1:
        return {**dict.fromkeys(METRICS), **dict.fromkeys(OF_ONE_TASK, last[0])}
    old = range(tasks - 1)
    forward = statistics.fmean(matrix[j][j] - matrix[0][j] for j in range(1, tasks))
    return {
        "average_accuracy": statistics.fmean(last),
        "backward_transfer": statistics.fmean(last[j] - matrix[j + 1][j] for j in old),
        "forgetting": statistics.fmean(max(matrix[i][j] for i in range(1, tasks)) - last[j] for j in old),
        "forward_transfer": None if from_start else forward,
        "p_o": statistics.fmean(last[:-1]),
        "p_s": last[-1],
    }


def above_baseline(matrix: Matrix, baseline: Sequence[float]) -> list[list[float]]:
    """The matrix rescaled so that 0 is the majority class (or chance) and 1 is a perfect score, task by task."""
    return [
        [(score - low) / (1 - low) if low < 1 else 0.0 for score, low in zip(row, baseline, strict=True)]
        for row in matrix
    ]


def was_learned(score: float, baseline: float, examples: int) -> bool:
    """Whether a score is more than two standard errors above the majority class's.

    The standard error is that of a proportion over `examples` test examples (also an approximation for Matthews and
    Pearson, whose baseline is 0: 1 / sqrt(examples)).
    """
    spread = math.sqrt(baseline * (1 - baseline) / examples) if 0 < baseline < 1 else 1 / math.sqrt(examples)
    return score - baseline > 2 * spread
