"""A comparison's table as Markdown, for a README or an issue."""

from __future__ import annotations

from lr_dist.report.rows import NAMES, columns, table_rows, task_lines
from lr_dist.runs.markdown import code
from lr_dist.sequence.result import ComparisonResult


def markdown_table(result: ComparisonResult) -> str:
    """The tasks and the table; in brackets, scores rescaled so that 0 = majority class and 1 = perfect."""
    names = columns(result, wide=False)
    header = ["arm", "runs", *(NAMES[name] for name in names)]
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---|" * len(names)]
    for row in table_rows(result):
        label = code(row.label) if row.runs else row.label
        label += "".join(f"; **{name} not learned**" for name in row.not_learned)
        cells = (f"{row.cells[name][0]} ({row.cells[name][1]})" for name in names)
        lines.append("| " + " | ".join([label, row.runs, *cells]) + " |")
    return "\n".join([*(f"- {line}" for line in task_lines(result)), "", *lines])
