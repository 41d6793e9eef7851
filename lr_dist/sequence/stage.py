"""One stage of a task sequence: which task is learned, from which tokens, with which rates."""

from __future__ import annotations

from dataclasses import dataclass

from lr_dist.distribution import LRDistribution
from lr_dist.tasks import Task, TokenizedTask


@dataclass(frozen=True)
class Stage:
    """The fit that learns one task.

    Attributes:
        index: from 0.
        task: what is learned.
        tokens: the task's texts, as the model reads them.
        distribution: the rates.
    """

    index: int
    task: Task
    tokens: TokenizedTask
    distribution: LRDistribution
