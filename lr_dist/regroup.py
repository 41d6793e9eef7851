"""Split the parameter groups of an existing optimizer by layer, in place, schedulers included (pure torch)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from torch.optim import Optimizer

from lr_dist._distribution.rates import scaled
from lr_dist._regroup.checks import check_optimizer, check_rates
from lr_dist._regroup.holders import check_replaced, layer_optimizers, uncovered
from lr_dist._regroup.parts import names_of, split_groups
from lr_dist._regroup.placement import Placement
from lr_dist._regroup.ratios import OwnRatios, user_rate
from lr_dist._regroup.unread import describe_unread, unread_scales
from lr_dist.distribution import LRDistribution
from lr_dist.errors import InvalidRateError, ZeroRateError
from lr_dist.schedulers import (
    Split,
    anchor_rates,
    check_schedulers,
    rewrite_schedulers,
    scaled_group_keys,
    schedule_tracks,
)

__all__ = [
    "OwnRatios",
    "Placement",
    "Regrouped",
    "check_replaced",
    "describe_unread",
    "layer_optimizers",
    "regroup",
    "regroup_added",
    "regroup_all",
    "uncovered",
    "unread_scales",
]

# Keys that schedules add to a group, apart from rates. All other added keys belong to the optimizer, which may count
# steps there.
_OF_SCHEDULES = ("max_momentum", "base_momentum")


@dataclass(frozen=True)
class Regrouped:
    """Facts about the split groups.

    Attributes:
        tracks: a value for each new group; groups with equal values have the same factor in every step.
        ratios: groups of one layer with different rates; empty for a relative distribution.
    """

    tracks: tuple[Hashable, ...]
    ratios: OwnRatios


def regroup(
    optimizer: Optimizer,
    schedulers: Iterable[Any],
    placement: Placement,
    distribution: LRDistribution,
    *,
    allow_schedulers: Sequence[type] = (),
    ratios: OwnRatios | None = None,
) -> Regrouped:
    """Split every group of `optimizer` by layer and set the rates; its state and its other options stay.

    Both `optimizer.param_groups` and the schedulers change in place, and nothing changes if an error is raised. The
    new groups are in the order of depth. Each keeps its parent's options and gets

    - `name`: the layer; `NAME/no_decay` for a group with weight decay 0, if another group has more; further groups of
      the same layer get a number (`layers.0/2`);
    - `layer_lr`: the group's rate where the schedule's factor is 1; and `user_lr`: its parent's rate, from which a
      second call starts again.

    Args:
        optimizer: holds the layers' parameters.
        schedulers: all schedulers of this optimizer.
        placement: the depth of each parameter.
        distribution: absolute rates replace the groups' anchors (`anchor_rates`: the rate where the schedule's factor
            is 1); if these differ within a layer, they replace that of its reference group (`OwnRatios`). Relative
            rates multiply the anchors.
        allow_schedulers: further scheduler types (see `check_schedulers`).
        ratios: those of all optimizers that share the layers; by default those of this optimizer.

    Returns:
        The groups' tracks (for `RateCheck`) and ratios.

    Raises:
        UnsupportedOptimizerError: an optimizer that supports only one group, shards its groups, or has no rate.
        UnsupportedSchedulerError: a scheduler of a type that is not on the tested list.
        OptimizerCoverageError: the optimizer holds parameters that are not in `placement`.
        ZeroRateError: the optimizer's own rate is 0.
        InvalidRateError: a rate of the optimizer, or its product with the distribution's, is not a finite number >= 0.
    """
    schedulers = list(schedulers)
    check_optimizer(optimizer, placement)
    check_schedulers(schedulers, allow_schedulers)
    keys = scaled_group_keys(schedulers, optimizer.param_groups)
    for index, group in enumerate(optimizer.param_groups):
        check_rates(group, keys, f"Parameter group {index} of the optimizer")
    parents, groups = split_groups(optimizer.param_groups, placement)
    anchors = anchor_rates(optimizer, schedulers)
    for index, anchor in enumerate(anchors):
        if not math.isfinite(anchor) or anchor < 0:
            raise InvalidRateError(
                f"Parameter group {index} of the optimizer has the rate {anchor} (`lr` as given to the optimizer, or "
                "`max_lr` of its cycle). A rate is a finite number of 0 or more."
            )
    users = [user_rate(group, anchor) for group, anchor in zip(optimizer.param_groups, anchors, strict=True)]
    rates = placement.layer_map.rates(distribution.rates)
    if distribution.relative and 0 in users:
        raise ZeroRateError(
            f"The distribution {distribution} is relative, and the optimizer's own rate, which it multiplies, is 0 in "
            f"parameter group {users.index(0)}. Give the optimizer a rate above 0."
        )
    tracks = schedule_tracks(schedulers, anchors)
    if distribution.relative:
        ratios = OwnRatios({}, {})
    elif ratios is None:
        ratios = OwnRatios.of([(optimizer, schedulers)], placement)
    split = Split(
        parents=tuple(parents),
        anchors=tuple(anchors[parent] for parent in parents),
        rates=tuple(
            scaled(
                group["layer"],
                rates[group["layer"]],
                users[parent] if distribution.relative else ratios.ratio(group["layer"], users[parent]),
            )
            for parent, group in zip(parents, groups, strict=True)
        ),
        user_rates=tuple(users[parent] for parent in parents),
        old_anchors=tuple(anchors),
    )
    names = names_of(groups)
    for index, group in enumerate(groups):
        for key in keys:
            if key in group:
                group[key] = split.scale(index, group[key])
        check_rates(group, keys, f"{group['layer']} under the distribution {distribution}")
        del group["layer"]
        group.update(name=names[index], layer_lr=split.rates[index], user_lr=split.user_rates[index])
    # The optimizer and its list of groups stay the same objects, because schedulers and user code may hold either.
    optimizer.param_groups[:] = groups
    rewrite_schedulers(schedulers, split)
    return Regrouped(tuple(tracks[parent] for parent in parents), ratios)


def regroup_all(
    optimizers: Sequence[tuple[Optimizer, Sequence[Any]]],
    placement: Placement,
    distribution: LRDistribution,
    *,
    allow_schedulers: Sequence[type] = (),
) -> list[Regrouped]:
    """`regroup` for each of the optimizers that share the layers, given with its schedulers.

    An absolute distribution replaces the rate of the same reference group in all of them (`OwnRatios`).
    """
    for optimizer, schedulers in optimizers:
        check_optimizer(optimizer, placement)
        check_schedulers(schedulers, allow_schedulers)
    ratios = OwnRatios.of(optimizers, placement) if len(optimizers) > 1 else None
    return [
        regroup(optimizer, schedulers, placement, distribution, allow_schedulers=allow_schedulers, ratios=ratios)
        for optimizer, schedulers in optimizers
    ]


def regroup_added(
    optimizer: Optimizer,
    schedulers: Iterable[Any],
    placement: Placement,
    distribution: LRDistribution,
) -> list[dict[str, Any]]:
    """Split by layer the groups that were added after `regroup`; the groups that it made stay unchanged.

    The new groups are at the end of the list. Each starts at the current point of the schedule: its layer's rate times
    the current factor of the other groups. A relative distribution multiplies the rate with which the group was added:
    its `initial_lr` (where the schedule's factor is 1) if it has one, or else `lr` (the current rate).

    Args:
        optimizer: some of its groups were made by `regroup`, others were added since.
        schedulers: all schedulers of this optimizer; none has taken a step since the groups were added.
        placement: the depth of each parameter.
        distribution: as for `regroup`.

    Returns:
        The new groups.

    Raises:
        OptimizerCoverageError: an added group holds parameters that are not in `placement`.
        ZeroRateError: the distribution is relative and a group was added with the rate 0.
    """
    schedulers = list(schedulers)
    check_optimizer(optimizer, placement)
    old = [group for group in optimizer.param_groups if "layer_lr" in group]
    added = [group for group in optimizer.param_groups if "layer_lr" not in group]
    anchors = anchor_rates(cast(Optimizer, SimpleNamespace(param_groups=old)), schedulers)
    # The schedules store no values for the added groups yet; they are copied from this group.
    like = max(range(len(old)), key=lambda index: anchors[index])
    factor = float(old[like]["lr"]) / anchors[like] if anchors[like] else 1.0
    users = [float(group.get("initial_lr", group["lr"] / factor if factor else group["lr"])) for group in added]
    if distribution.relative and 0 in users:
        raise ZeroRateError(
            f"The distribution {distribution} is relative, and the rate that it multiplies is 0 in a parameter group "
            f"that was added to {type(optimizer).__name__}. Add the group with a rate above 0."
        )
    parents, new = split_groups(added, placement)
    layer_rates = placement.layer_map.rates(distribution.rates)
    own_users = [users[parent] if distribution.relative else float(old[like]["user_lr"]) for parent in parents]
    own_rates = [
        layer_rates[group["layer"]] * (user if distribution.relative else 1.0)
        for group, user in zip(new, own_users, strict=True)
    ]
    split = Split(
        parents=(*range(len(old)), *[like] * len(new)),
        anchors=(*anchors, *[anchors[like]] * len(new)),
        rates=(*anchors, *own_rates),
        user_rates=(*[float(group["user_lr"]) for group in old], *own_users),
        old_anchors=tuple(anchors),
    )
    names = names_of(new, beside=old)
    keys = (*scaled_group_keys(schedulers, old), "swa_lr")
    for index, (group, name) in enumerate(zip(new, names, strict=True), start=len(old)):
        for key, value in old[like].items():
            if key in keys:
                group[key] = split.scale(index, value)
            # Keys of the optimizer, such as a step counter, are not copied: the added parameters have taken no step.
            elif key in _OF_SCHEDULES or key.startswith("initial_"):
                group.setdefault(key, value)
        del group["layer"]
        group.update(name=name, layer_lr=split.rates[index], user_lr=split.user_rates[index])
    optimizer.param_groups[:] = [*old, *new]
    rewrite_schedulers(schedulers, split)
    return new
