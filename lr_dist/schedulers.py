"""Let a learning-rate scheduler keep working after its optimizer's parameter groups were split by layer.

A scheduler of torch caches values for each group (`base_lrs`, `_last_lr`, `lr_lambdas`, ...). When a group is split,
those values have to be split with it and scaled to the new groups' rates. Afterwards every group k follows

    rate_k(t) = rate_k * factor(t),

factor(t) being what the same schedule gives an optimizer with one flat rate. All formulas of torch's schedulers are
homogeneous: scale the rates and the absolute floors by one number, and the schedule is scaled by it. So floors
(`eta_min`, `min_lr`, a plateau's `eps`) are scaled too: left as they are, low layers would end at the rate of high
ones.
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

# What schedulers keep as a list with one entry for each group.
_SCALED_LISTS = ("base_lrs", "_last_lr", "min_lrs", "max_lrs", "_init_lrs", "eta_mins", "group_eps")
_COPIED_LISTS = ("lr_lambdas", "base_momentums", "max_momentums")
# What stands where the schedule is now, or has no part in the rates.
_NOT_OF_THE_SCHEDULE = ("_last_lr", "_schedulers", "_milestones", "base_momentums", "max_momentums")
# Rates in a group that are seen to by others.
_NOT_SCALED = ("user_lr", "layer_lr", "swa_lr")


@dataclass(frozen=True)
class Split:
    """How the new parameter groups of an optimizer come from the old ones.

    Attributes:
        parents: for each new group, the index of the old group it was split from.
        anchors: for each new group, its parent's anchor (see `anchor_rates`).
        rates: for each new group, its own rate where the parent has the anchor.
        user_rates: for each new group, the rate that the user gave its parent. Differs from the anchor only where the
            optimizer had been split by layer before, so that its groups' anchors are rates of layers already.
        old_anchors: the anchor of each old group, those without parameters included.

    Raises:
        ZeroRateError: an anchor is 0 where the new rate is not: no factor turns 0 into a rate.
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
        """Each new group's value where the old groups have `values`."""
        return [values[parent] for parent in self.parents]

    def scale(self, index: int, value: Any) -> Any:
        """The value of new group `index` where its parent has `value`: times its ratio rate / anchor."""
        return _scale(value, self.anchors[index], self.rates[index])

    def scaled(self, values: Sequence[Any]) -> list[Any]:
        """`copied`, each value scaled."""
        return [self.scale(index, value) for index, value in enumerate(self.copied(values))]

    def floors(self, values: Sequence[Any]) -> list[Any]:
        """`copied`, each value times rate / user's rate: for what a new scheduler took from the user's arguments."""
        pairs = zip(self.copied(values), self.user_rates, self.rates, strict=True)
        return [_scale(value, user, rate) for value, user, rate in pairs]


def _scale(value: Any, anchor: float, rate: float) -> Any:
    """`value` (a float or a tensor with one element) times rate / anchor."""
    # Divided first: the factor value / anchor is near 1, where rate / anchor could leave the range of floats.
    if isinstance(value, torch.Tensor):
        return value.clone() if rate == anchor else value / anchor * rate
    # The first two cases are exact where a product would be off by a rounding.
    if rate in (anchor, 0):
        return value if rate else 0.0
    return rate if value == anchor else value / anchor * rate


def check_schedulers(schedulers: Iterable[Any], allowed: Sequence[type] = ()) -> None:
    """Raise unless every scheduler, nested ones included, is of a tested type or of one in `allowed`.

    Types are compared exactly: a subclass may compute its rates in another way.

    Raises:
        UnsupportedSchedulerError: names the type and how to allow it.
    """
    for scheduler in _flatten(schedulers):
        kind = _kind(scheduler)
        if kind not in SUPPORTED_SCHEDULERS and kind not in allowed:
            raise UnsupportedSchedulerError(
                f"The scheduler {kind.__module__}.{kind.__qualname__} is not on the tested list "
                f"({', '.join(s.__name__ for s in SUPPORTED_SCHEDULERS if s not in _WITH_FLOORS)}), so it may not keep "
                "the ratios between the layers' rates. If it computes every group's rate from values that it keeps for "
                "each group (`base_lrs`, or lists of another name), or from the group's own `lr`, allow it: "
                f"allow_schedulers=({kind.__name__},). Such values are then split by layer, and a "
                "RatesOffPlanWarning says if a rate leaves the distribution, as under one floor for all groups."
            )


def types_of(schedulers: Iterable[Any]) -> tuple[type, ...]:
    """The types of schedulers and of those nested in them."""
    return tuple(_kind(scheduler) for scheduler in _flatten(schedulers))


def anchor_rates(optimizer: Optimizer, schedulers: Iterable[Any]) -> list[float]:
    """For each parameter group, the rate that the user's optimizer and schedule mean by "the learning rate".

    That is the rate where the schedule's factor is 1: the group's `initial_lr` where a scheduler has stored it (under
    a warm-up `lr` is already 0), else its `lr`; for OneCycleLR and CyclicLR `max_lr`, the peak of the cycle. A
    distribution's rates take the place of this anchor.
    """
    schedulers = list(_flatten(schedulers))
    # ReduceLROnPlateau stores no `initial_lr`: its factor is what it made of the rate that `regroup` gave the group.
    # Neither need a scheduler that is not known.
    unknown = [scheduler for scheduler in schedulers if _kind(scheduler) not in SUPPORTED_SCHEDULERS]
    plateau = any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in schedulers)
    first = "layer_lr" if plateau or unknown else "lr"
    groups = optimizer.param_groups
    anchors = [group.get("initial_lr", group.get(first, group["lr"])) for group in groups]
    if unknown and not any("initial_lr" in group or "layer_lr" in group for group in groups):
        # It may have set the rate of its first step, of a warm-up, when it was made.
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
    """The keys of a parameter group that hold rates and have to be scaled with it.

    Args:
        schedulers: of the optimizer. One that is not known may keep rates in the `groups` by any name that ends in
            `_lr`, as OneCycleLR does.
        groups: of the optimizer.
    """
    schedulers = list(_flatten(schedulers))
    keys = ["lr", "initial_lr"]
    if any(isinstance(scheduler, lr_scheduler.OneCycleLR) for scheduler in schedulers):
        keys += ["max_lr", "min_lr"]
    if any(_kind(scheduler) not in SUPPORTED_SCHEDULERS for scheduler in schedulers):
        named = {key for group in groups for key, value in group.items() if key.endswith("_lr") and _is_number(value)}
        keys += sorted(named.difference(keys, _NOT_SCALED))
    return tuple(keys)


def _is_number(value: Any) -> bool:
    return isinstance(value, (float, torch.Tensor)) and not isinstance(value, bool)


def schedule_tracks(schedulers: Iterable[Any], anchors: Sequence[float]) -> list[Hashable]:
    """For each parameter group, a value that is the same for groups to which the schedulers give the same factors.

    Groups differ where a scheduler keeps for them another function (`lr_lambdas`), or another floor or peak in
    proportion to their rates.

    Args:
        schedulers: of an optimizer whose groups are not split yet, or are again.
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
    """A number in proportion to a rate, without its last digits; of what is no number, which object it is."""
    if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        return f"{float(value) / anchor:.6g}" if anchor else "0"
    return id(value)


def rewrite_schedulers(schedulers: Iterable[Any], split: Split) -> None:
    """Rewrite, in place, all that the schedulers cache for each group; call it once, after the groups were split.

    Args:
        schedulers: the optimizer's schedulers, checked by `check_schedulers`; nested ones are found.
        split: where the new groups come from.
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
    """Each group's share of the floors that torch keeps as one number for all groups.

    The scheduler object has to stay (Lightning and the user hold it), so its class changes to a subclass that reads
    the floors from a list. The list is plain data in the scheduler's state dict.
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
    """Every scheduler once, those inside another (SequentialLR, ChainedScheduler) after the one that holds them."""
    seen: set[int] = set()
    queue = list(schedulers)
    while queue:
        scheduler = queue.pop(0)
        if id(scheduler) not in seen:
            seen.add(id(scheduler))
            yield scheduler
            queue.extend(nested_schedulers(scheduler))


def _kind(scheduler: Any) -> type:
    """The type by which a scheduler computes its rates.

    LightningCLI has a ReduceLROnPlateau of its own, which adds the name of a metric to torch's and nothing else.
    """
    kind = type(scheduler)
    of_cli = kind.__module__.endswith(".cli") and kind.__module__.split(".")[0] in ("lightning", "pytorch_lightning")
    return ReduceLROnPlateau if of_cli and kind.__name__ == "ReduceLROnPlateau" else kind


def _one_group(scheduler: Any, index: int, **own: Any) -> Any:
    """`scheduler` as torch's formulas read it, with the one group `index` and `own` values in place of shared ones."""
    optimizer = SimpleNamespace(param_groups=[scheduler.optimizer.param_groups[index]])
    state = {**scheduler.__dict__, "optimizer": optimizer, **own}
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

    torch leaves a rate alone where the change would be below `eps` (1e-8): of two layers with rates 1e-5 and 1e-8
    only the first would be reduced, and the ratio be lost.
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
