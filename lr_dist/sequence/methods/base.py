"""The interface of methods against forgetting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from lr_dist.sequence.classifier import SequenceClassifier
    from lr_dist.tasks import TokenSplit


class Method:
    """What happens around the plain training of a task sequence; plain fine-tuning does nothing.

    A method lives for one sequence (one run). Subclass it in a file of its own, override what is needed, and
    add it to `METHODS`. Constructor arguments are the values of the text form, `name:key=value,...`.
    """

    name = "finetune"

    def before_sequence(self, model: SequenceClassifier) -> None:
        """Before the first task, with the pre-trained weights in the model."""

    def before_task(self, model: SequenceClassifier, index: int, train: TokenSplit) -> None:
        """Before the task `index` (from 0) is learned from `train`."""

    def loss(self, model: SequenceClassifier, batch: dict[str, Tensor], task_loss: Tensor) -> Tensor:
        """The scalar to minimise on one batch; `task_loss` is the task's own loss (scalar)."""
        return task_loss

    def after_task(self, model: SequenceClassifier, index: int, train: TokenSplit) -> None:
        """After the task `index` (from 0) was learned."""

    def to_dict(self) -> dict[str, Any]:
        """Name and settings, plain data for the result file."""
        return {"name": self.name}
