"""`lr-dist presets list | show NAME | plot NAME`."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from lr_dist._distribution.sanity import warn_of_rates
from lr_dist.distribution import LRDistribution
from lr_dist.errors import ConfigurationError, shown
from lr_dist.presets import Preset, get_preset, list_presets, resolve_plan
from lr_dist.presets.schema import NAME, read_data
from lr_dist.rate_plan import DURATION, RatePlan
from lr_dist.runs.atomic import write_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_BAR = 28
# BERT base's.
_LAYERS = 12


def parser() -> ArgumentParser:
    """The command; `nest` adds its subcommands."""
    return ArgumentParser(description="List, show or draw the presets: named rate plans with their evidence.")


def nest(parser: ArgumentParser) -> None:
    """Add list, show and plot; jsonargparse needs the outer level first."""
    listing = ArgumentParser(description="List all presets, and the problems of broken ones.")
    show = ArgumentParser(description="Show a preset's purpose, provenance, schedule and rates.")
    plot = ArgumentParser(
        description="Draw a preset's rates over depth, and their spread if recorded, into a PNG file."
    )
    for p in (show, plot):
        p.add_argument("name", type=str, help="Name of the preset, a YAML file, or the text of any rate plan.")
        p.add_argument(
            "--layers",
            type=int | None,
            help=f"Number of layers of the model. By default that of the models it was made for, or {_LAYERS}.",
        )
    plot.add_argument("--output-file", type=str | None, help="PNG file to write. By default NAME.png.")
    subcommands = parser.add_subcommands(title="commands", metavar="COMMAND")
    for name, sub in (("list", listing), ("show", show), ("plot", plot)):
        subcommands.add_subcommand(name, sub, help=sub.description)


def run(settings: Namespace) -> int:
    """Run the subcommand."""
    if settings.subcommand == "list":
        list_command()
    elif settings.subcommand == "show":
        show_command(settings.show.name, settings.show.layers)
    else:
        output = None if settings.plot.output_file is None else Path(settings.plot.output_file)
        plot_command(settings.plot.name, output, settings.plot.layers)
    return 0


def list_command(console: Console | None = None) -> None:
    """Print every preset (name, purpose, caution, kind, source), then the broken ones with the reason."""
    from rich.table import Table
    from rich.text import Text

    console = console or _console()
    entries = list_presets()
    table = Table(title="Presets", title_justify="left", show_lines=True)
    # The purpose is below the name: 80 columns have no room for it beside the name.
    table.add_column("name and purpose", ratio=1)
    table.add_column("kind", no_wrap=True)
    table.add_column("source", overflow="fold", max_width=28)
    for entry in entries:
        if entry.preset is not None:
            # Text everywhere: rich would read `[...]` in a file's words as markup.
            name = Text.assemble((entry.name, "bold"), "\n", entry.preset.purpose)
            if entry.preset.caution is not None:
                name.append(f"\nCaution: {entry.preset.caution}", "yellow")
            table.add_row(name, Text(_kind(entry.preset.plan)), Text(entry.source))
    console.print(table)
    # dict: of two presets with one name each has the same problem.
    for problem in dict.fromkeys(f"{entry.name}: {entry.problem}" for entry in entries if entry.preset is None):
        console.print(Text.assemble(("broken: ", "bold red"), problem), soft_wrap=True)


def show_command(name: str, layers: int | None = None, console: Console | None = None) -> None:
    """Print a preset's purpose, provenance and schedule, and the rates of its plan on `layers` layers.

    Args:
        name: a preset, a YAML file, or the text of a plan, which has rates only.
        layers: number of layers; by default that of the models it was made for, or 12.
        console: where to print.

    Raises:
        UnknownPresetError: no preset of that name.
        LayerCountError: `layers` is not a valid number of layers.
        LRDistError: another form that is not valid.
    """
    from rich.text import Text

    console = console or _console()
    title, preset, plan = _subject(name)
    layers = _depth(preset) if layers is None else layers
    tables = [_rates_table(distribution, layers, text) for text, distribution in _parts(plan)]
    console.print(Text(title, style="bold"))
    if preset is not None:
        console.print(Text(preset.purpose))
        if preset.caution is not None:
            console.print(Text(f"Caution: {preset.caution}", style="yellow"))
        console.print()
        console.print(_provenance_table(preset))
        console.print()
    for table in tables:
        console.print(table)
    for distribution in dict.fromkeys(plan.distributions):
        warn_of_rates(distribution, layers, None, None)


def plot_command(
    name: str, output: Path | None = None, layers: int | None = None, console: Console | None = None
) -> Path:
    """Draw the rates of a plan over depth into a PNG file (`output`, or NAME.png) and print where it is.

    Each stage and phase is a line. A recorded spread between the sources of a preset is a band.

    Raises:
        UnknownPresetError: no preset of that name.
        ConfigurationError: `output` does not end in .png, or is missing for a text.
        MissingExtraError: matplotlib is not installed (extra `report`).
        UnwritableFileError: the file cannot be written; an earlier one stays.
    """
    from rich.text import Text

    title, preset, plan = _subject(name)
    layers = _depth(preset) if layers is None else layers
    if output is None and not NAME.fullmatch(title):
        raise ConfigurationError(f"{shown(name)} has no name for its figure; give one with --output rates.png.")
    path = Path(f"{title}.png") if output is None else Path(output)
    if path.suffix.lower() != ".png":
        raise ConfigurationError(f"the figure is a PNG file, so --output must end in .png; got {shown(str(path))}.")
    parts = _parts(plan)
    axes = None
    for text, distribution in parts:
        axes = distribution.plot(layers, axes, label=text or title)
    assert axes is not None
    if preset is not None and (band := _band(preset)) is not None:
        low, high = (list(each.rates(layers).values()) for each in band)
        label = "spread between the sources (x or / the geometric standard deviation)"
        axes.fill_between(range(len(low)), low, high, alpha=0.2, label=label)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=7)
    axes.set_title(f"{title if len(title) < 70 else title[:69] + '…'} on {layers} layers", parse_math=False)
    # The purpose is below the figure, so that the figure explains itself when it is passed on.
    if preset is not None:
        axes.figure.supxlabel("\n".join(textwrap.wrap(preset.purpose, 120)), fontsize=7, parse_math=False)
    image = io.BytesIO()
    axes.figure.savefig(image, dpi=150, format="png")  # type: ignore[union-attr]
    path = write_bytes(path, image.getvalue(), instead="Give another --output-file.")
    (console or _console()).print(Text(f"wrote {path}"), soft_wrap=True)
    return path


def _subject(spec: str) -> tuple[str, Preset | None, RatePlan]:
    """Title, preset (None for any other plan), and plan."""
    text = spec.strip()
    if NAME.fullmatch(text) and not text.endswith((".yaml", ".yml")):
        preset = get_preset(text)
        return preset.name, preset, preset.plan
    if text.lower().endswith((".yaml", ".yml")):
        data = read_data(Path(text))
        if isinstance(data, Mapping) and "provenance" in data:
            preset = Preset.from_dict(data, source=text)
            return preset.name, preset, preset.plan
    return text, None, resolve_plan(text)


def _depth(preset: Preset | None) -> int:
    """The number of layers to show a preset on."""
    return preset.provenance.layers[0] if preset is not None and preset.provenance.layers else _LAYERS


def _parts(plan: RatePlan) -> list[tuple[str, LRDistribution]]:
    """(which stage and phase, distribution); the text is empty if there is only one."""
    parts = []
    for number, stage in enumerate(plan.stages, 1):
        where = f"stage {number}" if len(plan.stages) > 1 else ""
        if number > 1 and number == len(plan.stages):
            where += " and later"
        if isinstance(stage, LRDistribution):
            parts.append((where, stage))
            continue
        for index, phase in enumerate(stage.phases, 1):
            length = "the rest" if not phase.lasts else str(phase).rpartition(DURATION)[2]
            parts.append((f"{where}{', ' if where else ''}phase {index} ({length})", phase.distribution))
    return parts


def _band(preset: Preset) -> tuple[LRDistribution, LRDistribution] | None:
    """The distribution with every value divided by, and times, its recorded spread."""
    spread, values = preset.provenance.spread, preset.distribution.values
    if not spread or len(spread) != len(values) or not all(isinstance(value, float) for _, value in values):
        return None
    pairs = list(zip(values, spread, strict=True))
    low = replace(preset.distribution, values=tuple((key, value / factor) for (key, value), factor in pairs))
    return low, replace(preset.distribution, values=tuple((key, value * factor) for (key, value), factor in pairs))


def _provenance_table(preset: Preset) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    if not isinstance(preset.plan.stages[0], LRDistribution) or len(preset.plan.stages) > 1:
        table.add_row("plan", Text(str(preset.plan)))
    if preset.methods:
        table.add_row("methods", Text(" + ".join(preset.methods)))
    if preset.schedule is not None:
        table.add_row("schedule", Text(str(preset.schedule)))
    for key, value in preset.provenance.to_dict().items():
        if key == "evidence":
            for i, line in enumerate(value):
                table.add_row("" if i else key, Text(line))
        else:
            shown_value = ", ".join(map(str, value)) if isinstance(value, list) else value
            table.add_row(key.replace("_", " "), Text("not stated" if shown_value is None else str(shown_value)))
    return table


def _rates_table(distribution: LRDistribution, layers: int, which: str) -> Table:
    """The rates with a bar each, long for high rates; the bars' scale is logarithmic."""
    from math import log

    from rich.table import Table
    from rich.text import Text

    rates = distribution.rates(layers)
    relative = distribution.relative
    kind = "relative" if relative else "absolute"
    title = f"{which}{': ' if which else ''}{kind} rates on {layers} layers"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("group", no_wrap=True)
    table.add_column("x optimizer's rate" if relative else "learning rate", justify="right", no_wrap=True)
    table.add_column("log scale", no_wrap=True, min_width=_BAR)
    positive = [log(rate) for rate in rates.values() if rate > 0]
    for group, rate in rates.items():
        if rate == 0:
            table.add_row(group, "frozen", "")
            continue
        width = max(positive) - min(positive)
        share = (log(rate) - min(positive)) / width if width else 1.0
        table.add_row(group, f"{rate:.3g}", Text("━" * (1 + round(share * (_BAR - 1))), style="cyan"))
    return table


def _kind(plan: RatePlan) -> str:
    kind = "relative" if plan.distributions[0].relative else "absolute"
    return kind if plan.distributions == plan.stages else f"{kind} plan"


def _console() -> Console:
    from lr_dist.cli.terminal import terminal

    return terminal(highlight=False)
