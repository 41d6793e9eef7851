"""Joint training: all tasks so far at once, from the weights before the first; the upper bound of every method."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from lr_dist._lightning import L
from lr_dist.errors import ConfigurationError
from lr_dist.methods.base import Method, MethodInfo, Order, Setting
from lr_dist.methods.context import StageContext


class Joint(Method):
    """In stage i, learns the tasks 1 to i together, starting from the weights before the first stage.

    Nothing is forgotten, because nothing is learned after anything else: what a sequence loses against it is the price
    of learning in sequence. It needs all earlier data and trains on all of it again in every stage.

    The runner of `lr_dist.sequence` does the training: every batch has the examples of one task, and the batches of all
    tasks are shuffled. The schedule covers all of them.

    Raises:
        ConfigurationError: in a user's own Trainer, which has the data of one task.
    """

    name: ClassVar[str] = "joint"
    info: ClassVar[MethodInfo] = MethodInfo(
        "learns all tasks so far at once, from the weights before the first: the upper bound",
        "multi-task learning, Caruana 1997",
        stores="all earlier data",
        earlier_data=True,
    )
    order: ClassVar[Order] = Order.LEARN
    trains_earlier_heads: ClassVar[bool] = True
    learns_jointly: ClassVar[bool] = True

    @override
    def settings(self) -> dict[str, Setting]:
        return {}

    @override
    def trains_in(self, context: StageContext) -> bool:
        return context.index > 0

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self._context is None:
            raise ConfigurationError(
                "joint needs the data of all tasks, which lr-dist compare and evidence have. In your own Trainer, give "
                "fit() a loader that mixes the tasks instead."
            )
