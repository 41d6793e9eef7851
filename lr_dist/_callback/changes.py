"""What others do to the optimizer after its groups were split: replace it, add groups, or write one rate to all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lr_dist._lightning import LearningRateFinder, LightningOptimizer, rank_zero_warn
from lr_dist.errors import FlatRatesWarning


class Watch:
    """An optimizer as it was left after its groups were split, to be compared with before every step.

    The comparisons are made at every step, so they look at as little as they can: whether the optimizer is still
    there, the number of its groups, and the rates of two of them.

    Args:
        optimizer: its groups have been split by layer.
        finders: the LearningRateFinders of the run, which may search again.
    """

    def __init__(self, optimizer: Optimizer, finders: Sequence[LearningRateFinder] = ()) -> None:
        self.optimizer = optimizer
        self._found = [(finder, finder.optimal_lr) for finder in finders]
        self._groups = len(optimizer.param_groups)
        self._pair = _different(optimizer.param_groups)
        self._warned = False

    def is_replaced(self, optimizers: Sequence[Any]) -> bool:
        """Whether the optimizer is none of the Trainer's any more."""
        return not any(unwrapped(optimizer) is self.optimizer for optimizer in optimizers)

    def has_new_suggestion(self) -> bool:
        """Whether a LearningRateFinder has searched again, and may have given all groups one rate."""
        return any(finder.optimal_lr is not found for finder, found in self._found)

    def has_other_groups(self) -> bool:
        """Whether groups were added, removed or replaced."""
        groups = self.optimizer.param_groups
        return len(groups) != self._groups or any("layer_lr" not in groups[index] for index in self._pair)

    def is_flat(self) -> bool:
        """Whether all groups have one rate, although their layers' rates differ (a factor of 0 aside)."""
        groups = self.optimizer.param_groups
        rates = [groups[index]["lr"] for index in self._pair]
        # A rate in a tensor may be on another device, and reading it would wait for that device at every step.
        if not rates or isinstance(rates[0], Tensor) or isinstance(rates[1], Tensor) or not rates[0] == rates[1] != 0:
            return False
        return len({float(group["lr"]) for group in groups if group["layer_lr"]}) == 1

    def warn_of_flat_rates(self, step: int) -> None:
        """Say once that the distribution is lost, and how it is kept."""
        if self._warned:
            return
        self._warned = True
        groups = [group for group in self.optimizer.param_groups if group["layer_lr"]]
        rank_zero_warn(
            f"Before step {step} all {len(groups)} parameter groups of {type(self.optimizer).__name__} have the "
            f"learning rate {float(groups[0]['lr']):.3g}, although LayerwiseLR gave them rates from "
            f"{min(group['layer_lr'] for group in groups):.3g} to {max(group['layer_lr'] for group in groups):.3g}: "
            "something set `group['lr']` to one value, as a warm-up by hand in `optimizer_step` or `training_step` "
            "does, or a scheduler with a floor for all groups. The rates of the layers are lost. Write "
            "`group['lr'] = scale * group['layer_lr']` instead, or use a scheduler such as LambdaLR.",
            category=FlatRatesWarning,
        )


def unwrapped(optimizer: Any) -> Any:
    """The torch optimizer; `configure_optimizers` may return Lightning's wrapper around one."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def _different(groups: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    """Two groups whose rates differ in the distribution, none of them 0; or nothing, where there are no two."""
    rates = [(group["layer_lr"], index) for index, group in enumerate(groups) if group["layer_lr"]]
    if len({rate for rate, _ in rates}) < 2:
        return ()
    return min(rates)[1], max(rates)[1]
