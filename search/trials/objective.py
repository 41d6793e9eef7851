"""The value of a trial, computed from the scores after a task sequence according to a `Goal`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lr_dist.search.trials.config import Goal


@dataclass(frozen=True)
class Reference:
    """The reference scores of one task sequence.

    Attributes:
        baseline: for each task, the primary score of always predicting the majority class of train (or of chance).
        alone: for each task, its score when learned alone at its best flat rate; for `relative` and `retention`, and
            None in a search on a single task.
        flat_p_s: the last task's score when the sequence is learned at its best flat rate; for `constrained`.
    """

    baseline: tuple[float, ...]
    alone: tuple[float, ...] | None = None
    flat_p_s: float | None = None

    def rescaled(self, task: int, score: float) -> float:
        """0 for the majority class, 1 for the task learned alone; a plain difference if no flat rate learned it."""
        if self.alone is None:
            return score - self.baseline[task]
        gain = self.alone[task] - self.baseline[task]
        # If no flat rate learned the task, dividing by its tiny gain would make it dominate the other tasks.
        return (score - self.baseline[task]) / gain if gain > LEAST_GAIN else score - self.baseline[task]


LEAST_GAIN = 0.02


def value(goal: Goal, reference: Reference, final: Sequence[float], lost: float | None = None) -> tuple[float, ...]:
    """The objective values of a run: one number, or two for `pareto` and `retention`.

    Args:
        goal: of the search.
        reference: of the sequence.
        final: scores after the last stage.
        lost: nats a token lost of the pre-training; for `retention`.
    """
    if goal.mode == "pareto":
        return _retained(final), p_s(final)
    if goal.mode == "retention":
        assert lost is not None, "SearchConfig asks for a text"
        return partial(goal, reference, final), -lost
    return (partial(goal, reference, final),)


def partial(goal: Goal, reference: Reference, scores: Sequence[float]) -> float:
    """The intermediate value, from the tasks started so far; comparable between trials at the same step."""
    if goal.rescales:
        return sum(reference.rescaled(task, score) for task, score in enumerate(scores))
    if goal.mode == "constrained":
        return _retained(scores) if len(scores) == len(reference.baseline) else statistics.fmean(scores)
    return _retained(scores) + p_s(scores) if len(scores) > 1 else scores[0]


def violation(goal: Goal, reference: Reference, final: Sequence[float]) -> float | None:
    """How far p_s is below the bound of `constrained`; feasible if 0 or less. None in the other modes."""
    if goal.mode != "constrained":
        return None
    assert reference.flat_p_s is not None
    return reference.flat_p_s - goal.tolerance - p_s(final)


def p_o(scores: Sequence[float]) -> float | None:
    """Mean score on the tasks learned before the last one; None for a single task."""
    return _retained(scores) if len(scores) > 1 else None


def _retained(scores: Sequence[float]) -> float:
    return statistics.fmean(scores[:-1])


def p_s(scores: Sequence[float]) -> float:
    """Score on the last task."""
    return scores[-1]
