"""The primary score of a task of `lr_dist.tasks` as a torchmetrics Metric."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lr_dist.tasks import Scorer, Task


class TaskScore(Metric):
    """The same number as `Scorer`: an undefined score counts as 0, its value without knowledge.

    Args:
        task: its primary metric is computed.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    outputs: list[Tensor]
    labels: list[Tensor]

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.add_state("outputs", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            outputs: [n, number of outputs].
            labels: [n].

        Raises:
            ValueError: another shape.
        """
        Scorer(self.task).update(outputs, labels)  # checks the shapes
        self.outputs.append(outputs.float())
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """The score, a scalar."""
        scorer = Scorer(self.task)
        scorer.update(dim_zero_cat(self.outputs), dim_zero_cat(self.labels))
        return torch.tensor(scorer.compute()[self.task.primary], dtype=torch.float64)
