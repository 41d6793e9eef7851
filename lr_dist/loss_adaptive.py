"""`LossAdaptiveLR`: a Lightning callback that takes smaller steps on batches with a high loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lr_dist._callback.changes import unwrapped
from lr_dist._callback.finder import resumes_a_fit
from lr_dist._callback.scaling import gradient_scaler, unscaled
from lr_dist._lightning import Callback, L, give_back, kept
from lr_dist.checks import check_finite
from lr_dist.errors import DivergedError, InvalidLossError, InvalidRateError, InvalidScheduleError, ResumeMismatchError
from lr_dist.step_factors import StepFactors

_NAME = "LossAdaptiveLR"


@dataclass
class RunningMean:
    """An exponential moving average with bias correction: uncorrected / (1 - momentum^count)."""

    momentum: float
    uncorrected: float = 0.0
    count: int = 0

    @property
    def value(self) -> float:
        return self.uncorrected / (1 - self.momentum**self.count)

    def add(self, number: float) -> None:
        self.uncorrected = self.momentum * self.uncorrected + (1 - self.momentum) * number
        self.count += 1


class LossAdaptiveLR(Callback):
    """Multiplies every group's rate, for one step at a time, by

        factor_t = clip(sqrt(L_ref / L_t), f_min, f_max),

    L_t being the loss of the step's batch and L_ref the running mean of the losses before it (1 in the first step).

    Origin: FINCH (arXiv 2605.20005) bounds what one step makes a model forget by the rate times the
    square root of the batch's loss, so its rate falls on batches with a high loss and rises as the model converges,
    without changing the objective. FINCH's exact schedule was not available to us: this formula, the running mean,
    the bounds and their defaults are ours, and have not been tuned.

    It works with any optimizer and any schedule, with or without `LayerwiseLR`, whose ratios between layers it keeps.
    Schedules and checkpoints never contain the factor (`StepFactors`). LearningRateMonitor does not show it either,
    because it is known only after the loss; `log=True` logs it as `lr_factor`.

        trainer = L.Trainer(callbacks=[LayerwiseLR("decay:lr=4e-4,factor=0.7"), LossAdaptiveLR(log=True)])

    L_t is the loss that `training_step` returned, averaged over the batches of an accumulation window and all
    processes. One number is read from the device for each step.

    With manual optimization it is the mean of the losses passed to `manual_backward` since the last step. If several
    optimizers step after one `manual_backward`, they have the same loss, and each has its own running mean. Optimizers
    that are stepped directly (`use_pl_optimizer=False`) get no factor.

    With a gradient scaler (`16-mixed`), a step whose loss is infinite gets no factor and is left out of the mean,
    because the scaler skips that step and lowers its scale.

    Args:
        momentum: momentum of the running mean, from 0 (the previous loss) to below 1.
        f_min: smallest factor.
        f_max: largest factor.
        log: whether to log the factor as `lr_factor` (`lr_factor_1`, ... for further optimizers).

    Raises:
        InvalidRateError: a momentum or bound that is negative or not a finite number.
        InvalidScheduleError: a momentum of 1 or more, or bounds that exclude each other.
        InvalidLossError: in training, a loss below 0, which has no square root.
        DivergedError: in training, a loss that is NaN or infinite.
        UnsupportedOptimizerError: before training, an optimizer without a rate.
        ResumeMismatchError: a checkpoint that was written without this callback, or with other settings.
    """

    def __init__(self, momentum: float = 0.99, f_min: float = 0.1, f_max: float = 2.0, *, log: bool = False) -> None:
        self.momentum = check_finite("momentum", momentum, error=InvalidRateError)
        self.f_min = check_finite("f_min", f_min, error=InvalidRateError)
        self.f_max = check_finite("f_max", f_max, error=InvalidRateError)
        if self.momentum >= 1:
            raise InvalidScheduleError(f"momentum={momentum!r} must be below 1, or the mean would never move.")
        if not self.f_min <= self.f_max or self.f_max == 0:
            raise InvalidScheduleError(
                f"f_min={f_min!r} and f_max={f_max!r} must be 0 <= f_min <= f_max, and f_max above 0."
            )
        # Not `self.log`: Lightning sets that to the module's `log` method.
        self.logs_factor = log
        self._means: dict[int, RunningMean] = {}
        self._window = _Window()
        self._alone = False

    def __getstate__(self) -> dict[str, Any]:
        return kept(self)

    # The loss of a step ----------------------------------------------------------------------------------

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a window where Lightning begins one; a batch may be repeated after an interruption."""
        if pl_module.automatic_optimization and batch_idx % trainer.accumulate_grad_batches == 0:
            self._window = _Window()

    @override
    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Add the loss that `training_step` returned; on its device, without a synchronisation."""
        if self._window.used is not None:
            self._window = _Window()
        self._window.add(unscaled(trainer, pl_module, loss.detach().float().mean()))

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Set the factor of the step that is about to be taken."""
        index = next(
            (i for i, other in enumerate(trainer.optimizers) if unwrapped(other) is unwrapped(optimizer)), None
        )
        if index is None or not self._window.count:
            return
        loss = self._window.mean(trainer)
        factors = StepFactors.of(unwrapped(optimizer))
        if not math.isfinite(loss) and gradient_scaler(trainer) is not None:
            factors.remove(_NAME)
            return
        mean = self._means.setdefault(index, RunningMean(self.momentum))
        factor = self._factor(loss, mean, trainer)
        mean.add(loss)
        factors.set(_NAME, factor)
        if self.logs_factor:
            pl_module.log("lr_factor" if index == 0 else f"lr_factor_{index}", factor)

    def _factor(self, loss: float, mean: RunningMean, trainer: L.Trainer) -> float:
        if not math.isfinite(loss):
            raise DivergedError(
                f"The loss before step {trainer.global_step} is {loss}. Lower the rate, clip gradients "
                "(gradient_clip_val), or look into the batch."
            )
        if loss < 0:
            raise InvalidLossError(
                f"The loss before step {trainer.global_step} is {loss:g}, and LossAdaptiveLR takes its square "
                "root. It needs a loss that is never below 0, such as cross-entropy. Add a constant to the loss, or "
                "remove the callback."
            )
        reference = mean.value if mean.count else loss
        # The limit of the quotient for a loss of 0.
        quotient = reference / loss if loss else (1.0 if reference == 0 else math.inf)
        return min(max(math.sqrt(quotient), self.f_min), self.f_max)

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Remove the factor, which holds for one step only."""
        self._remove(trainer)

    # Before and after ------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Reset the mean, unless this is a further fit of the same Trainer, which continues it."""
        self._window, self._alone = _Window(), False
        if trainer.global_step == 0:
            self._means = {}

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse optimizers that `StepFactors` does not support, before a step is taken."""
        for optimizer in trainer.optimizers:
            StepFactors.of(unwrapped(optimizer))

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._alone = True
        self._remove(trainer)
        give_back(self)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._remove(trainer)
        give_back(self)

    def _remove(self, trainer: L.Trainer) -> None:
        for index in self._means:
            if index < len(trainer.optimizers):
                StepFactors.of(unwrapped(trainer.optimizers[index])).remove(_NAME)

    # Checkpoints -----------------------------------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        """The same for all settings, so that a checkpoint with other settings is found and refused."""
        return _NAME

    @override
    def state_dict(self) -> dict[str, Any]:
        """Plain data only, so that a checkpoint loads with `weights_only=True`."""
        return {
            "settings": self._settings(),
            "means": [[index, mean.uncorrected, mean.count] for index, mean in self._means.items()],
            "windows": [self._window.plain()],
        }

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save every process's window, whose losses differ; Lightning calls this in all processes."""
        if trainer.world_size > 1 and self._window.is_open and not self._alone:
            windows: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(windows, self._window.plain())
            checkpoint["callbacks"][self.state_key]["windows"] = windows

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run that had other factors.

        Raises:
            ResumeMismatchError: the checkpoint was written without this callback, or with other settings.
        """
        if not resumes_a_fit(trainer):
            return
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None or state["settings"] != self._settings():
            saved = "no LossAdaptiveLR" if state is None else f"LossAdaptiveLR({_arguments(state['settings'])})"
            raise ResumeMismatchError(
                f"The checkpoint was written by a run with {saved}, this run has LossAdaptiveLR("
                f"{_arguments(self._settings())}), so it would not continue that run. Use the same callbacks and "
                "settings, or start a new run from the checkpoint's weights alone, without ckpt_path."
            )
        windows = state["windows"]
        # With another number of processes, the windows cannot be restored.
        window = windows[trainer.global_rank] if len(windows) == trainer.world_size else None
        self._window = _Window.from_plain(window)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._means = {
            index: RunningMean(self.momentum, uncorrected, count) for index, uncorrected, count in state_dict["means"]
        }

    def _settings(self) -> dict[str, float]:
        return {"momentum": self.momentum, "f_min": self.f_min, "f_max": self.f_max}


class _Window:
    """The losses since the last step; they stay after it, for the steps of further optimizers."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0
        self.used: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether it has losses that no step has used."""
        return self.count > 0 and self.used is None

    def add(self, loss: Tensor) -> None:
        self.total = self.total + loss
        self.count += 1

    def mean(self, trainer: L.Trainer) -> float:
        """The mean over batches and processes; read from the device once."""
        if self.used is None:
            mean = torch.as_tensor(self.total / self.count)
            if trainer.world_size > 1:
                mean = trainer.strategy.reduce(mean, reduce_op="mean")
            self.used = float(mean)
        return self.used

    def plain(self) -> list[float] | None:
        """Plain data for a checkpoint; None if no window is open."""
        return [float(self.total), self.count] if self.is_open else None

    @classmethod
    def from_plain(cls, data: list[Any] | None) -> _Window:
        """The inverse of `plain`."""
        window = cls()
        if data is not None:
            window.total, window.count = data
        return window


def _arguments(settings: Any) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in settings.items())
