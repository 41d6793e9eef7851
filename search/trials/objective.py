"""The score of a trial: what the scores after a task sequence are worth under a `Goal`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lr_dist.search.trials.config import Goal


@dataclass(frozen=True)
class Reference:
    """What the scores of one task sequence are measured by.

    Attributes:
        baseline: for each task, the primary score of always predicting train's majority class (or of chance).
        alone: for each task, its score when learned alone at its own best flat rate; for `relative`.
        flat_p_s: the last task's score under the tuned flat rate of the sequence; for `constrained`.
    """

    baseline: tuple[float, ...]
    alone: tuple[float, ...] | None = None
    flat_p_s: float | None = None

    def rescaled(self, task: int, score: float) -> float:
        """0 for the majority class, 1 for the task learned alone; plain differences where nothing learned it."""
        assert self.alone is not None
        gain = self.alone[task] - self.baseline[task]
        # A task that no flat rate learns tells nothing about rates, and a division by next to nothing would drown
        # the others: its differences count as they are.
        return (score - self.baseline[task]) / gain if gain > LEAST_GAIN else score - self.baseline[task]


LEAST_GAIN = 0.02


def value(goal: Goal, reference: Reference, final: Sequence[float]) -> tuple[float, ...]:
    """What Optuna maximises, from the scores after the last task: one number, or p_o and p_s for `pareto`."""
    if goal.mode == "pareto":
        return p_o(final), p_s(final)
    return (partial(goal, reference, final),)


def partial(goal: Goal, reference: Reference, scores: Sequence[float]) -> float:
    """The value so far, from the tasks begun so far; comparable between trials that are equally far."""
    if goal.mode == "relative":
        return sum(reference.rescaled(task, score) for task, score in enumerate(scores))
    if goal.mode == "constrained":
        return p_o(scores) if len(scores) == len(reference.baseline) else statistics.fmean(scores)
    return p_o(scores) + p_s(scores) if len(scores) > 1 else scores[0]


def violation(goal: Goal, reference: Reference, final: Sequence[float]) -> float | None:
    """How far p_s is below what `constrained` allows; 0 or less is feasible. None in the other modes."""
    if goal.mode != "constrained":
        return None
    assert reference.flat_p_s is not None
    return reference.flat_p_s - goal.tolerance - p_s(final)


def p_o(scores: Sequence[float]) -> float:
    """Mean score on the tasks learned before the last one."""
    return statistics.fmean(scores[:-1])


def p_s(scores: Sequence[float]) -> float:
    """Score on the last task."""
    return scores[-1]
