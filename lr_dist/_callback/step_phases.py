"""`StepPhases`: the phases of a stage in a training loop that counts the optimizer's steps itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lr_dist._callback.layer_switch import LayerSwitch
from lr_dist._callback.phase_clock import PhaseClock
from lr_dist.names import layer_of
from lr_dist.rate_plan import Phases
from lr_dist.step_factors import StepFactors

_NAME = "LayerwiseLR"


class StepPhases:
    """Sets the factors of each step, and keeps the gradients of waiting layers from the optimizer.

    What `Gradual` does in Lightning, for transformers' Trainer: call `attach` and `begin` once, `before` ahead of each
    batch's forward pass, `drop_gradients` after its backward pass, and `end` after the last step.
    """

    def __init__(self, phases: Phases | None) -> None:
        self.clock = PhaseClock(phases)
        self._layers = LayerSwitch()
        self._optimizer: Optimizer | None = None
        self._training: set[str] = set()
        self._may_switch = False

    def __bool__(self) -> bool:
        return bool(self.clock)

    def attach(self, optimizer: Optimizer, num_layers: int, *, may_switch: bool) -> None:
        """Use `optimizer`, whose groups have been split by layer.

        Args:
            optimizer: the optimizer of torch, without wrappers.
            num_layers: of the model.
            may_switch: whether `requires_grad` may change between two steps, so that no gradient is computed below the
                lowest layer that trains. DDP and compiled models do not allow it.
        """
        self.clock.attach(num_layers)
        self._layers.attach(optimizer)
        self._optimizer, self._may_switch = optimizer, may_switch

    def begin(self, total_steps: int | None, starts: Sequence[int] = ()) -> None:
        """Find out where the phases begin.

        Args:
            total_steps: steps of the optimizer in the whole run; None if that is not known.
            starts: what a checkpoint says; a run that is resumed to last longer keeps it.

        Raises:
            InvalidPlanError: shares of a run whose number of steps is not known, or phases that are longer than it.
        """
        self.clock.reset()
        self.clock.load({"phase_starts": starts})
        self.clock.begin(total_steps)

    def before(self, step: int) -> None:
        """Set the factors of a step of the optimizer, counted from 0."""
        factors = self.clock.factors(step)
        if factors is None or self._optimizer is None:
            return
        StepFactors.of(self._optimizer).set(_NAME, factors)
        self._training = {layer for layer, factor in factors.items() if factor}
        # Within an accumulation window the step, and so the phase, is the same.
        if self._may_switch:
            self._layers.switch(self._training)

    def drop_gradients(self) -> None:
        """Drop the gradients of the layers that wait: before they are clipped, and before they are used."""
        if self._optimizer is not None:
            self._layers.drop_gradients(self._training)

    def rate(self, group: Mapping[str, Any]) -> float:
        """The rate of a group in the step."""
        factor = StepFactors.of(self._optimizer).product(group) if self._optimizer is not None else 1.0
        return float(group["lr"]) * factor

    def describe(self) -> dict[str, str]:
        """Group of the optimizer -> its factors over the phases; an empty text if it never trains."""
        if not self.clock or self._optimizer is None:
            return {}
        names = [group["name"] for group in self._optimizer.param_groups]
        trained = self._layers.parameters
        return {name: self.clock.describe(layer_of(name)) if layer_of(name) in trained else "" for name in names}

    def end(self) -> None:
        """Restore the optimizer's rates and the parameters' `requires_grad`."""
        if self._optimizer is not None:
            StepFactors.of(self._optimizer).remove(_NAME)
        self._layers.release()
        self._optimizer, self._training = None, set()
