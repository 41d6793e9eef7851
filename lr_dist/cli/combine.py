"""`lr-dist combine`: combine the trials of one or more searches into one distribution, written as a preset."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.studies import add_storage_options, load_existing_study
from lr_dist.errors import ConfigurationError
from lr_dist.extras import require_libraries
from lr_dist.runs.redact import redact_command
from lr_dist.search.combining.combine import PAPER_BASE

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lr_dist.search.combining.preset import Combined
    from lr_dist.search.combining.sources import Source


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(
        description="Combine the trials of searches: rank-weighted log mean within a study, geometric mean across "
        "studies; written as a preset with its provenance."
    )
    p.add_argument(
        "sources",
        type=str,
        nargs="+",
        help="Names of studies, or CSV files (exported by lr-dist, or those of the authors of arXiv 2404.01317).",
    )
    add_storage_options(p)
    p.add_argument("--pairs", type=str, nargs="*", default=[], help="Use only these pairs, e.g. sst2>qqp.")
    p.add_argument(
        "--setting",
        type=Literal["taskshift", "datashift"] | None,
        help="Use only this experiment of the authors' trials.",
    )
    p.add_argument(
        "--base",
        type=float,
        default=PAPER_BASE,
        help="Weight of each rank relative to the next; 1 gives all the same weight.",
    )
    p.add_argument("--without-flat", action="store_true", help="Leave out trials with one rate everywhere.")
    p.add_argument(
        "--output-file",
        type=str | None,
        help="YAML file of the preset to write; the file's name without .yaml is the preset's name.",
    )
    return p


def run(settings: Namespace) -> int:
    """Combine, print the rates, write the preset."""
    require_libraries("search", "optuna")
    from lr_dist.cli.terminal import terminal
    from lr_dist.reading import expanded
    from lr_dist.runs.atomic import write_text
    from lr_dist.search.combining.preset import combine_sources

    sources = [source for name in settings.sources for source in _read(name, settings)]
    if settings.pairs:
        missing = [pair for pair in settings.pairs if pair not in [source.name for source in sources]]
        if missing:
            there = ", ".join(source.name for source in sources)
            raise ConfigurationError(f"No trials of {', '.join(missing)}; there are: {there}.")
        sources = [source for source in sources if source.name in settings.pairs]
    if settings.without_flat:
        sources = [source.without_flat() for source in sources]
    output = None if settings.output_file is None else expanded(settings.output_file)
    command = redact_command(["lr-dist", *sys.argv[1:]])
    combined = combine_sources(sources, output.stem if output else "combined", base=settings.base, command=command)
    console = terminal()
    console.print(table(combined))
    console.print(f"Distribution: {combined.preset.distribution}", soft_wrap=True, markup=False)
    if output is not None:
        write_text(output, combined.preset.to_yaml(), instead="Give another --output-file.")
        console.print(f"Preset: {output}", soft_wrap=True, markup=False)
    return 0


def table(combined: Combined) -> RenderableType:
    """The combined rate of each group, its spread between the sources, and each source's own rate."""
    from rich.markup import escape
    from rich.table import Table

    combination = combined.combination
    shown = Table(title=f"Combined, base {combined.base:g}", title_justify="left")
    shown.add_column("group")
    shown.add_column("rate", justify="right")
    if combination.spread is not None:
        shown.add_column("spread", justify="right")
    for name, trials in combination.trials.items():
        shown.add_column(escape(f"{name} ({trials})"), justify="right")
    for group, rate in combination.rates.items():
        spread = [] if combination.spread is None else [f"x/ {combination.spread[group]:.2f}"]
        each = [f"{rates[group]:.3g}" for rates in combination.by_pair.values()]
        shown.add_row(group, f"{rate:.3g}", *spread, *each)
    return shown


def _read(name: str, settings: Namespace) -> list[Source]:
    from lr_dist.search.combining.sources import from_csv, from_study

    if name.endswith(".csv"):
        return from_csv(name, settings.setting)
    return [from_study(load_existing_study(settings.storage, settings.output, name))]
