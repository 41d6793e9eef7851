"""EMA: at a stage's end, the exponential moving average of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import override

from lr_dist._lightning import L, part_of
from lr_dist.checks import check_finite, check_whole
from lr_dist.errors import ConfigurationError, MissingExtraError, shown
from lr_dist.methods.base import Method, MethodInfo, Order, Setting
from lr_dist.methods.context import StageContext
from lr_dist.methods.model_change import STAGES


class EMA(Method):
    """Lightning's `EMAWeightAveraging` as a method: after every step

        average <- decay average + (1 - decay) theta

    (the first step sets the average), and at the end of the fit the average takes the weights' place (Polyak and
    Juditsky 1992; in deep learning: Tarvainen and Valpola 2017, arXiv 1703.01780). Validation in the fit is of the
    average, as with Lightning's callback. Buffers are those of the training; to average them would change whole
    numbers such as position ids.

        trainer = L.Trainer(callbacks=[LayerwiseLR("flat:lr=2e-4"), EMA(decay=0.99)])

    Where 1 / (1 - decay) is more than a third of the fit's steps, the average has hardly left the start: choose the
    decay by the length of a stage. Memory: one copy of the model, in checkpoints too. Works under DDP; not under FSDP2,
    whose shards Lightning's callback does not average.

    Args:
        decay: from 0 to below 1.
        every: steps from one update to the next, 1 or more.
        stages: `later` (from the second stage on) or `all`, of a sequence. In a user's own Trainer it acts in every
            fit.

    Raises:
        ConfigurationError: an invalid setting.
        MissingExtraError: at the start of a fit, a version of Lightning without `EMAWeightAveraging` (before 2.6).
    """

    name: ClassVar[str] = "ema"
    info: ClassVar[MethodInfo] = MethodInfo(
        "the exponential moving average of a stage's weights (Lightning's EMAWeightAveraging)",
        "Tarvainen and Valpola 2017, arXiv 1703.01780",
        stores="one copy of the weights during a stage",
        fsdp2=False,
    )
    order: ClassVar[Order] = Order.FINISH

    def __init__(self, decay: float = 0.99, every: int = 1, stages: str = "later") -> None:
        self.decay = check_finite("decay", decay, error=ConfigurationError)
        if self.decay >= 1:
            raise ConfigurationError(f"decay must be below 1, not {shown(decay)}: the average would never move.")
        self.every = check_whole("every", every, 1, error=ConfigurationError)
        if stages not in STAGES:
            raise ConfigurationError(f"stages must be {' or '.join(STAGES)}, not {shown(stages)}.")
        self.stages = stages
        self._average: Any = None

    @override
    def settings(self) -> dict[str, Setting]:
        return {"decay": self.decay, "every": self.every, "stages": self.stages}

    @override
    def trains_in(self, context: StageContext) -> bool:
        """In the stages that it acts in."""
        return self.stages == "all" or context.index > 0

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make Lightning's callback of this fit."""
        super().setup(trainer, pl_module, stage)
        self._average = None
        if stage != "fit" or (self._context is not None and not self.trains_in(self._context)):
            return
        callbacks = part_of(trainer, "callbacks")
        if not hasattr(callbacks, "EMAWeightAveraging"):
            raise MissingExtraError(
                f"ema is {callbacks.__name__}.EMAWeightAveraging, which came with version 2.6. Run: pip install -U "
                f"{callbacks.__name__.partition('.')[0]}"
            )
        average = callbacks.EMAWeightAveraging(use_buffers=False, decay=self.decay, update_every_n_steps=self.every)
        average.setup(trainer, pl_module, stage)
        self._average = average

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average."""
        if self._average is not None:
            self._average.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the average in."""
        if self._average is not None:
            self._average.on_validation_epoch_start(trainer, pl_module)

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the weights of the training back."""
        if self._average is not None:
            self._average.on_validation_epoch_end(trainer, pl_module)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the average in for good."""
        if self._average is not None:
            self._average.on_train_end(trainer, pl_module)
            self._average = None
        super().on_train_end(trainer, pl_module)

    @override
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        """The average is in: `on_train_end` has put it there."""

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the model's weights, and those of the training beside it."""
        if self._average is not None:
            self._average.on_save_checkpoint(trainer, pl_module, checkpoint)

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load both."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if self._average is not None:
            self._average.on_load_checkpoint(trainer, pl_module, checkpoint)

    @override
    def state(self) -> dict[str, Any]:
        return {} if self._average is None else {"average": self._average.state_dict()}

    @override
    def load_state(self, state: Mapping[str, Any]) -> None:
        if self._average is not None and "average" in state:
            self._average.load_state_dict(state["average"])

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let go of the average."""
        self._average = None
