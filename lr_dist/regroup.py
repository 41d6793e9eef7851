"""Split the parameter groups of an existing optimizer by layer, in place, schedulers included (pure torch)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lr_dist._distribution.rates import scaled
from lr_dist.distribution import LRDistribution
from lr_dist.errors import (
    InvalidRateError,
    OptimizerCoverageError,
    UnsupportedOptimizerError,
    ZeroRateError,
    listed,
    shown,
)
from lr_dist.groups import NO_DECAY
from lr_dist.layers import LayerMap
from lr_dist.names import is_layer
from lr_dist.schedulers import (
    Split,
    anchor_rates,
    check_schedulers,
    rewrite_schedulers,
    scaled_group_keys,
    schedule_tracks,
)

_MAX_NAMES = 5
# What a schedule or SWA keeps in a group beside its rates. Other keys of a group that the optimizer's defaults lack
# belong to the optimizer, which may count steps there.
_SCALES = ("lr_scale", "lr_mult", "lr_multiplier", "lr_factor")
_OF_SCHEDULES = ("max_momentum", "base_momentum")


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


@dataclass(frozen=True)
class OwnRatios:
    """Groups of one layer to which the user's optimizers gave different rates.

    An absolute distribution has one rate for a layer. It stands for the layer's reference group, and the others keep
    their ratio to it: LoRA+'s B trains at 16 times the rate of A, matrices under Muon at a rate of their own.

    Attributes:
        reference: layer -> the user's rate for which the distribution's stands.
        others: layer -> the user's further rates.
    """

    reference: dict[str, float]
    others: dict[str, tuple[float, ...]]

    def ratio(self, layer: str, user: float) -> float:
        """What the distribution's rate of `layer` is multiplied with for a group with the rate `user`."""
        reference = self.reference.get(layer)
        # Equal but for the digits that a float32 tensor loses; 0 is refused elsewhere.
        if reference is None or user == 0 or math.isclose(user, reference, rel_tol=1e-5):
            return 1.0
        return user / reference

    @classmethod
    def of(cls, optimizers: Sequence[tuple[Optimizer, Sequence[Any]]], placement: Placement) -> OwnRatios:
        """The ratios in optimizers, each with its schedulers, whose groups need not be split yet.

        The reference of a layer is the rate that is the optimizer's default `lr`, or else the lowest. Where only
        embeddings or head have several rates, because a user's border between backbone and head is another, it is the
        highest: the rate of the distribution is then exceeded nowhere.
        """
        rates: dict[str, set[float]] = {}
        exact: dict[float, float] = {}
        defaults: set[float] = set()
        for optimizer, schedulers in optimizers:
            defaults.add(_digits(optimizer.defaults.get("lr")))
            for group, anchor in zip(optimizer.param_groups, anchor_rates(optimizer, schedulers), strict=True):
                user = _digits(_user_rate(group, anchor))
                if not user > 0:
                    continue
                exact.setdefault(user, _user_rate(group, anchor))
                for layer in {placement.layer[id(p)] for p in group["params"] if id(p) in placement.layer}:
                    rates.setdefault(layer, set()).add(user)
        several = {layer: found for layer, found in rates.items() if len(found) > 1}
        within = [found for layer, found in several.items() if is_layer(layer)]
        common = {min(found & defaults or found) for found in within}
        # A layer all of whose weights are under Muon, where others have some under AdamW.
        beside = {rate for found in within for rate in found} - common
        alone = {layer: found for layer, found in rates.items() if len(found) == 1 and found <= beside}
        reference = {}
        for layer, found in several.items():
            known = found & defaults or found if is_layer(layer) else found & common
            reference[layer] = min(known) if known else max(found)
        reference |= dict.fromkeys(alone, min(common, default=math.nan))
        several |= alone
        others = {layer: tuple(sorted(found - {reference[layer]})) for layer, found in several.items()}
        return cls({layer: exact[rate] for layer, rate in reference.items()}, others)

    def describe(self) -> str:
        """In a sentence, what the rates stand for; empty without such groups."""
        if not self.others:
            return ""
        layer = next((layer for layer in self.others if is_layer(layer)), next(iter(self.others)))
        reference = self.reference[layer]
        kept = ", ".join(f"{rate:.3g} ({rate / reference:.3g} times)" for rate in self.others[layer])
        layers = f"{layer} and {len(self.others) - 1} more layer(s)" if len(self.others) > 1 else layer
        return (
            f"The optimizer's groups have different rates within {layers}. The rate of the distribution takes the "
            f"place of {reference:.3g}, and the groups with {kept} keep their ratio to it. If the distribution is "
            "meant to multiply each group's own rate, make it relative (relative=true)."
        )


def _digits(rate: Any) -> float:
    """A rate with as many digits as a float32 tensor keeps; nan for what is none."""
    try:
        return float(f"{float(rate):.6g}")
    except (TypeError, ValueError):
        return math.nan


@dataclass(frozen=True)
class Regrouped:
    """What `regroup` has found out about the groups.

    Attributes:
        tracks: for each new group a value; groups with the same have one factor at every step.
        ratios: groups of one layer with different rates; none under a relative distribution.
    """

    tracks: tuple[Hashable, ...]
    ratios: OwnRatios


def layer_optimizers(optimizers: Sequence[Optimizer], placement: Placement) -> list[Optimizer]:
    """The optimizers that hold parameters of the transformer's layers: one as a rule, Muon and AdamW if they share it.

    Where none does, because every layer is frozen, the one that holds the embeddings or the head.

    Raises:
        UnsupportedOptimizerError: no optimizer at all.
        OptimizerCoverageError: no optimizer holds the transformer, several its embeddings and head alone, or two hold
            one parameter.
    """
    if not any(optimizer.param_groups for optimizer in optimizers):
        raise UnsupportedOptimizerError(
            "The module has no optimizer (`configure_optimizers` returned None), so no layer can get a rate. Return an "
            "optimizer, or remove the LayerwiseLR callback."
        )
    holders = [o for o in optimizers if any(is_layer(placement.layer.get(id(p), "")) for p in _parameters(o))]
    if not holders:
        holders = [o for o in optimizers if any(id(p) in placement.layer for p in _parameters(o))]
        if len(holders) > 1:
            raise OptimizerCoverageError(
                f"{len(holders)} optimizers ({_kinds(holders)}) hold the embeddings and the head, and none holds a "
                "layer, so it is not clear whose rates the distribution stands for. Put them into one optimizer."
            )
    if not holders:
        raise OptimizerCoverageError(
            f"None of the optimizers ({_kinds(optimizers)}) holds a parameter of the transformer's layers. Pass the "
            "model's parameters to an optimizer in `configure_optimizers`; to freeze layers, give them the rate 0 in "
            "the distribution."
        )
    _check_disjoint(holders, placement)
    return holders


def _kinds(optimizers: Sequence[Optimizer]) -> str:
    return ", ".join(type(optimizer).__name__ for optimizer in optimizers)


def _check_disjoint(optimizers: Sequence[Optimizer], placement: Placement) -> None:
    """Two optimizers that take turns on the same weights would each have a rate for them."""
    seen: set[int] = set()
    for optimizer in optimizers:
        own = {id(p) for p in _parameters(optimizer)}
        if both := own & seen:
            names = [placement.name.get(key, "?") for key in both]
            raise OptimizerCoverageError(
                f"{len(optimizers)} optimizers ({_kinds(optimizers)}) each hold {listed(sorted(names))}, so it is not "
                "clear whose rates the distribution stands for. Put a parameter into one optimizer only."
            )
        seen |= own


def check_replaced(optimizers: Sequence[Optimizer], placement: Placement, module: nn.Module) -> None:
    """Refuse optimizers that were made before a part of the model was replaced.

    Raises:
        OptimizerCoverageError: they hold parameters that are no longer in `module`, which has trainable ones that
            none of them holds.
    """
    gone = [p for o in optimizers for p in _parameters(o) if id(p) not in placement.name]
    layers, others = uncovered(optimizers, placement, module)
    if gone and (layers or others):
        names = {name: tuple(p.shape) for name, p in module.named_parameters()}
        new = [f"{name} {names[name]}" for name in [*layers, *others]]
        raise OptimizerCoverageError(
            f"The optimizer ({_kinds(optimizers)}) holds {len(gone)} parameter(s) that are not in the model, of the "
            f"shape(s) {listed(tuple(p.shape) for p in gone)}, and {len(new)} trainable parameter(s) of the model are "
            f"in no group and would not be trained: {', '.join(new[:_MAX_NAMES])}"
            f"{', ...' if len(new) > _MAX_NAMES else ''}. A part of the model was replaced after the optimizer was "
            "made (`resize_token_embeddings`, a new head): change the model first, then make the optimizer."
        )


def unread_scales(optimizers: Sequence[Optimizer]) -> dict[str, list[float]]:
    """Factors in parameter groups that neither torch nor Lightning reads, by their key (timm: `lr_scale`)."""
    found: dict[str, list[float]] = {}
    for key in _SCALES:
        values = [
            group[key] for o in optimizers for group in o.param_groups if isinstance(group.get(key), (int, float))
        ]
        if any(value != 1 for value in values):
            found[key] = sorted({float(value) for value in values})
    return found


def describe_unread(scales: Mapping[str, Sequence[float]]) -> str:
    """What becomes of the factors that `unread_scales` found, in a sentence or two."""
    shown_scales = "; ".join(f"{key!r}: {', '.join(f'{v:.3g}' for v in values[:6])}" for key, values in scales.items())
    return (
        f"Parameter groups of the optimizer carry factors ({shown_scales}) that torch, Lightning and transformers do "
        "not read, so they change no rate. The rates of the distribution take the place of timm's layer_decay: leave "
        "it out when the groups are made. timm's own schedulers do read `lr_scale`, and would multiply by it beside "
        "the distribution."
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
    ratios: OwnRatios | None = None,
) -> Regrouped:
    """Split every group of `optimizer` by layer and set the rates; its state and its other options stay.

    Both `optimizer.param_groups` and the schedulers change in place, and nothing changes if an error is raised. The
    new groups are in the order of depth. Each keeps its parent's options and gets

    - `name`: the layer; `NAME/no_decay` for a group with weight decay 0 where another has more; any further group
      of the layer a number (`layers.0/2`);
    - `layer_lr`, the group's rate where the schedule's factor is 1, and `user_lr`, its parent's rate, by which
      a second call knows the first.

    Args:
        optimizer: holds the layers' parameters.
        schedulers: all schedulers of this optimizer.
        placement: which parameter sits at which depth.
        distribution: absolute rates take the place of the groups' anchors (`anchor_rates`: the rate where the
            schedule's factor is 1), of a layer's reference group where they differ within it (`OwnRatios`); relative
            ones multiply them.
        allow_schedulers: further scheduler types (see `check_schedulers`).
        ratios: of all optimizers that share the layers; by default of this one.

    Returns:
        What the groups have in common, for `RateCheck`.

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
    keys = scaled_group_keys(schedulers, optimizer.param_groups)
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
    return Regrouped(tuple(tracks[parent] for parent in parents), ratios)


def regroup_all(
    optimizers: Sequence[tuple[Optimizer, Sequence[Any]]],
    placement: Placement,
    distribution: LRDistribution,
    *,
    allow_schedulers: Sequence[type] = (),
) -> list[Regrouped]:
    """`regroup` for each of the optimizers that share the layers, given with its schedulers.

    An absolute distribution stands for the same reference group in all of them (`OwnRatios`).
    """
    for optimizer, schedulers in optimizers:
        _check_optimizer(optimizer, placement)
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
        old_anchors=tuple(anchors),
    )
    names = _group_names(new, beside=old)
    keys = (*scaled_group_keys(schedulers, old), "swa_lr")
    for index, (group, name) in enumerate(zip(new, names, strict=True), start=len(old)):
        for key, value in old[like].items():
            if key in keys:
                group[key] = split.scale(index, value)
            # Not a count of steps: the added parameters have taken none.
            elif key in _OF_SCHEDULES or key.startswith("initial_"):
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
        remedy = 'Give them an optimizer of their own, or place them: overrides={"regex": "head"}.'
        if all(id(p) not in placement.name for p in strangers):
            remedy = "Make the optimizer from the parameters of the model that is trained, after the last change to it."
        raise OptimizerCoverageError(
            f"{kind}, which holds the transformer's layers, also holds parameters that sit at no depth: "
            f"{', '.join(titles[:_MAX_NAMES])}{more}. {remedy}"
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
    parents: list[int] = []
    groups: list[dict[str, Any]] = []
    for layer, parent in sorted(parts, key=lambda key: (depth[key[0]], key[1])):
        old = old_groups[parent]
        # A count in a tensor, raised in place, must not be raised once for each group.
        new = {**(_copied(old) if parent in parents else old), "layer": layer}
        # Optimizers built from named parameters keep the names beside the tensors.
        for key in ("params", "param_names"):
            if key in old:
                new[key] = [old[key][position] for position in parts[layer, parent]]
        parents.append(parent)
        groups.append(new)
    return parents, groups


def _copied(group: Mapping[str, Any]) -> dict[str, Any]:
    """The group with tensors and containers of its own."""
    return {key: value if key in ("params", "param_names") else _copied_value(value) for key, value in group.items()}


def _copied_value(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.clone()
    if type(value) in (list, set, tuple):
        return type(value)(_copied_value(item) for item in value)
    if type(value) is dict:
        return {key: _copied_value(item) for key, item in value.items()}
    return value


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
