"""The table of groups and rates that is printed when training starts."""

from __future__ import annotations

from collections.abc import Mapping

from torch.optim import Optimizer

from lr_dist.distribution import LRDistribution


def print_table(
    optimizer: Optimizer, distribution: LRDistribution, sizes: Mapping[int, int], starts: Mapping[str, str]
) -> None:
    """One line for each parameter group of an optimizer that was split by layer.

    Args:
        optimizer: with the groups of `regroup`.
        distribution: stands in the title.
        sizes: `id(parameter)` -> how many numbers it holds, in all processes together.
        starts: group -> when it starts to train; empty where all of them start at once.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text: rich would read `[...]` in a distribution as markup.
    table = Table(title=Text(f"LayerwiseLR: {distribution}"))
    table.add_column("group")
    table.add_column("parameters", justify="right")
    table.add_column("learning rate", justify="right")
    if starts:
        table.add_column("starts")
    for group in optimizer.param_groups:
        count = sum(sizes[id(parameter)] for parameter in group["params"])
        rate = f"{group['layer_lr']:.3g}" if group["layer_lr"] else "frozen"
        table.add_row(group["name"], f"{count:,}", rate, *([starts[group["name"]]] if starts else []))
    Console().print(table)
