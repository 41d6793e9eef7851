"""Methods that change the model before a fit and undo the change after it, such as freezing and adapters."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import nn
from typing_extensions import override

from lr_dist._callback.strategies import after_configure_model
from lr_dist._lightning import L, part_of
from lr_dist.errors import ConfigurationError, shown
from lr_dist.methods.base import Method
from lr_dist.methods.context import StageContext

STAGES = ("later", "all")


class ModelChange(Method):
    """Calls `change` when the model exists, before a strategy wraps it and before the optimizer is made.

    Args:
        stages: in a sequence (`lr_dist.sequence`), `later`: from the second stage on, so that the first one is that of
            the arms without the method; or `all`. In a user's own Trainer it acts in every fit.
    """

    def __init__(self, stages: str) -> None:
        if stages not in STAGES:
            raise ConfigurationError(f"stages must be {' or '.join(STAGES)}, not {shown(stages)}.")
        self.stages = stages
        self._trainable: list[nn.Parameter] = []

    @abstractmethod
    def change(self, module: L.LightningModule) -> None:
        """Change the model. What was trainable before is trainable again after the fit."""

    @override
    def trains_in(self, context: StageContext) -> bool:
        """In the stages that it acts in."""
        return self.stages == "all" or context.index > 0

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Change the model, unless the stage is one to leave alone."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or (self._context is not None and not self.trains_in(self._context)):
            return

        def change() -> None:
            self._trainable = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
            self.change(pl_module)

        # A model that is built in `configure_model` does not exist yet.
        if part_of(trainer, "utilities.model_helpers").is_overridden("configure_model", pl_module):
            after_configure_model(pl_module, change)
        else:
            change()

    @override
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        """What was trainable before the fit is trainable again."""
        self._undo()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """The same where the fit fails."""
        self._undo()

    def _undo(self) -> None:
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self._trainable = []
