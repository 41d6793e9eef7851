"""Rates by layer that change over the steps of a fit: applies the `LayerSchedule` and `Phases` of `LayerwiseLR`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lr_dist._callback.changes import unwrapped
from lr_dist._callback.layer_switch import LayerSwitch, is_compiled, recomputes
from lr_dist._callback.phase_clock import PhaseClock, total_steps
from lr_dist._lightning import (
    Callback,
    FSDPStrategy,
    GradientAccumulationScheduler,
    L,
    SingleDeviceStrategy,
    kept,
    rank_zero_warn,
)
from lr_dist.errors import UnsupportedOptimizerError, UnsupportedStrategyError
from lr_dist.layer_schedule import LayerSchedule, layer_factor
from lr_dist.names import layer_of
from lr_dist.rate_plan import Phases
from lr_dist.step_factors import StepFactors

_NAME = "LayerwiseLR"


class Gradual(Callback):
    """Starts the layers one after the other; `LayerwiseLR` puts it first among a Trainer's callbacks (`join`).

    A layer that has not started is frozen: its gradients are dropped before clipping and before the optimizer's step,
    so that it gets no optimizer state and no weight decay. This holds under every strategy. On a single device its
    `requires_grad` is False as well, so that no gradient is computed below the lowest layer that trains.

    The rates' factors are set through `StepFactors`. During the hooks `on_train_batch_start` and
    `on_train_epoch_start`, in which LearningRateMonitor reads the rates, the groups' rates include them.
    """

    def __init__(self, schedule: LayerSchedule, phases: Phases | None = None) -> None:
        self.schedule = schedule
        self.clock = PhaseClock(phases)
        self._optimizer: Optimizer | None = None
        self._layers = LayerSwitch()
        self._warmup: dict[str, int] = {}
        # Steps of the optimizer as Lightning counts them, including those that a gradient scaler skips.
        self._steps = 0
        self._started: dict[str, int] = {}
        self._training: set[str] = set()
        self._may_switch = False
        self._direct_steps = 0
        self._hook: RemovableHandle | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the objects of the running fit: a copy serves another fit."""
        free: dict[str, Any] = {"_optimizer": None, "_layers": LayerSwitch(), "_hook": None}
        return {**kept(self), **free}

    @property
    def acts(self) -> bool:
        """Whether there is anything to do: a schedule by layer, or phases."""
        return bool(self.schedule or self.clock)

    @property
    def freezes(self) -> bool:
        """Whether layers that train at some time wait at another."""
        return self.schedule.unfreezes or self.clock.freezes

    # For LayerwiseLR -------------------------------------------------------------------------------------

    def join(self, trainer: Any) -> None:
        """Add this callback and `_Last` to the Trainer's callbacks; call it in `setup`, before anything is loaded.

        Raises:
            UnsupportedStrategyError: layers are to wait under FSDP1.
        """
        if self.freezes and isinstance(trainer.strategy, FSDPStrategy):
            raise UnsupportedStrategyError(
                "FSDPStrategy cannot save the optimizer while some parameters that it wrapped together have no "
                "optimizer state, as in layers that have not started. Unfreeze under FSDP2 (ModelParallelStrategy) or "
                "DDP, which resume exactly; `layer_warmup_steps` alone works under FSDPStrategy too."
            )
        _leave(trainer)
        # A second fit of the same Trainer continues its epochs and steps; a new Trainer starts at 0.
        if trainer.global_step == 0:
            self._steps, self._started = 0, {}
            self.clock.reset()
        if self.acts:
            # A new list, because Lightning is iterating over the old one.
            trainer.callbacks = [self, *trainer.callbacks, _Last(self)]

    def attach(self, optimizer: Optimizer, num_layers: int) -> None:
        """Use `optimizer`, whose groups have been split by layer; call it again after every further split.

        Raises:
            InvalidScheduleError: the schedule names a layer that the model lacks.
        """
        self._warmup = self.schedule.warmup(num_layers)
        self.clock.attach(num_layers)
        if not self.acts:
            return
        self._remove_hook()
        self._hook = optimizer.register_step_post_hook(self._on_step_of_torch)
        self._optimizer = optimizer
        self._layers.attach(optimizer)

    def describe(self) -> dict[str, str]:
        """For each group of the optimizer, when it starts; an empty text if it never trains."""
        if self._optimizer is None:
            return {}
        starts = self.schedule.starts(list(self._layers.parameters))
        unit = "epoch" if self.schedule.every_n_epochs is not None else "step"
        described = {}
        for group in self._optimizer.param_groups:
            layer = layer_of(group["name"])
            warmup = f"warm-up {self._warmup[layer]}" if self._warmup[layer] else ""
            start = f"{unit} {starts[layer]}" if self.schedule and layer in starts else ""
            parts = [start, warmup if start else "", self.clock.describe(layer) if layer in starts else ""]
            described[group["name"]] = ", ".join(filter(None, parts))
        return described

    def state(self) -> dict[str, Any] | None:
        """Plain data for a checkpoint."""
        if not self.acts:
            return None
        state: dict[str, Any] = {"steps": self._steps, "started": dict(self._started)}
        return {**state, "phase_starts": self.clock.state()} if self.clock else state

    def before_loading(self, state: Mapping[str, Any] | None) -> None:
        """Prepare for a strategy that loads the optimizer's state; call `load` afterwards.

        Sharded checkpoints are loaded after `attach`, and must hold a state for every parameter with `requires_grad`.
        Layers that had not taken a step have none, so their `requires_grad` is switched off.
        """
        if state and self._optimizer is not None:
            steps = state["steps"]
            self.clock.load(state)
            stepped = {layer for layer, start in state["started"].items() if start < steps}
            self._layers.switch_off(
                layer
                for layer in self._layers.parameters
                if layer not in stepped or not self.clock.trained_before(layer, steps)
            )

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Continue from what `state` returned; before or after `attach`."""
        if state:
            self._steps, self._started = state["steps"], dict(state["started"])
            self.clock.load(state)
        self._layers.switch_all_on()

    # Hooks -----------------------------------------------------------------------------------------------

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._optimizer is None:
            return
        # `requires_grad` can be switched on a single device only: DDP waits for the gradients of all parameters that
        # had it when the model was wrapped. With manual optimization a layer may start in the middle of a batch, a
        # compiled model would be recompiled, and reentrant checkpointing drops gradients if its input needs none.
        self._may_switch = (
            isinstance(trainer.strategy, SingleDeviceStrategy)
            and pl_module.automatic_optimization
            and not any(is_compiled(m) or recomputes(m) for m in pl_module.modules())
        )
        if self.clock:
            self.clock.begin(total_steps(trainer, pl_module))
        self._refresh(trainer)
        self._warn_of_layers_out_of_reach(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._refresh(trainer)
        self._show()

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._refresh(trainer)
        self._direct_steps = 0
        self._show()

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if self._optimizer is None or unwrapped(optimizer) is not self._optimizer:
            return
        # Once more: with manual optimization there may be several steps in a batch.
        self._refresh(trainer)
        self._layers.drop_gradients(self._training)
        self._steps += 1
        self._direct_steps -= 1

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._direct_steps > 0:
            raise UnsupportedOptimizerError(
                f"{type(self._optimizer).__name__} was stepped directly, so Lightning called no hook in which to "
                "freeze the layers that have not started, and counted no step. Step the optimizer that "
                "`self.optimizers()` returns (use_pl_optimizer=True), or leave out the unfreezing and warm-up options."
            )

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end(trainer)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end(trainer)

    # What they do ----------------------------------------------------------------------------------------

    def _refresh(self, trainer: L.Trainer) -> None:
        """Start the layers that are due, and set the factors of the next step."""
        if self._optimizer is None:
            return
        layers = list(self._layers.parameters)
        before = self._started
        self._started = self.schedule.started(layers, before, step=self._steps, epoch=trainer.current_epoch)
        phase = self.clock.factors(self._steps) or {}
        factors = {
            layer: layer_factor(self._started, self._warmup, layer, self._steps) * phase.get(layer, 1.0)
            for layer in layers
        }
        self._training = {layer for layer, factor in factors.items() if factor}
        StepFactors.of(self._optimizer).set(_NAME, factors)
        # A layer never starts within an accumulation window, because steps and epochs do not change there.
        if self._may_switch:
            self._layers.switch(self._training)

    def _show(self) -> None:
        if self._optimizer is not None:
            StepFactors.of(self._optimizer).show()

    def hide(self) -> None:
        """Undo `_show`; `_Last` calls it."""
        if self._optimizer is not None:
            StepFactors.of(self._optimizer).hide()

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def _on_step_of_torch(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._direct_steps += 1

    def _end(self, trainer: L.Trainer) -> None:
        """Restore model, optimizer and Trainer; keep the counts, for a checkpoint after the fit."""
        if self._optimizer is not None:
            StepFactors.of(self._optimizer).remove(_NAME)
            self.hide()
        self._remove_hook()
        self._layers.release()
        self._optimizer = None
        _leave(trainer)

    def _warn_of_layers_out_of_reach(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last = _last_turn(trainer, pl_module, self.schedule)
        starts = self.schedule.starts(list(self._layers.parameters))
        late = [layer for layer, start in starts.items() if start > last and layer not in self._started]
        if late:
            unit = "epoch" if self.schedule.every_n_epochs is not None else "step"
            rank_zero_warn(
                f"Training ends after {unit} {last}, before these layers start, so they are never trained: "
                + ", ".join(f"{layer} ({unit} {starts[layer]})" for layer in late)
                + f". Train longer, or unfreeze a layer more often than every {self._interval()}."
            )

    def _interval(self) -> str:
        if self.schedule.every_n_epochs is not None:
            return f"{self.schedule.every_n_epochs} epoch(s)"
        return f"{self.schedule.every_n_steps} step(s)"


class _Last(Callback):
    """The last of the callbacks: hides the factors that `Gradual`, the first, has shown to the others."""

    def __init__(self, first: Gradual) -> None:
        self.first = first

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first.hide()

    @override
    def on_train_batch_start(self, *_: Any) -> None:
        self.first.hide()


def _leave(trainer: Any) -> None:
    others = [callback for callback in trainer.callbacks if not isinstance(callback, (Gradual, _Last))]
    if len(others) < len(trainer.callbacks):
        trainer.callbacks = others


def _last_turn(trainer: Any, pl_module: L.LightningModule, schedule: LayerSchedule) -> float:
    """The last epoch or step of the run, in the unit of the schedule; infinite if it is not known."""
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else math.inf
    most = trainer.max_steps if trainer.max_steps != -1 else math.inf
    in_epoch: float = math.inf
    # With manual optimization only the module knows how many steps it takes.
    if pl_module.automatic_optimization and not any(
        isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks
    ):
        in_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    if in_epoch == math.inf:
        return epochs - 1 if schedule.every_n_epochs is not None else math.inf
    in_epoch = math.ceil(in_epoch)
    if schedule.every_n_epochs is None:
        return min(most, epochs * in_epoch) - 1
    return min(epochs, most if most == math.inf else math.ceil(most / in_epoch)) - 1
