"""`Stage`: one stage of a task sequence, with its task, tokens and rates."""

from __future__ import annotations

from dataclasses import dataclass

from lr_dist.distribution import LRDistribution
from lr_dist.tasks import Task, TokenizedTask


@dataclass(frozen=True)
class Stage:
    """The fit that learns one task.

    Attributes:
        index: number of the stage, from 0.
        task: the task that is learned.
        tokens: its texts as tokens.
        distribution: its learning rates.
    """

    index: int
    task: Task
    tokens: TokenizedTask
    distribution: LRDistribution
