"""A comparison's table in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from lr_dist.report.headline import headline
from lr_dist.report.rows import NAMES, columns, table_rows, task_lines
from lr_dist.report.standing import BETTER, WORSE, paragraph, standings
from lr_dist.sequence.result import ComparisonResult

_STYLES = {BETTER: "[bold green]{}[/bold green]", WORSE: "[red]{}[/red]"}


def print_comparison(result: ComparisonResult, console: Console) -> None:
    """Print the tasks, the table and its caption."""
    console.print(comparison_view(result, wide=console.width >= 110))


def comparison_view(result: ComparisonResult, *, wide: bool = True) -> RenderableType:
    """The tasks, the table and its caption, as one rich renderable."""
    title = escape(f"{' > '.join(task['name'] for task in result.tasks)} with {result.model['name']}")
    table = Table(title=title, caption=_caption(result), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("arm", overflow="fold")
    standing = standings(result)
    rows = table_rows(result, standing)
    # Only if the numbers of runs differ: in 80 columns, the arms' labels need the space.
    differing_runs = any(row.runs != str(len(result.config["seeds"])) for row in rows[:-1])
    if differing_runs:
        table.add_column("runs", justify="right")
    names = columns(result, wide=wide)
    if standing.line is not None and not wide:
        names.remove("average_accuracy")
    for name in names:
        table.add_column(NAMES[name], justify="right")
    if standing.line is not None:
        table.add_column("p_o at\nequal p_s", justify="right")
    if wide:
        table.add_column("training", justify="right")
        table.add_column("kept", justify="right")
    for row in rows:
        missed = [f"[red]{escape(name)} not learned[/red]" for name in row.not_learned]
        table.add_row(
            "\n".join([escape(row.label), *missed]),
            *([row.runs] if differing_runs else []),
            *(f"{row.cells[name][0]}\n[dim]{row.cells[name][1]}[/dim]" for name in names),
            *([_STYLES.get(row.kind, "{}").format(row.at_equal)] if standing.line is not None else []),
            *([row.seconds, row.kept] if wide else []),
            end_section=row is rows[-2],
        )
    verdict = paragraph(result, standing) if any(summary["runs"] for summary in result.summary) else ""
    said = [escape(text) for text in (headline(result, standing), verdict) if text]
    return Group(*(f"[dim]{escape(line)}[/dim]" for line in task_lines(result)), table, *said)


def _caption(result: ComparisonResult) -> str:
    first, last = result.tasks[0]["name"], result.tasks[-1]["name"]
    old = first if len(result.tasks) == 2 else "the earlier tasks"
    seeds = len(result.config["seeds"])
    retained = f"p_o: score on {escape(old)} after learning {escape(last)}; " if len(result.tasks) > 1 else ""
    lost = "nats lost: log likelihood of the text, per token, that a refitted head cannot get back. "
    return (
        f"{retained}p_s: score on {escape(last)}. {lost if 'retention_lost' in columns(result) else ''}"
        f"Second line: 0 = majority class, 1 = perfect. Mean ± standard deviation over {seeds} seed(s)."
    )
