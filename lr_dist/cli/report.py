"""`lr-dist report`: the table and the page of a result file again."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lr_dist.extras import require_extras


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(description="Print the table of a result file and write its HTML report.")
    p.add_argument("result", type=str, help="a result.json")
    p.add_argument("--output", type=str | None, help="the page (default: report.html beside it)")
    p.add_argument("--markdown", type=bool, default=False, help="print the table as Markdown instead, write no page")
    return p


def run(settings: Namespace) -> int:
    """Print and write."""
    require_extras("report")
    from rich.console import Console

    from lr_dist.errors import InvalidResultError
    from lr_dist.report.markdown import markdown_table
    from lr_dist.report.page import write_report
    from lr_dist.report.terminal import print_comparison
    from lr_dist.sequence.result import ComparisonResult

    path = Path(settings.result)
    if not path.is_file():
        raise InvalidResultError(f"There is no file {path}. Give the result.json that `lr-dist compare` wrote.")
    result = ComparisonResult.load(path)
    if settings.markdown:
        print(markdown_table(result))
        return 0
    console = Console()
    print_comparison(result, console)
    page = write_report(result, settings.output or path.with_name("report.html"))
    console.print(f"Report: {page}", soft_wrap=True)
    return 0
