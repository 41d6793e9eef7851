"""`lr-dist layers`: which parameter of a model sits at which depth, and its rate."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from lr_dist.extras import require_extras


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(description="Show a model's groups by depth, their parameters, and their learning rates.")
    p.add_argument("--model", type=str, default="minilm", help="minilm, a hub name, or a path")
    p.add_argument("--distribution", type=str | None, help="also show each group's rate")
    p.add_argument("--names", type=bool, default=False, help="list every parameter (true or false)")
    return p


def run(settings: Namespace) -> int:
    """Print the table; only the model's configuration is read, not its weights."""
    require_extras("tasks")
    from rich.console import Console
    from rich.table import Table

    from lr_dist._distribution.sanity import warn_of_rates
    from lr_dist.layers import assign_layers
    from lr_dist.models import load_skeleton
    from lr_dist.presets import resolve_distribution

    distribution = None if settings.distribution is None else resolve_distribution(settings.distribution)
    model = load_skeleton(settings.model)
    layers = assign_layers(model)
    rates = None if distribution is None else distribution.rates(layers.num_layers)
    if distribution is not None:
        warn_of_rates(distribution, layers.num_layers, None, None)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}

    table = Table(title=f"{settings.model}: {type(model).__name__}, {layers.num_layers} layers")
    table.add_column("group")
    table.add_column("depth", justify="right")
    table.add_column("parameters", justify="right")
    if rates is not None:
        table.add_column("x optimizer's rate" if distribution and distribution.relative else "rate", justify="right")
    if settings.names:
        table.add_column("names", overflow="fold")
    for depth, (group, names) in enumerate(layers.groups.items()):
        cells = [group, str(depth), f"{sum(sizes[name] for name in names):,}"]
        if rates is not None:
            cells.append("frozen" if rates[group] == 0 else f"{rates[group]:.3g}")
        if settings.names:
            cells.append("\n".join(names))
        table.add_row(*cells)
    total = sum(sizes[name] for names in layers.groups.values() for name in names)
    table.caption = f"{total:,} parameters"
    Console().print(table)
    return 0
