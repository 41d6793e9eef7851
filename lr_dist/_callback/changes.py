"""Detects changes to an optimizer after its groups were split: a new optimizer, new groups, other rates."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch.optim import Optimizer

from lr_dist._lightning import LearningRateFinder, LightningOptimizer, rank_zero_warn
from lr_dist.rate_check import RateCheck


class Watch:
    """An optimizer as it was after its groups were split; every step is compared with it.

    To be cheap, the comparison reads little: whether the Trainer still has the optimizer, the number of its groups, and
    the rates of two of them (`RateCheck`).

    Args:
        optimizer: its groups have been split by layer.
        finders: the run's LearningRateFinders, which may search again.
        tracks: which groups have the same factor (see `RateCheck`).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        finders: Sequence[LearningRateFinder] = (),
        tracks: Sequence[Hashable] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.tracks = tracks
        self._suggestions = [(finder, finder.optimal_lr) for finder in finders]
        self._groups = len(optimizer.param_groups)
        self._check = RateCheck(optimizer, tracks, "LayerwiseLR")

    def is_replaced(self, optimizers: Sequence[Any]) -> bool:
        """Whether the Trainer no longer has this optimizer."""
        return not any(unwrapped(optimizer) is self.optimizer for optimizer in optimizers)

    def has_new_suggestion(self) -> bool:
        """Whether a LearningRateFinder has searched again, and may have given all groups one rate."""
        return any(finder.optimal_lr is not suggestion for finder, suggestion in self._suggestions)

    def has_other_groups(self) -> bool:
        """Whether groups were added, removed or replaced."""
        groups = self.optimizer.param_groups
        return len(groups) != self._groups or "layer_lr" not in groups[0] or "layer_lr" not in groups[-1]

    def warn_of_other_rates(self, step: int) -> None:
        """Warn once if a group's rate is not the distribution's times the factor of the other groups."""
        if (warning := self._check.warning(step)) is not None:
            rank_zero_warn(warning)


def unwrapped(optimizer: Any) -> Any:
    """The torch optimizer; `configure_optimizers` may return Lightning's wrapper around one."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
