"""`lr-dist presets list | show NAME | plot NAME`."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from lr_dist._distribution.sanity import warn_of_rates
from lr_dist.errors import ConfigurationError, shown
from lr_dist.presets import Preset, get_preset, list_presets
from lr_dist.runs.atomic import write_bytes

if TYPE_CHECKING:
    from rich.console import Console

_BAR = 28
# BERT base's.
_LAYERS = 12


def parser() -> ArgumentParser:
    """The command; `nest` adds its subcommands."""
    return ArgumentParser(description="List, show or draw the presets: named distributions with their evidence.")


def nest(parser: ArgumentParser) -> None:
    """Add list, show and plot; jsonargparse needs the outer level first."""
    listing = ArgumentParser(description="List all presets, and the problems of broken ones.")
    show = ArgumentParser(description="Show a preset's purpose, provenance and rates.")
    plot = ArgumentParser(description="Draw a preset's rates over depth into a PNG file.")
    for p in (show, plot):
        p.add_argument("name", type=str, help="Name of the preset.")
        p.add_argument("--layers", type=int, default=_LAYERS, help="Number of layers of the model.")
    plot.add_argument("--output", type=str | None, help="PNG file to write. By default NAME.png.")
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
        output = None if settings.plot.output is None else Path(settings.plot.output)
        plot_command(settings.plot.name, output, settings.plot.layers)
    return 0


def list_command(console: Console | None = None) -> None:
    """Print every preset (name, purpose, kind, source), then the broken ones with the reason."""
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
            table.add_row(name, Text(_kind(entry.preset)), Text(entry.source))
    console.print(table)
    # dict: of two presets with one name each has the same problem.
    for problem in dict.fromkeys(f"{entry.name}: {entry.problem}" for entry in entries if entry.preset is None):
        console.print(Text.assemble(("broken: ", "bold red"), problem), soft_wrap=True)


def show_command(name: str, layers: int = _LAYERS, console: Console | None = None) -> None:
    """Print a preset's purpose, provenance and its rates on `layers` layers.

    Raises:
        UnknownPresetError: no preset of that name.
        LayerCountError: `layers` is not a valid number of layers.
    """
    from rich.table import Table
    from rich.text import Text

    console = console or _console()
    preset = get_preset(name)
    rates = _rates_table(preset, layers)
    console.print(Text(preset.name, style="bold"))
    console.print(Text(preset.purpose))
    console.print()
    provenance = Table.grid(padding=(0, 2))
    provenance.add_column(no_wrap=True, style="dim")
    provenance.add_column(overflow="fold")
    for key, value in preset.provenance.to_dict().items():
        if key == "evidence":
            for i, line in enumerate(value):
                provenance.add_row("" if i else key, Text(line))
        else:
            shown_value = ", ".join(value) if isinstance(value, list) else value
            provenance.add_row(key, Text("not stated" if shown_value is None else str(shown_value)))
    console.print(provenance)
    console.print()
    console.print(rates)
    warn_of_rates(preset.distribution, layers, None, None)


def plot_command(name: str, output: Path | None = None, layers: int = _LAYERS, console: Console | None = None) -> Path:
    """Draw a preset's rates over depth into a PNG file (`output`, or NAME.png) and print where it is.

    Raises:
        UnknownPresetError: no preset of that name.
        ConfigurationError: `output` does not end in .png.
        MissingExtraError: matplotlib is not installed (extra `report`).
        UnwritableFileError: the file cannot be written; an earlier one stays.
    """
    from rich.text import Text

    preset = get_preset(name)
    path = Path(f"{preset.name}.png") if output is None else Path(output)
    if path.suffix.lower() != ".png":
        raise ConfigurationError(f"the figure is a PNG file, so --output must end in .png; got {shown(str(path))}.")
    axes = preset.distribution.plot(layers, label=preset.name)
    axes.set_title(f"{preset.name} on {layers} layers", parse_math=False)
    # The purpose is below the figure, so that the figure explains itself when it is passed on.
    axes.figure.supxlabel("\n".join(textwrap.wrap(preset.purpose, 120)), fontsize=7, parse_math=False)
    image = io.BytesIO()
    axes.figure.savefig(image, dpi=150, format="png")  # type: ignore[union-attr]
    path = write_bytes(path, image.getvalue(), instead="Give another --output.")
    (console or _console()).print(Text(f"wrote {path}"), soft_wrap=True)
    return path


def _rates_table(preset: Preset, layers: int) -> object:
    """The rates with a bar each, long for high rates; the bars' scale is logarithmic."""
    from math import log

    from rich.table import Table
    from rich.text import Text

    rates = preset.distribution.rates(layers)
    relative = preset.distribution.relative
    table = Table(title=f"{_kind(preset)} rates on {layers} layers", title_justify="left")
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


def _kind(preset: Preset) -> str:
    return "relative" if preset.distribution.relative else "absolute"


def _console() -> Console:
    from lr_dist.cli.terminal import terminal

    return terminal(highlight=False)
