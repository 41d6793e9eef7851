"""`lr-dist layers`: which parameter of a model sits at which depth, and its rate."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.wording import MODEL
from lr_dist.extras import require_libraries


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(description="Show a model's groups by depth, their parameters, and their learning rates.")
    p.add_argument(
        "--model",
        type=str,
        default="minilm",
        help=f"Model whose layers to show: {MODEL}.",
    )
    p.add_argument("--distribution", type=str | None, help="Also show each group's rate under this distribution.")
    p.add_argument(
        "--overrides",
        type=dict[str, str] | None,
        help="""Groups for parameters by regex, '{"^my_adapter": "layers.-1"}'.""",
    )
    p.add_argument(
        "--stacks",
        type=list[str] | dict[str, str] | None,
        help="Submodules that each have their own depth, '[vision_model, text_model]'.",
    )
    p.add_argument(
        "--trust-remote-code",
        type=bool,
        default=False,
        help="Allow a model from the hub to run its own code: true or false.",
    )
    p.add_argument("--names", type=bool, default=False, help="List every parameter: true or false.")
    return p


def run(settings: Namespace) -> int:
    """Print the table; only the model's configuration is read, not its weights."""
    from lr_dist.presets import resolve_distribution

    # Before torch is loaded, which takes seconds.
    distribution = None if settings.distribution is None else resolve_distribution(settings.distribution)
    require_libraries("models", "transformers")
    from lr_dist._distribution.sanity import warn_of_rates
    from lr_dist._distribution.table import LayerRow, print_layers
    from lr_dist.cli.terminal import terminal
    from lr_dist.layers import assign_layers
    from lr_dist.models import load_skeleton

    model = load_skeleton(settings.model, trust_remote_code=settings.trust_remote_code)
    layers = assign_layers(model, settings.overrides, settings.stacks)
    rates = None if distribution is None else layers.rates(distribution.rates)
    if distribution is not None:
        warn_of_rates(distribution, layers.deepest, None, None)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}

    rows = [
        LayerRow(
            group,
            sum(sizes[name] for name in names),
            () if rates is None else (rates[group],),
            names=tuple(names) if settings.names else (),
        )
        for group, names in layers.groups.items()
    ]
    title, note = f"{settings.model}: {type(model).__name__}, {layers.num_layers} layers", ""
    if distribution is not None:
        does = "multiplied by the numbers below" if distribution.relative else "replaced by the rates below"
        title, note = f"{title}: {distribution}", f"optimizer lr -> {does}"
    unit = "x optimizer lr" if distribution is not None and distribution.relative else "learning rate"
    print_layers(rows, title=title, note=note, unit=unit, console=terminal())
    return 0
