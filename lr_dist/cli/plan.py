"""`lr-dist plan PLAN`: every layer's rate over the steps, before training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.wording import MODEL

if TYPE_CHECKING:
    from rich.table import Table

    from lr_dist.plan_preview import StagePreview


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(
        description="Show every layer's learning rate over the steps of a fit before anything is trained, as a table "
        "and as a figure: what a distribution, its phases and its stages will do under a schedule."
    )
    p.add_argument(
        "plan",
        type=str,
        help="Preset, YAML file, or text: flat:lr=1e-4, 'A | B' (B from the second task on), 'A @ 20% > B' (phases), "
        "'A @ gradual' (one more layer at a time, from the head down).",
    )
    p.add_argument("--model", type=str | None, help=f"Model whose number of layers to use: {MODEL}.")
    p.add_argument("--layers", type=int, default=12, help="Number of layers, if no model is given.")
    p.add_argument("--steps", type=int, default=1000, help="Steps of the optimizer in each stage.")
    p.add_argument("--schedule", type=str, default="cosine", help="Rate after the warm-up: cosine, linear or constant.")
    p.add_argument("--warmup", type=float, default=0.1, help="Share of the steps in which the rate rises linearly.")
    p.add_argument(
        "--lr",
        type=float | None,
        help="The optimizer's learning rate; only relative distributions use it, which multiply it.",
    )
    p.add_argument("--output-file", type=str | None, help="PNG or SVG file to write. By default no figure is drawn.")
    return p


def run(settings: Namespace) -> int:
    """Print the table of each stage, and write the figure."""
    from lr_dist.cli.terminal import terminal
    from lr_dist.plan_preview import plot_plan
    from lr_dist.presets import resolve_plan
    from lr_dist.rate_plan import RatePlan
    from lr_dist.runs.atomic import write_bytes

    plan = resolve_plan(settings.plan)
    if settings.lr is not None:
        plan = RatePlan(tuple(stage.absolute(settings.lr) for stage in plan.stages))
    layers = settings.layers if settings.model is None else _layers_of(settings.model)
    stages = plan.preview(layers, settings.steps, schedule=settings.schedule, warmup=settings.warmup)
    console = terminal()
    for number, stage in enumerate(stages, 1):
        console.print(_table(stage, number, len(stages)))
    if settings.output_file is not None:
        path = _checked(Path(settings.output_file))
        image = io.BytesIO()
        plot_plan(stages).savefig(image, dpi=150, format=path.suffix[1:])
        path = write_bytes(path, image.getvalue(), instead="Give another --output-file.")
        console.print(f"Figure: {path}", soft_wrap=True, markup=False)
    return 0


def _table(stage: StagePreview, number: int, stages: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    from lr_dist._distribution.sanity import brief, readable

    total = len(next(iter(stage.rates.values())))
    head = list(stage.rates.values())[-1]
    # Both sides of every change: the end of the warm-up, the last step of a phase and the first of the next.
    borders = {head.index(max(head)), *stage.starts, *(start - 1 for start in stage.starts[1:])}
    shown = sorted(borders | {round(share * (total - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})
    which = "" if stages == 1 else f"stage {number}{' and later' if number == stages else ''}: "
    unit = "multiples of the optimizer's rate" if stage.relative else "learning rates"
    title = Text(f"{which}{readable(stage.text)} ({unit})")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("step", no_wrap=True)
    for step in shown:
        table.add_column(f"{step:,}" + (" (phase)" if step in stage.starts[1:] else ""), justify="right")
    for group, rates in stage.rates.items():
        waits = "waits" if any(rates) else "frozen"
        cells = [brief(rates[step]) if rates[step] or (any(rates) and not step) else waits for step in shown]
        table.add_row(group, *cells)
    return table


def _layers_of(model: str) -> int:
    from lr_dist.layers import assign_layers
    from lr_dist.models import load_backbone

    return assign_layers(load_backbone(model)).num_layers


def _checked(path: Path) -> Path:
    from lr_dist.errors import ConfigurationError, shown

    if path.suffix.lower() not in (".png", ".svg"):
        raise ConfigurationError(
            f"The figure is a PNG or SVG file, so --output-file must end in .png or .svg, not {shown(str(path))}."
        )
    return path.with_suffix(path.suffix.lower())
