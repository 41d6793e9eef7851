"""Splits parameter groups by layer, and names the new groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lr_dist._regroup.placement import Placement
from lr_dist.names import NO_DECAY


def split_groups(old_groups: Sequence[dict[str, Any]], placement: Placement) -> tuple[list[int], list[dict[str, Any]]]:
    """The index of the old group that each new group comes from; and the new groups with `layer`, in order of depth."""
    parts: dict[tuple[str, int], list[int]] = {}
    for parent, group in enumerate(old_groups):
        for position, parameter in enumerate(group["params"]):
            parts.setdefault((placement.layer[id(parameter)], parent), []).append(position)
    depth = {layer: i for i, layer in enumerate(placement.order)}
    parents: list[int] = []
    groups: list[dict[str, Any]] = []
    for layer, parent in sorted(parts, key=lambda key: (depth[key[0]], key[1])):
        old = old_groups[parent]
        # Tensors are copied: a counter that the optimizer increments in place must not be shared by several groups.
        new = {**(_copied(old) if parent in parents else old), "layer": layer}
        # Optimizers made from named parameters also store the names.
        for key in ("params", "param_names"):
            if key in old:
                new[key] = [old[key][position] for position in parts[layer, parent]]
        parents.append(parent)
        groups.append(new)
    return parents, groups


def _copied(group: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the group with its own tensors and containers; the parameters are shared."""
    return {key: value if key in ("params", "param_names") else _copied_value(value) for key, value in group.items()}


def _copied_value(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.clone()
    if type(value) in (list, set, tuple):
        return type(value)(_copied_value(item) for item in value)
    if type(value) is dict:
        return {key: _copied_value(item) for key, item in value.items()}
    return value


def names_of(groups: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Unique names for split groups.

    Args:
        groups: the split groups, each with its `layer`.
        beside: other groups of the optimizer, which already have names.
    """
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
