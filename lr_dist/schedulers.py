"""Adapts learning-rate schedulers to an optimizer whose parameter groups were split by layer.

A scheduler of torch stores values for each group (`base_lrs`, `_last_lr`, `lr_lambdas`, ...). When a group is split,
those values must be split too, and scaled to the new groups' rates. Afterwards every group k follows

    rate_k(t) = rate_k * factor(t),

factor(t) being that of the same schedule with one flat rate. All formulas of torch's schedulers are
homogeneous: if the rates and the absolute floors are scaled by a number, so is the whole schedule. Therefore the
floors (`eta_min`, `min_lr`, a plateau's `eps`) are scaled too; unscaled, they would give low layers the same final rate
as high ones.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, ReduceLROnPlateau

from lr_dist.errors import UnsupportedSchedulerError, ZeroRateError
from lr_dist.group_values import base_values, nested_schedulers, split_group_values

# Attributes of schedulers that are lists with one entry for each group.
_SCALED_LISTS = ("base_lrs", "_last_lr", "min_lrs", "max_lrs", "_init_lrs", "eta_mins", "group_eps")
_COPIED_LISTS = ("lr_lambdas", "base_momentums", "max_momentums")
# Attributes that hold the schedule's current state, or do not affect the rates.
_NOT_OF_THE_SCHEDULE = ("_last_lr", "_schedulers", "_milestones", "base_momentums", "max_momentums")
# Rates in a group that are set elsewhere.
_NOT_SCALED = ("user_lr", "layer_lr", "swa_lr")


@dataclass(frozen=True)
class Split:
    """How the new parameter groups of an optimizer are made from the old ones.

    Attributes:
        parents: for each new group, the index of the old group it was split from.
        anchors: for each new group, its parent's anchor (see `anchor_rates`).
        rates: for each new group, its rate at the point where its parent has the anchor.
        user_rates: for each new group, the rate that the user gave its parent. It differs from the anchor only if the
            optimizer was already split by layer, so that its groups' anchors are rates of layers.
        old_anchors: the anchor of each old group, those without parameters included.

    Raises:
        ZeroRateError: an anchor is 0 and the new rate is not; no factor scales 0 to a rate.
    """

    parents: tuple[int, ...]
    anchors: tuple[float, ...]
    rates: tuple[float, ...]
    user_rates: tuple[float, ...]
    old_anchors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for parent, anchor, rate in zip(self.parents, self.anchors, self.rates, strict=True):
            if anchor == 0 and rate != 0:
                raise ZeroRateError(
                    f"Parameter group {parent} of the optimizer has the learning rate 0, and no schedule scales 0 to "
                    f"{rate:g}. Give the optimizer a rate above 0; a layer is frozen by a 0 in the distribution."
                )

    def copied(self, values: Sequence[Any]) -> list[Any]:
        """The values of the new groups: those of their parents."""
        return [values[parent] for parent in self.parents]

    def scale(self, index: int, value: Any) -> Any:
        """The value of the new group `index`: its parent's `value` times rate / anchor."""
        return _scale(value, self.anchors[index], self.rates[index])

    def scaled(self, values: Sequence[Any]) -> list[Any]:
        """`copied`, each value scaled."""
        return [self.scale(index, value) for index, value in enumerate(self.copied(values))]

    def floors(self, values: Sequence[Any]) -> list[Any]:
        """`copied`, each value times rate / user's rate: for values that are the user's arguments of a scheduler."""
        pairs = zip(self.copied(values), self.user_rates, self.rates, strict=True)
        return [_scale(value, user, rate) for value, user, rate in pairs]


def _scale(value: Any, anchor: float, rate: float) -> Any:
    """`value` (a float or a tensor with one element) times rate / anchor."""
    # The division comes first: value / anchor is near 1, while rate / anchor could leave the range of floats.
    if isinstance(value, torch.Tensor):
        return value.clone() if rate == anchor else value / anchor * rate
    # These cases are exact; a product could have a rounding error.
    if rate in (anchor, 0):
        return value if rate else 0.0
    return rate if value == anchor else value / anchor * rate


def check_schedulers(schedulers: Iterable[Any], allowed: Sequence[type] = ()) -> None:
    """Check that every scheduler, nested ones included, has a tested type or one in `allowed`.

    Types are compared exactly: a subclass may compute its rates in another way.

    Raises:
        UnsupportedSchedulerError: another type; the message names it, and how to allow it.
    """
    for scheduler in _flatten(schedulers):
        kind = _kind(scheduler)
        if kind not in SUPPORTED_SCHEDULERS and kind not in allowed:
            raise UnsupportedSchedulerError(
                f"The scheduler {kind.__module__}.{kind.__qualname__} is not on the tested list "
                f"({', '.join(s.__name__ for s in SUPPORTED_SCHEDULERS if s not in _WITH_FLOORS)}), so it may not keep "
                "the ratios between the layers' rates. If it computes every group's rate from values that it stores "
                "for each group (`base_lrs`, or lists of another name), or from the group's own `lr`, allow it: "
                f"allow_schedulers=({kind.__name__},). Such values are then split by layer, and a "
                "RatesOffPlanWarning is issued if a rate leaves the distribution, as with one floor for all groups."
            )


def types_of(schedulers: Iterable[Any]) -> tuple[type, ...]:
    """The types of schedulers and of those nested in them."""
    return tuple(_kind(scheduler) for scheduler in _flatten(schedulers))


def anchor_rates(optimizer: Optimizer, schedulers: Iterable[Any]) -> list[float]:
    """For each parameter group, its anchor: the rate at the point where the schedule's factor is 1.

    That is the group's `initial_lr` if a scheduler has stored it (during a warm-up `lr` is lower), else its `lr`; for
    OneCycleLR and CyclicLR it is `max_lr`, the peak of the cycle. A distribution's rates replace the anchors.
    """
    schedulers = list(_flatten(schedulers))
    # ReduceLROnPlateau stores no `initial_lr`, and an unknown scheduler need not: if the group was already split, its
    # anchor is the rate that `regroup` set.
    unknown = [scheduler for scheduler in schedulers if _kind(scheduler) not in SUPPORTED_SCHEDULERS]
    plateau = any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in schedulers)
    first = "layer_lr" if plateau or unknown else "lr"
    groups = optimizer.param_groups
    anchors = [group.get("initial_lr", group.get(first, group["lr"])) for group in groups]
    if unknown and not any("initial_lr" in group or "layer_lr" in group for group in groups):
        # When it was made, it may have set the rate of its first step, of a warm-up.
        default = getattr(optimizer, "defaults", {}).get("lr")
        kept = (base_values(scheduler, [group["lr"] for group in groups], default) for scheduler in unknown)
        anchors = next((values for values in kept if values), anchors)
    for scheduler in schedulers:
        if isinstance(scheduler, lr_scheduler.OneCycleLR):
            anchors = [group["max_lr"] for group in optimizer.param_groups]
        elif isinstance(scheduler, lr_scheduler.CyclicLR):
            anchors = scheduler.max_lrs
    return [float(anchor) for anchor in anchors]


def scaled_group_keys(schedulers: Iterable[Any], groups: Iterable[Mapping[str, Any]] = ()) -> tuple[str, ...]:
    """The keys of a parameter group whose values are rates and must be scaled.

    Args:
        schedulers: the optimizer's schedulers. An unknown one may store rates in the groups, as OneCycleLR does; keys
            that end in `_lr` are taken for rates.
        groups: the optimizer's groups.
    """
    schedulers = list(_flatten(schedulers))
    keys = ["lr", "initial_lr"]
    if any(isinstance(scheduler, lr_scheduler.OneCycleLR) for scheduler in schedulers):
        keys += ["max_lr", "min_lr"]
    if any(_kind(scheduler) not in SUPPORTED_SCHEDULERS for scheduler in schedulers):
        named = {key for group in groups for key, value in group.items() if key.endswith("_lr") and _may_be_rate(value)}
        keys += sorted(named.difference(keys, _NOT_SCALED))
    return tuple(keys)


def _may_be_rate(value: Any) -> bool:
    return isinstance(value, (float, torch.Tensor))


def schedule_tracks(schedulers: Iterable[Any], anchors: Sequence[float]) -> list[Hashable]:
    """A value for each parameter group; groups with equal values always have the same factor.

    Groups differ if a scheduler stores for them different functions (`lr_lambdas`), or a floor or peak in different
    proportion to their rates.

    Args:
        schedulers: all schedulers of one optimizer.
        anchors: the groups' `anchor_rates`.
    """
    tracks: list[list[Hashable]] = [[] for _ in anchors]
    for scheduler in _flatten(schedulers):
        for name, values in vars(scheduler).items():
            if name in _NOT_OF_THE_SCHEDULE:
                continue
            if name in ("eta_min", "eps") and not isinstance(values, (list, tuple)):
                values = [values] * len(anchors)
            if not isinstance(values, (list, tuple)) or len(values) != len(anchors):
                continue
            for track, value, anchor in zip(tracks, values, anchors, strict=True):
                track.append(_share(value, anchor))
    return [tuple(track) for track in tracks]


def _share(value: Any, anchor: float) -> Hashable:
    """A number as a share of a rate, rounded; for other values, the identity of the object."""
    if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        return f"{float(value) / anchor:.6g}" if anchor else "0"
    return id(value)


def rewrite_schedulers(schedulers: Iterable[Any], split: Split) -> None:
    """Rewrite, in place, the values that the schedulers store for each group; call it once after a split.

    Args:
        schedulers: the optimizer's schedulers, checked by `check_schedulers`; nested ones are found.
        split: how the new groups are made from the old ones.
    """
    for scheduler in _flatten(schedulers):
        state = scheduler.__dict__
        floors = _split_floors(scheduler, split)
        for key in _SCALED_LISTS:
            if isinstance(state.get(key), (list, tuple)):
                state[key] = split.scaled(state[key])
        for key in _COPIED_LISTS:
            if isinstance(state.get(key), (list, tuple)):
                state[key] = split.copied(state[key])
        if _kind(scheduler) not in SUPPORTED_SCHEDULERS and split.old_anchors:
            known = (*_SCALED_LISTS, *_COPIED_LISTS)
            split_group_values(
                scheduler, parents=split.parents, anchors=split.old_anchors, scale=split.scale, known=known
            )
        state.update(floors)


def _split_floors(scheduler: Any, split: Split) -> dict[str, list[float]]:
    """A floor for each group, for the floors that torch stores as one number for all groups.

    The object cannot be replaced, because the training loop and user code hold it; so its class is changed to a
    subclass that reads the floors from a list. The list is plain data in the scheduler's state dict.
    """
    kind, parents = _kind(scheduler), 1 + max(split.parents)
    if kind in (CosineAnnealingLR, CosineAnnealingWarmRestarts) and scheduler.eta_min != 0:
        swap = LayerwiseCosineAnnealingLR if kind is CosineAnnealingLR else LayerwiseCosineAnnealingWarmRestarts
        scheduler.__class__ = swap
        return {"eta_mins": split.floors([scheduler.eta_min] * parents)}
    if kind is ReduceLROnPlateau:
        scheduler.__class__ = LayerwiseReduceLROnPlateau
        return {"min_lrs": split.floors(scheduler.min_lrs), "group_eps": split.floors([scheduler.eps] * parents)}
    return {}


def _flatten(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Every scheduler once; nested ones (in SequentialLR, ChainedScheduler) come after the one that contains them."""
    seen: set[int] = set()
    queue = list(schedulers)
    while queue:
        scheduler = queue.pop(0)
        if id(scheduler) not in seen:
            seen.add(id(scheduler))
            yield scheduler
            queue.extend(nested_schedulers(scheduler))


def _kind(scheduler: Any) -> type:
    """A scheduler's type; for LightningCLI's ReduceLROnPlateau, which only adds a metric's name, torch's class."""
    kind = type(scheduler)
    of_cli = kind.__module__.endswith(".cli") and kind.__module__.split(".")[0] in ("lightning", "pytorch_lightning")
    return ReduceLROnPlateau if of_cli and kind.__name__ == "ReduceLROnPlateau" else kind


def _one_group(scheduler: Any, index: int, **replaced: Any) -> Any:
    """A view of `scheduler` for torch's formulas, with only the group `index` and with some values `replaced`."""
    optimizer = SimpleNamespace(param_groups=[scheduler.optimizer.param_groups[index]])
    state = {**scheduler.__dict__, "optimizer": optimizer, **replaced}
    if "base_lrs" in state:
        state["base_lrs"] = [scheduler.base_lrs[index]]
    return cast(Any, SimpleNamespace(**state))


class LayerwiseCosineAnnealingLR(CosineAnnealingLR):
    """torch's CosineAnnealingLR with a floor for each group, `eta_mins`."""

    eta_mins: list[float]

    def get_lr(self) -> list[Any]:
        """torch's formula, evaluated group by group."""
        views = (_one_group(self, i, eta_min=floor) for i, floor in enumerate(self.eta_mins))
        return [CosineAnnealingLR.get_lr(view)[0] for view in views]

    def _get_closed_form_lr(self) -> list[Any]:
        views = (_one_group(self, i, eta_min=floor) for i, floor in enumerate(self.eta_mins))
        return [CosineAnnealingLR._get_closed_form_lr(view)[0] for view in views]


class LayerwiseCosineAnnealingWarmRestarts(CosineAnnealingWarmRestarts):
    """torch's CosineAnnealingWarmRestarts with a floor for each group, `eta_mins`."""

    eta_mins: list[float]

    def get_lr(self) -> list[Any]:
        """torch's formula, evaluated group by group."""
        views = (_one_group(self, i, eta_min=floor) for i, floor in enumerate(self.eta_mins))
        return [CosineAnnealingWarmRestarts.get_lr(view)[0] for view in views]


class LayerwiseReduceLROnPlateau(ReduceLROnPlateau):
    """torch's ReduceLROnPlateau with a smallest change for each group, `group_eps`.

    torch does not change a rate by less than `eps` (1e-8): of two layers with rates 1e-5 and 1e-8 only the first would
    be reduced, and their ratio would change.
    """

    group_eps: list[float]

    def _reduce_lr(self, epoch: int) -> None:
        for i, eps in enumerate(self.group_eps):
            view = _one_group(self, i, eps=eps, min_lrs=[self.min_lrs[i]])
            ReduceLROnPlateau._reduce_lr(view, epoch)


_WITH_FLOORS: tuple[type, ...] = (
    LayerwiseCosineAnnealingLR,
    LayerwiseCosineAnnealingWarmRestarts,
    LayerwiseReduceLROnPlateau,
)

SUPPORTED_SCHEDULERS: tuple[type, ...] = (
    lr_scheduler.LambdaLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.StepLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.ConstantLR,
    lr_scheduler.LinearLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.PolynomialLR,
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.CosineAnnealingWarmRestarts,
    lr_scheduler.CyclicLR,
    lr_scheduler.OneCycleLR,
    lr_scheduler.ReduceLROnPlateau,
    lr_scheduler.SequentialLR,
    lr_scheduler.ChainedScheduler,
    *_WITH_FLOORS,
)
