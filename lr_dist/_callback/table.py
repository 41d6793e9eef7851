"""The table of layers and rates that is printed when training starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lr_dist._distribution.sanity import brief
from lr_dist._distribution.table import LayerRow, print_layers
from lr_dist.names import layer_of


def print_table(
    optimizer: Optimizer, rates: str, relative: bool, sizes: Mapping[int, int], starts: Mapping[str, str]
) -> None:
    """Print one row for each layer; groups with and without weight decay share a row.

    Args:
        optimizer: its groups were split by `regroup`.
        rates: the distribution or the phases as text, for the title.
        relative: whether they are multiples of the optimizer's own rate.
        sizes: `id(parameter)` -> its number of elements, in all processes together.
        starts: group -> when it starts to train; empty if all groups start at once.
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
    print_layers(rows, title=f"LayerwiseLR: {rates}", note=_note(optimizer.param_groups, relative))


def _note(groups: Sequence[Mapping[str, Any]], relative: bool) -> str:
    """The second line: how the optimizer's rate is replaced or multiplied."""
    moving = [group for group in groups if group["layer_lr"]]
    if not moving:
        return ""
    users = list(dict.fromkeys(brief(float(group["user_lr"])) for group in groups))
    user_rates = " and ".join(users) if len(users) < 3 else f"{users[0]}, ..."
    if relative:
        numbers = [float(group["layer_lr"]) / float(group["user_lr"]) for group in moving]
        return f"optimizer lr {user_rates} -> multiplied by {_range(numbers)}"
    return f"optimizer lr {user_rates} -> replaced by {_range([float(group['layer_lr']) for group in moving])}"


def _range(numbers: Sequence[float]) -> str:
    low, high = brief(min(numbers)), brief(max(numbers))
    return low if low == high else f"{low} to {high}"
