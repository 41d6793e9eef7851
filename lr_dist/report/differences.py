"""Differences from a control, for the terminal and as Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from lr_dist.report.rows import NAMES
from lr_dist.runs.markdown import code
from lr_dist.runs.numbers import ABSENT, signed
from lr_dist.sequence.differences import DIFFERENCES, Difference, Interval


def differences_view(rows: Sequence[Difference], control: str, level: float) -> RenderableType:
    """A table for each arm, for the terminal; a difference is bold if its interval does not contain 0."""
    tables = []
    for arm, arm_rows in itertools.groupby(rows, key=lambda row: row.arm):
        title = f"{escape(arm)} minus {escape(control)}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("sequence")
        for name in DIFFERENCES:
            table.add_column(NAMES[name], justify="right", no_wrap=True)
        for row in arm_rows:
            cells = (_cell(row.metrics.get(name), "[bold]{}[/bold]") for name in DIFFERENCES)
            table.add_row(escape(_name(row)), *cells)
        tables.append(table)
    return Group(*tables, f"[dim]{caption(rows, level)}[/dim]")


def differences_markdown(rows: Sequence[Difference], control: str, level: float) -> str:
    """The same tables in Markdown."""
    names = " | ".join(NAMES[name] for name in DIFFERENCES)
    lines = [f"| sequence | arm, minus {code(control)} | {names} |", "|---|---|" + "---|" * len(DIFFERENCES)]
    for row in rows:
        cells = (_cell(row.metrics.get(name), "**{}**") for name in DIFFERENCES)
        lines.append(f"| {_name(row)} | {code(row.arm)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", caption(rows, level)])


def caption(rows: Sequence[Difference], level: float) -> str:
    """How to read the table."""
    text = (
        f"Mean difference ± half of its {level:.0%} confidence interval (Student's t). One sequence: over its seeds, "
        "paired. All sequences: over their means. Bold: the interval does not contain 0. Less forgetting is better."
    )
    left_out = sum(row.left_out for row in rows if row.sequence is not None)
    return f"{text} {left_out} pair(s) of runs are left out because one of the two diverged." if left_out else text


def _name(row: Difference) -> str:
    # Every sequence has a p_s.
    count = row.metrics["p_s"].n
    return f"{row.sequence} ({count} seed{'s' * (count > 1)})" if row.sequence else f"all {count} sequences"


def _cell(interval: Interval | None, clear: str) -> str:
    if interval is None:
        return ABSENT
    text = signed(interval.mean, interval.half)
    return clear.format(text) if interval.half is not None and abs(interval.mean) > interval.half else text
