"""Checks that the groups' rates are still the distribution's times one factor of the schedule (pure torch).

A schedule, or user code that sets rates, must multiply the rates of all layers by the same factor. If it does not, the
ratios of the distribution are lost. The usual causes: one floor or one peak for all groups, a list that a scheduler
made for the groups before they were split, or one rate written into all groups.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lr_dist.errors import FlatRatesWarning, RatesOffPlanWarning

# Relative tolerance between two equal factors; rounding errors of schedules are below 1e-10.
_TOLERANCE = 1e-3
# Absolute tolerance: the rounding errors of a schedule that ends at 0.
_NOTHING = 1e-9
# All groups are compared in the first 10 steps, and then in every 50th. The groups with the lowest and the highest
# rate, which a floor or a peak affects first, are compared in every step.
_FIRST, _EVERY = 10, 50
# Rates in tensors on an accelerator are read more rarely, because reading one waits for the device.
_FIRST_ON_DEVICE, _EVERY_ON_DEVICE = 3, 1000


class RateCheck:
    """Compares the rates of an optimizer whose groups were split by `regroup`, and warns once if they are off.

    Args:
        optimizer: its groups have `layer_lr`.
        tracks: a value for each group; groups with equal values have the same factor in every step
            (`Regrouped.tracks`). By default all groups have the same.
        giver: what set the rates, as named in the message.
    """

    def __init__(
        self, optimizer: Optimizer, tracks: Sequence[Hashable] | None = None, giver: str = "the distribution"
    ) -> None:
        # A weak reference, because the optimizer may hold this object.
        self._optimizer, self._giver = weakref.ref(optimizer), giver
        groups = optimizer.param_groups
        # `tracks` is shorter if groups were added later: those follow the schedule of the first track.
        tracks = [*(tracks or ()), *[tracks[0] if tracks else None] * (len(groups) - len(tracks or ()))]
        by_track: dict[Hashable, list[int]] = {}
        for index, group in enumerate(groups):
            if group["layer_lr"]:
                by_track.setdefault(tracks[index], []).append(index)
        self._tracks = [indices for indices in by_track.values() if len(indices) > 1]
        self._pairs = [_extremes(groups, indices) for indices in self._tracks]
        self._on_device = any(_is_on_device(groups[index]["lr"]) for track in self._tracks for index in track)
        self._checks = 0
        self._done = not self._tracks

    def warning(self, step: int) -> RatesOffPlanWarning | None:
        """The warning to issue before step `step`; None if the rates are right, or after the first warning."""
        optimizer = self._optimizer()
        if self._done or optimizer is None:
            return None
        self._checks += 1
        groups = optimizer.param_groups
        first, every = (_FIRST_ON_DEVICE, _EVERY_ON_DEVICE) if self._on_device else (_FIRST, _EVERY)
        full = self._checks <= first or self._checks % every == 0
        if not full and (self._on_device or not self._differs(groups)):
            return None
        # Weight averaging (torch's SWALR) moves the rates to a list that the user gave.
        if "swa_lr" in groups[0]:
            return None
        for indices in self._tracks:
            if (found := self._compared([groups[index] for index in indices], step)) is not None:
                self._done = True
                return found
        return None

    def _differs(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the groups with the lowest and the highest rate have different factors."""
        return any(
            not _equal(
                groups[low]["lr"] / groups[low]["layer_lr"],
                groups[high]["lr"] / groups[high]["layer_lr"],
            )
            for low, high in self._pairs
        )

    def _compared(
        self, groups: Sequence[Mapping[str, Any]], step: int
    ) -> FlatRatesWarning | RatesOffPlanWarning | None:
        factors = [float(group["lr"]) / group["layer_lr"] for group in groups]
        if all(_equal(factor, factors[0]) for factor in factors):
            return None
        rates = [float(group["lr"]) for group in groups]
        if len(set(rates)) == 1:
            return self._flat(groups, rates[0], step)
        factor = _most_frequent(factors, [group["layer_lr"] for group in groups])
        off = [group for group, other in zip(groups, factors, strict=True) if not _equal(other, factor)]
        return self._off_plan(groups, off, factor, step)

    def _flat(self, groups: Sequence[Mapping[str, Any]], rate: float, step: int) -> FlatRatesWarning:
        least, most = (choose(group["layer_lr"] for group in groups) for choose in (min, max))
        return FlatRatesWarning(
            f"Before step {step} all {len(groups)} parameter groups of {type(self._optimizer()).__name__} have the "
            f"learning rate {rate:.3g}, although {self._giver} set them to rates from {least:.3g} to {most:.3g}: "
            "something set `group['lr']` to one value, such as a warm-up written by hand or a scheduler with one floor "
            "for all groups. The rates of the layers are lost. Write "
            "`group['lr'] = scale * group['layer_lr']` instead, or use a scheduler such as LambdaLR.",
            group=str(groups[0]["name"]),
            wanted=float(groups[0]["layer_lr"]),
            found=rate,
            step=step,
        )

    def _off_plan(
        self, groups: Sequence[Mapping[str, Any]], off: Sequence[Mapping[str, Any]], factor: float, step: int
    ) -> RatesOffPlanWarning:
        worst = off[0]
        wanted, found = worst["layer_lr"] * factor, float(worst["lr"])
        like = next(group for group in groups if _equal(float(group["lr"]) / group["layer_lr"], factor))
        return RatesOffPlanWarning(
            f"Before step {step} the group {worst['name']} of {type(self._optimizer()).__name__} has the learning rate "
            f"{found:.4g}. It should have {wanted:.4g}: {self._giver}'s rate {worst['layer_lr']:.4g} times "
            f"{factor:.4g}, the schedule's factor in {like['name']}. {len(off)} of {len(groups)} groups differ like "
            "this, so the ratios between the layers are no longer those of the distribution. Usual causes: one floor "
            "or one highest rate for all groups (`max(lr, 1e-5)`; write `max(scale, 0.01) * group['layer_lr']`), a "
            "scheduler that keeps values of the groups as they were before the split by layer, or code that wrote "
            "rates into some of the groups.",
            group=str(worst["name"]),
            wanted=wanted,
            found=found,
            step=step,
        )


def _extremes(groups: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> tuple[int, int]:
    rates = [(groups[index]["layer_lr"], index) for index in indices]
    return min(rates)[1], max(rates)[1]


def _equal(a: float, b: float) -> bool:
    return abs(a - b) <= _TOLERANCE * abs(b) + _NOTHING


def _most_frequent(factors: Sequence[float], rates: Sequence[float]) -> float:
    """The most frequent factor; in a tie, the one of the group with the highest rate."""
    by_rate = [factor for _, factor in sorted(zip(rates, factors, strict=True), reverse=True)]
    return max(by_rate, key=lambda factor: sum(_equal(other, factor) for other in by_rate))


def _is_on_device(rate: Any) -> bool:
    return isinstance(rate, Tensor) and rate.device.type != "cpu"
