"""FINCH: smaller steps on batches with a high loss, as a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import override

from lr_dist._lightning import L
from lr_dist.loss_adaptive import LossAdaptiveLR
from lr_dist.methods.base import Method, MethodInfo, Setting


class Finch(Method, LossAdaptiveLR):
    """Multiplies every rate in each step by

        clip(sqrt(L_ref / L_t), f_min, f_max),

    L_t being the loss of the step's batch and L_ref the running mean of the losses before it: `LossAdaptiveLR`, with
    the text form of a method, `finch:momentum=0.99,f_min=0.1,f_max=2.0`. After FINCH (arXiv 2605.20005), whose schedule
    differs: see `LossAdaptiveLR`, which tells what is ours, and how it counts with accumulation, several processes and
    mixed precision.

        trainer = L.Trainer(callbacks=[LayerwiseLR("decay:lr=4e-4,factor=0.7"), Finch()])

    The mean begins anew in each stage. L_t includes the penalties of methods before it in the list of callbacks.

    Args:
        momentum: momentum of the running mean, from 0 (the previous loss) to below 1.
        f_min: smallest factor.
        f_max: largest factor.

    Raises:
        LRDistError: what `LossAdaptiveLR` raises.
    """

    name: ClassVar[str] = "finch"
    info: ClassVar[MethodInfo] = MethodInfo(
        "takes smaller steps on batches with a high loss", "after FINCH, arXiv 2605.20005"
    )

    def __init__(self, momentum: float = 0.99, f_min: float = 0.1, f_max: float = 2.0) -> None:
        LossAdaptiveLR.__init__(self, momentum, f_min, f_max)

    @override
    def settings(self) -> dict[str, Setting]:
        return {"momentum": self.momentum, "f_min": self.f_min, "f_max": self.f_max}

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse the strategies that methods do not work under, and forget the mean of an earlier stage."""
        Method.setup(self, trainer, pl_module, stage)
        LossAdaptiveLR.setup(self, trainer, pl_module, stage)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the stage; refuse optimizers without a rate, before a step is taken."""
        LossAdaptiveLR.on_train_start(self, trainer, pl_module)
        Method.on_train_start(self, trainer, pl_module)

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run without it or with other settings; continue an open accumulation window."""
        Method.on_load_checkpoint(self, trainer, pl_module, checkpoint)
        LossAdaptiveLR.on_load_checkpoint(self, trainer, pl_module, checkpoint)

    @override
    def state(self) -> dict[str, Any]:
        return {key: value for key, value in LossAdaptiveLR.state_dict(self).items() if key != "settings"}

    @override
    def load_state(self, state: Mapping[str, Any]) -> None:
        LossAdaptiveLR.load_state_dict(self, dict(state))
