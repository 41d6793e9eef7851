"""The table of groups and rates that is printed when training starts."""

from __future__ import annotations

from torch.optim import Optimizer

from lr_dist.distribution import LRDistribution


def print_table(optimizer: Optimizer, distribution: LRDistribution) -> None:
    """One line for each parameter group of an optimizer that was split by layer."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"LayerwiseLR: {distribution}")
    table.add_column("group")
    table.add_column("parameters", justify="right")
    table.add_column("learning rate", justify="right")
    for group in optimizer.param_groups:
        count = sum(parameter.numel() for parameter in group["params"])
        rate = f"{group['layer_lr']:.3g}" if group["layer_lr"] else "frozen"
        table.add_row(group["name"], f"{count:,}", rate)
    Console().print(table)
