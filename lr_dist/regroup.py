"""Split the parameter groups of an existing optimizer by layer, in place, schedulers included (pure torch)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from torch import nn
from torch.optim import LBFGS, Optimizer

from lr_dist._distribution.rates import scaled
from lr_dist.distribution import LRDistribution
from lr_dist.errors import (
    InvalidRateError,
    OptimizerCoverageError,
    UnsupportedOptimizerError,
    ZeroRateError,
    shown,
)
from lr_dist.groups import NO_DECAY
from lr_dist.layers import LayerMap
from lr_dist.names import is_layer
from lr_dist.schedulers import Split, anchor_rates, check_schedulers, rewrite_schedulers, scaled_group_keys

_MAX_NAMES = 5


@dataclass(frozen=True)
class Placement:
    """Where each parameter object of a module sits.

    Attributes:
        layer: `id(parameter)` -> group name.
        name: `id(parameter)` -> the parameter's name.
        order: the group names in the order of depth.
        layer_map: what they were made from.
    """

    layer: dict[int, str]
    name: dict[int, str]
    order: tuple[str, ...]
    layer_map: LayerMap

    @classmethod
    def of(cls, module: nn.Module, layer_map: LayerMap) -> Placement:
        """The placement of `module`'s parameters, `layer_map` being made from the same module."""
        # Without removing duplicates: a tied weight has several names, and the map knows one of them.
        names = [(name, id(p)) for name, p in module.named_parameters(remove_duplicate=False)]
        layer_of = layer_map.group_of
        layer = {key: layer_of[name] for name, key in names if name in layer_of}
        return cls(layer, {key: name for name, key in reversed(names)}, tuple(layer_map.groups), layer_map)


def layer_optimizer(optimizers: Sequence[Optimizer], placement: Placement) -> Optimizer:
    """The one optimizer that holds the parameters of the transformer's layers.

    Where none does, because every layer is frozen, it is the one that holds the embeddings or the head.

    Raises:
        UnsupportedOptimizerError: no optimizer at all.
        OptimizerCoverageError: no optimizer holds the transformer, or several do.
    """
    if not any(optimizer.param_groups for optimizer in optimizers):
        raise UnsupportedOptimizerError(
            "The module has no optimizer (`configure_optimizers` returned None), so no layer can get a rate. Return an "
            "optimizer, or remove the LayerwiseLR callback."
        )
    holders = [o for o in optimizers if any(is_layer(placement.layer.get(id(p), "")) for p in _parameters(o))]
    holders = holders or [o for o in optimizers if any(id(p) in placement.layer for p in _parameters(o))]
    if len(holders) == 1:
        return holders[0]
    kinds = ", ".join(type(optimizer).__name__ for optimizer in holders or optimizers)
    if not holders:
        raise OptimizerCoverageError(
            f"None of the optimizers ({kinds}) holds a parameter of the transformer's layers. Pass the model's "
            "parameters to an optimizer in `configure_optimizers`; to freeze layers, give them the rate 0 in the "
            "distribution."
        )
    raise OptimizerCoverageError(
        f"{len(holders)} optimizers ({kinds}) each hold a part of the transformer's layers, so it is not clear whose "
        "rates the distribution stands for. Put all layers into one optimizer; other modules may have their own."
    )


def uncovered(optimizers: Sequence[Optimizer], placement: Placement, module: nn.Module) -> tuple[list[str], list[str]]:
    """Names of trainable parameters that no optimizer holds: those in layers, and those in embeddings and head."""
    held = {id(p) for optimizer in optimizers for p in _parameters(optimizer)}
    free = [
        (name, placement.layer[id(p)])
        for name, p in module.named_parameters()
        if p.requires_grad and id(p) not in held and id(p) in placement.layer
    ]
    return [n for n, layer in free if is_layer(layer)], [n for n, layer in free if not is_layer(layer)]


def regroup(
    optimizer: Optimizer,
    schedulers: Iterable[Any],
    placement: Placement,
    distribution: LRDistribution,
    *,
    allow_schedulers: Sequence[type] = (),
) -> None:
    """Split every group of `optimizer` by layer and set the rates; its state and its other options stay.

    Both `optimizer.param_groups` and the schedulers change in place, and nothing changes if an error is raised. The
    new groups are in the order of depth. Each keeps its parent's options and gets

    - `name`: the layer; `NAME/no_decay` for a group with weight decay 0 where another has more; any further group
      of the layer a number (`layers.0/2`);
    - `layer_lr`, the layer's rate, and `user_lr`, its parent's rate, by which a second call knows the first.

    Args:
        optimizer: holds the layers' parameters.
        schedulers: all schedulers of this optimizer.
        placement: which parameter sits at which depth.
        distribution: absolute rates take the place of the groups' anchors (`anchor_rates`: the rate where the
            schedule's factor is 1); relative ones multiply them.
        allow_schedulers: further scheduler types (see `check_schedulers`).

    Raises:
        UnsupportedOptimizerError: an optimizer that knows one group only, shards its groups, or has no rate.
        UnsupportedSchedulerError: a scheduler of a type that was not tested.
        OptimizerCoverageError: the optimizer holds parameters that are not in `placement`.
        ZeroRateError: the optimizer's own rate is 0.
        InvalidRateError: a rate of the optimizer, or its product with the distribution's, is no finite number >= 0.
    """
    schedulers = list(schedulers)
    _check_optimizer(optimizer, placement)
    check_schedulers(schedulers, allow_schedulers)
    keys = scaled_group_keys(schedulers)
    for index, group in enumerate(optimizer.param_groups):
        _check_rates(group, keys, f"Parameter group {index} of the optimizer")
    parents, groups = _split_groups(optimizer.param_groups, placement)
    anchors = anchor_rates(optimizer, schedulers)
    for index, anchor in enumerate(anchors):
        if not math.isfinite(anchor) or anchor < 0:
            raise InvalidRateError(
                f"Parameter group {index} of the optimizer has the rate {anchor} (`lr` as given to the optimizer, or "
                "`max_lr` of its cycle). A rate is a finite number of 0 or more."
            )
    users = [_user_rate(group, anchor) for group, anchor in zip(optimizer.param_groups, anchors, strict=True)]
    rates = placement.layer_map.rates(distribution.rates)
    if distribution.relative and 0 in users:
        raise ZeroRateError(
            f"The distribution {distribution} is relative, and the optimizer's own rate, which it multiplies, is 0 in "
            f"parameter group {users.index(0)}. Give the optimizer a rate above 0."
        )
    split = Split(
        parents=tuple(parents),
        anchors=tuple(anchors[parent] for parent in parents),
        rates=tuple(
            scaled(group["layer"], rates[group["layer"]], users[parent] if distribution.relative else 1.0)
            for parent, group in zip(parents, groups, strict=True)
        ),
        user_rates=tuple(users[parent] for parent in parents),
    )
    names = _group_names(groups)
    for index, group in enumerate(groups):
        for key in keys:
            if key in group:
                group[key] = split.scale(index, group[key])
        _check_rates(group, keys, f"{group['layer']} under the distribution {distribution}")
        del group["layer"]
        group.update(name=names[index], layer_lr=split.rates[index], user_lr=split.user_rates[index])
    # The optimizer and its list of groups stay the same objects: schedulers, Lightning and the user may hold either.
    optimizer.param_groups[:] = groups
    rewrite_schedulers(schedulers, split)


def regroup_added(
    optimizer: Optimizer,
    schedulers: Iterable[Any],
    placement: Placement,
    distribution: LRDistribution,
) -> list[dict[str, Any]]:
    """Split the groups that were added after `regroup` by layer; its own groups stay as and where they are.

    The new groups are at the end of the list. Each starts where the schedule stands: its layer's rate times the
    factor that the others have at this moment. A relative distribution multiplies the rate at which the group was
    added, which is taken for the rate of this moment (for `initial_lr`, if the group has one, of the whole schedule).

    Args:
        optimizer: some of its groups were made by `regroup`, others were not.
        schedulers: all schedulers of this optimizer, none of which has taken a step since.
        placement: which parameter sits at which depth.
        distribution: as for `regroup`.

    Returns:
        The new groups.

    Raises:
        OptimizerCoverageError: an added group holds parameters that are not in `placement`.
        ZeroRateError: the distribution is relative and a group was added with the rate 0.
    """
    schedulers = list(schedulers)
    _check_optimizer(optimizer, placement)
    old = [group for group in optimizer.param_groups if "layer_lr" in group]
    added = [group for group in optimizer.param_groups if "layer_lr" not in group]
    anchors = anchor_rates(cast(Optimizer, SimpleNamespace(param_groups=old)), schedulers)
    # What the schedules keep for each group, they do not have for the added ones yet: copied from this one.
    like = max(range(len(old)), key=lambda index: anchors[index])
    factor = float(old[like]["lr"]) / anchors[like] if anchors[like] else 1.0
    users = [float(group.get("initial_lr", group["lr"] / factor if factor else group["lr"])) for group in added]
    if distribution.relative and 0 in users:
        raise ZeroRateError(
            f"The distribution {distribution} is relative, and the rate that it multiplies is 0 in a parameter group "
            f"that was added to {type(optimizer).__name__}. Add the group with a rate above 0."
        )
    parents, new = _split_groups(added, placement)
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
    )
    names = _group_names(new, beside=old)
    keys = (*scaled_group_keys(schedulers), "swa_lr")
    for index, (group, name) in enumerate(zip(new, names, strict=True), start=len(old)):
        for key, value in old[like].items():
            if key in keys:
                group[key] = split.scale(index, value)
            else:
                group.setdefault(key, value)
        del group["layer"]
        group.update(name=name, layer_lr=split.rates[index], user_lr=split.user_rates[index])
    optimizer.param_groups[:] = [*old, *new]
    rewrite_schedulers(schedulers, split)
    return new


def _check_optimizer(optimizer: Optimizer, placement: Placement) -> None:
    kind = type(optimizer).__name__
    if isinstance(optimizer, LBFGS):
        raise UnsupportedOptimizerError(
            "LBFGS knows one parameter group only, so its layers cannot have a rate each. Use another optimizer, e.g. "
            "torch.optim.AdamW."
        )
    # By name: importing it needs torch.distributed, which not every build of torch has.
    if any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__):
        raise UnsupportedOptimizerError(
            "ZeroRedundancyOptimizer shards its parameter groups when it is built, so they cannot be split by layer "
            "afterwards. Use FSDP to shard the optimizer's state, or a plain optimizer."
        )
    inner = [o for value in vars(optimizer).values() for o in _optimizers_in(value)]
    # A property that joins the groups of its parts makes a new list each time.
    joined = optimizer.param_groups is not optimizer.param_groups
    if joined or any(o.param_groups is not optimizer.param_groups for o in inner):
        kinds = ", ".join(type(o).__name__ for o in inner) or "others"
        raise UnsupportedOptimizerError(
            f"{kind} hands its parameters on to optimizers with groups of their own ({kinds}), so rates in its groups "
            "would have no effect. Use one optimizer for all parameters, such as AdamW; or build the inner optimizers "
            "from lr_dist.param_groups, and let nothing else split them."
        )
    if any(group.get("lr") is None for group in optimizer.param_groups):
        raise UnsupportedOptimizerError(
            f"{kind} has a parameter group without a learning rate (`lr` is missing or None), so it cannot have one "
            "for each layer. Give it a rate (Adafactor: lr=..., relative_step=False)."
        )
    strangers = [p for p in _parameters(optimizer) if id(p) not in placement.layer]
    if strangers:
        titles = [placement.name.get(id(p), f"(not in the module, shape {tuple(p.shape)})") for p in strangers]
        more = f" and {len(titles) - _MAX_NAMES} more" if len(titles) > _MAX_NAMES else ""
        raise OptimizerCoverageError(
            f"{kind}, which holds the transformer's layers, also holds parameters that sit at no depth: "
            f"{', '.join(titles[:_MAX_NAMES])}{more}. Give them an optimizer of their own, or place them: "
            'overrides={"regex": "head"}.'
        )


def _check_rates(group: Mapping[str, Any], keys: Sequence[str], owner: str) -> None:
    """Raise InvalidRateError unless each of the group's rates is a finite number.

    Not `>= 0`: the last step of torch's OneCycleLR can be at -1e-17, and a user's lambda may be negative.
    """
    for key in keys:
        value = group.get(key, 0.0)
        try:
            # A tensor of several elements is no rate; neither is a text, though float reads it.
            number = math.nan if isinstance(value, (str, bytes, bool)) else float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan
        if not math.isfinite(number):
            raise InvalidRateError(f"{owner} has {key}={shown(value)}. A rate is a finite number of 0 or more.")


def _optimizers_in(value: Any) -> Iterator[Optimizer]:
    if isinstance(value, Optimizer):
        yield value
    elif isinstance(value, Mapping):
        yield from (item for item in value.values() if isinstance(item, Optimizer))
    elif isinstance(value, (list, tuple, set)):
        yield from (item for item in value if isinstance(item, Optimizer))


def _split_groups(old_groups: Sequence[dict[str, Any]], placement: Placement) -> tuple[list[int], list[dict[str, Any]]]:
    """New groups in the order of depth, each with its `layer`, and the index of the group each came from."""
    parts: dict[tuple[str, int], list[int]] = {}
    for parent, group in enumerate(old_groups):
        for position, parameter in enumerate(group["params"]):
            parts.setdefault((placement.layer[id(parameter)], parent), []).append(position)
    depth = {layer: i for i, layer in enumerate(placement.order)}
    parents, groups = [], []
    for layer, parent in sorted(parts, key=lambda key: (depth[key[0]], key[1])):
        old = old_groups[parent]
        new = {**old, "layer": layer}
        # Optimizers built from named parameters keep the names beside the tensors.
        for key in ("params", "param_names"):
            if key in old:
                new[key] = [old[key][position] for position in parts[layer, parent]]
        parents.append(parent)
        groups.append(new)
    return parents, groups


def _user_rate(group: Mapping[str, Any], anchor: float) -> float:
    """The rate that the user gave the group; where an earlier call set `anchor`, the rate from before that."""
    # isclose, because a rate in a float32 tensor has lost digits.
    if "user_lr" in group and "layer_lr" in group and math.isclose(group["layer_lr"], anchor, rel_tol=1e-6):
        return float(group["user_lr"])
    return anchor


def _group_names(groups: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Names of split groups; those `beside` them have names already."""
    some_decay = any(group.get("weight_decay", 0) for group in (*beside, *groups))
    taken = {group["name"] for group in beside}
    names: list[str] = []
    for group in groups:
        plain = group["layer"]
        if some_decay and not group.get("weight_decay", 0):
            plain += NO_DECAY
        name, count = plain, 1
        while name in names or name in taken:
            count += 1
            name = f"{plain}/{count}"
        names.append(name)
    return names


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
