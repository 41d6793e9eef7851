"""`lr-dist report`: print a result file's table, write its page, or compare several results with a control."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from lr_dist.extras import require_libraries

if TYPE_CHECKING:
    from lr_dist.sequence.result import ComparisonResult


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(
        description="Print the table of each result file and write its HTML report; with --against, print how far the "
        "distributions of all results are from one of them instead."
    )
    p.add_argument("results", type=str, nargs="+", help="Files result.json of one or more comparisons.")
    p.add_argument(
        "--output-file", type=str | None, help="HTML file to write. By default report.html next to the result."
    )
    p.add_argument("--markdown", type=bool, default=False, help="Print the table as Markdown and write no page.")
    p.add_argument(
        "--against", type=str | None, help="Control, e.g. flat:lr=1e-4: print the differences from it instead."
    )
    p.add_argument("--level", type=float, default=0.95, help="Level of the confidence intervals for --against.")
    return p


def run(settings: Namespace) -> int:
    """Print the tables and write the pages."""
    if settings.against is not None:
        require_libraries("report", "scipy")
    elif not settings.markdown:
        require_libraries("report", "jinja2", "matplotlib", "scipy")
    from lr_dist.cli.terminal import clean, terminal
    from lr_dist.errors import ConfigurationError
    from lr_dist.reading import expanded
    from lr_dist.report.markdown import markdown_table
    from lr_dist.report.page import write_report
    from lr_dist.report.terminal import print_comparison

    paths = [expanded(result) for result in settings.results]
    results = [_load(path) for path in paths]
    if settings.against is not None:
        return _print_differences(results, settings)
    if settings.output_file is not None and len(results) > 1:
        raise ConfigurationError(f"--output-file names one page, but there are {len(results)} results. Leave it out.")
    console = terminal()
    for path, result in zip(paths, results, strict=True):
        if settings.markdown:
            print(clean(markdown_table(result)))
            continue
        print_comparison(result, console)
        page = write_report(result, settings.output_file or path.with_name("report.html"))
        console.print(f"Report: {page}", soft_wrap=True, markup=False)
    return 0


def _print_differences(results: list[ComparisonResult], settings: Namespace) -> int:
    from lr_dist.cli.terminal import clean, terminal
    from lr_dist.report.differences import differences_markdown, differences_view
    from lr_dist.sequence.differences import differences

    rows = differences(results, settings.against, settings.level)
    if settings.markdown:
        print(clean(differences_markdown(rows, settings.against, settings.level)))
    else:
        terminal().print(differences_view(rows, settings.against, settings.level))
    return 0


def _load(path: Path) -> ComparisonResult:
    from lr_dist.errors import InvalidResultError
    from lr_dist.reading import is_file
    from lr_dist.sequence.result import ComparisonResult

    if not is_file(path):
        raise InvalidResultError(f"There is no file {path}. Give the result.json that `lr-dist compare` wrote.")
    return ComparisonResult.load(path)
