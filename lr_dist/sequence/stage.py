"""`Stage`: one stage of a task sequence, with its task, tokens and rates."""

from __future__ import annotations

from dataclasses import dataclass

from lr_dist.rate_plan import StageRates
from lr_dist.tasks import Task, TokenizedTask


@dataclass(frozen=True)
class Stage:
    """The fit that learns one task.

    Attributes:
        index: number of the stage, from 0.
        task: the task that is learned.
        tokens: its texts as tokens.
        rates: its learning rates, a distribution or phases.
    """

    index: int
    task: Task
    tokens: TokenizedTask
    rates: StageRates
