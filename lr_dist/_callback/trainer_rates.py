"""`LayerwiseRates`: what `LayerwiseTrainerMixin` does in the hooks of transformers' callbacks."""

from __future__ import annotations

import warnings
from typing import Any

from lr_dist.extras import require_libraries

require_libraries("huggingface", "transformers", "accelerate")

from accelerate.optimizer import AcceleratedOptimizer
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from lr_dist.coverage import Coverage
from lr_dist.errors import UnsupportedTrainerError
from lr_dist.names import layer_of

# Reading all parameters takes a fraction of a millisecond.
_EVERY_STEPS = 100
# The attributes of the optimizer that hold its `RateCheck` and its `StepPhases`. Not attributes of the callback: the
# Trainer may replace its callbacks by those of a checkpoint. State dicts and pickles of an optimizer leave its
# attributes out.
CHECK, PHASES = "_lr_dist_rate_check", "_lr_dist_phases"


class LayerwiseRates(TrainerCallback, ExportableState):
    """Saves the state of `LayerwiseTrainerMixin` in checkpoints, and keeps the rates of the last step.

    The mixin adds it to the Trainer's callbacks.

    Attributes:
        written: the distribution, the overrides and the groups, as plain data; the Trainer keeps it in the
            `trainer_state.json` of each checkpoint.
        rates: layer -> rate in the last step of the optimizer; where the groups of one layer differ, each group's.
        coverage: compares the model with the optimizer; None if that is not done.
    """

    def __init__(self) -> None:
        self.written: dict[str, Any] = {}
        self.rates: dict[str, float] = {}
        self.coverage: Coverage | None = None

    def state(self) -> dict[str, Any]:
        """The state that the Trainer saves and restores."""
        return {"args": {}, "attributes": {"written": self.written}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse to train with an optimizer that was not split by layer."""
        optimizer = kwargs["optimizer"]
        if not self.written or [group.get("name") for group in optimizer.param_groups] != self.written["groups"]:
            raise UnsupportedTrainerError(
                f"The optimizer ({type(torch_optimizer(optimizer)).__name__}) does not have the groups of the layers. "
                "A Trainer that overrides create_optimizer or create_scheduler has to call super().create_optimizer() "
                "and super().create_scheduler(...), which also take an optimizer and a schedule that were set before."
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a model in which a part was replaced after the optimizer was made; after the first step, warn."""
        if self.coverage is not None and (state.global_step == 0 or state.global_step % _EVERY_STEPS == 0):
            self._warn(state, self.coverage.warning(started=state.global_step > 0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn once if a rate is not the distribution's times the schedule's factor."""
        if self.coverage is not None and state.global_step == 0:
            self._warn(state, self.coverage.warning(started=False))
        optimizer = torch_optimizer(kwargs["optimizer"])
        if (phases := getattr(optimizer, PHASES, None)) is not None:
            # Once more, for a Trainer whose `training_step` does not call the mixin's.
            phases.before(state.global_step)
            phases.drop_gradients()
        check = getattr(optimizer, CHECK, None)
        if check is not None:
            self._warn(state, check.warning(state.global_step))

    def _warn(self, state: Any, warning: Warning | None) -> None:
        if warning is not None and state.is_world_process_zero:
            warnings.warn(warning, stacklevel=2)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the step's rates: the Trainer logs only after the schedule has moved on."""
        by_layer: dict[str, dict[str, float]] = {}
        phases = getattr(torch_optimizer(kwargs["optimizer"]), PHASES, None)
        for group in kwargs["optimizer"].param_groups:
            rate = phases.rate(group) if phases else float(group["lr"])
            by_layer.setdefault(layer_of(group["name"]), {})[group["name"]] = rate
        self.rates = {}
        for layer, rates in by_layer.items():
            self.rates |= {layer: next(iter(rates.values()))} if len(set(rates.values())) == 1 else rates


def torch_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside accelerate's wrapper."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer
