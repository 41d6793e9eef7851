"""The table of layers and rates that is printed when training starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lr_dist._distribution.sanity import brief
from lr_dist._distribution.table import LayerRow, print_layers
from lr_dist.distribution import LRDistribution
from lr_dist.names import layer_of


def print_table(
    optimizer: Optimizer, distribution: LRDistribution, sizes: Mapping[int, int], starts: Mapping[str, str]
) -> None:
    """One row for each layer of an optimizer that was split by layer, its groups with and without weight decay joined.

    Args:
        optimizer: with the groups of `regroup`.
        distribution: stands in the title.
        sizes: `id(parameter)` -> how many numbers it holds, in all processes together.
        starts: group -> when it starts to train; empty where all of them start at once.
    """
    layers: dict[str, list[dict[str, Any]]] = {}
    for group in optimizer.param_groups:
        layers.setdefault(layer_of(group["name"]), []).append(group)
    rows = [
        LayerRow(
            layer,
            sum(sizes[id(parameter)] for group in groups for parameter in group["params"]),
            tuple(dict.fromkeys(float(group["layer_lr"]) for group in groups)),
            starts.get(groups[0]["name"], ""),
        )
        for layer, groups in layers.items()
    ]
    print_layers(rows, title=f"LayerwiseLR: {distribution}", note=_note(optimizer.param_groups, distribution.relative))


def _note(groups: Sequence[Mapping[str, Any]], relative: bool) -> str:
    """What becomes of the optimizer's own rate, in words."""
    moving = [group for group in groups if group["layer_lr"]]
    if not moving:
        return ""
    users = list(dict.fromkeys(brief(float(group["user_lr"])) for group in groups))
    own = " and ".join(users) if len(users) < 3 else f"{users[0]}, ..."
    if relative:
        numbers = [float(group["layer_lr"]) / float(group["user_lr"]) for group in moving]
        return f"optimizer lr {own} -> multiplied by {_range(numbers)}"
    return f"optimizer lr {own} -> replaced by {_range([float(group['layer_lr']) for group in moving])}"


def _range(numbers: Sequence[float]) -> str:
    low, high = brief(min(numbers)), brief(max(numbers))
    return low if low == high else f"{low} to {high}"
