"""`PhaseClock`: which phase of its rates a fit is in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lr_dist._lightning import L
from lr_dist.rate_plan import Phases, part_at


class PhaseClock:
    """Gives each layer's factor for a step, from the phases of a stage; without phases every factor is 1.

    Where the phases, and the parts of gradual ones, begin is fixed at the first start of a fit: a fit that is resumed
    to last longer keeps it.
    """

    def __init__(self, phases: Phases | None) -> None:
        self.phases = phases
        self._starts: tuple[int, ...] = ()
        self._factors: tuple[dict[str, float], ...] = ()
        self._num_layers = 0

    def __bool__(self) -> bool:
        return self.phases is not None

    @property
    def freezes(self) -> bool:
        """Whether a layer that trains in one phase has the rate 0 in another."""
        return self.phases is not None and self.phases.waits

    def attach(self, num_layers: int) -> None:
        """Work for a model with this number of layers."""
        self._num_layers = num_layers
        self._factors = self.phases.factors(num_layers) if self.phases is not None else ()

    def reset(self) -> None:
        """Begin a new fit."""
        self._starts = ()

    def begin(self, total_steps: int | None) -> None:
        """Find out where the phases begin, unless a checkpoint has said so; call it after `attach`.

        Args:
            total_steps: steps of the optimizer in the whole fit, from its first start; None if that is not known.

        Raises:
            InvalidPlanError: shares of a fit whose number of steps is not known, or phases that are longer than it.
        """
        if self.phases is not None and not self._starts:
            self._starts = self.phases.part_starts(total_steps, self._num_layers)

    def factors(self, step: int) -> dict[str, float] | None:
        """Layer -> factor of its rate in a step; None without phases or before `begin`."""
        if self.phases is None or not self._starts:
            return None
        return self._factors[part_at(step, self._starts)]

    def trained_before(self, layer: str, step: int) -> bool:
        """Whether a layer had a rate above 0 in some step before this one."""
        if self.phases is None:
            return True
        starts = self._starts
        # A part of 0 steps, which begins where the next one does, has trained nothing.
        passed = [start < step and start < end for start, end in zip(starts, (*starts[1:], step), strict=True)]
        return any(f.get(layer, 1.0) > 0 for f, done in zip(self._factors, passed, strict=False) if done)

    def describe(self, layer: str) -> str:
        """The factors of a layer over the phases, such as `waits, then x 1`; nothing without phases."""
        factors = [factors.get(layer, 1.0) for factors in self._factors]
        changes = [factor for i, factor in enumerate(factors) if i == 0 or factor != factors[i - 1]]
        return ", then ".join(f"x {factor:.3g}" if factor else "waits" for factor in changes)

    def state(self) -> list[int]:
        """Plain data for a checkpoint."""
        return list(self._starts)

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self._starts = tuple(state.get("phase_starts", ()))


def total_steps(trainer: L.Trainer, pl_module: L.LightningModule) -> int | None:
    """Steps of the optimizer in the whole fit, from its first start; None if Lightning does not know."""
    if not pl_module.automatic_optimization:
        return None if trainer.max_steps == -1 else trainer.max_steps
    steps = trainer.estimated_stepping_batches
    return None if math.isinf(steps) else int(steps)
