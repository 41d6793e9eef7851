"""A self-contained HTML page from a result file; it loads nothing from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lr_dist.extras import require_libraries
from lr_dist.report.drift import change_figures, drift_figures, probe_figures
from lr_dist.report.figures import matrix_figures, rates_figure, tradeoff_figure
from lr_dist.report.headline import headline
from lr_dist.report.rows import NAMES, columns, table_rows, task_lines
from lr_dist.report.standing import paragraph, standings
from lr_dist.runs.atomic import write_text
from lr_dist.runs.pages.render import render
from lr_dist.sequence.environment import versions_text
from lr_dist.sequence.result import ComparisonResult


def write_report(result: ComparisonResult, path: str | Path) -> Path:
    """Write the page of a comparison and return its path.

    Raises:
        MissingExtraError: jinja2, matplotlib or scipy is not installed (extra `report`).
        UnwritableFileError: the page cannot be written; an existing file is kept.
    """
    return write_text(path, render_report(result), instead="Give another --output or --output-file.")


def render_report(result: ComparisonResult) -> str:
    """The page's HTML; all text from the result is escaped.

    Raises:
        InvalidResultError: a measured drift that was altered by hand.
    """
    require_libraries("report", "jinja2", "matplotlib", "scipy")
    standing = standings(result)
    # A single task has no p_o to draw.
    tradeoff, legend = tradeoff_figure(result, standing) if len(result.tasks) > 1 else ("", [])
    has_runs = any(summary["runs"] for summary in result.summary)
    return render(
        "lr_dist.report",
        "compare.html",
        result=result,
        names=[task["name"] for task in result.tasks],
        task_lines=task_lines(result),
        columns=[(name, NAMES[name]) for name in columns(result)],
        rows=table_rows(result, standing),
        standing=standing,
        headline=headline(result, standing),
        verdict=paragraph(result, standing) if has_runs else "",
        rates_svg=rates_figure(result),
        tradeoff_svg=tradeoff if has_runs else "",
        legend=legend,
        matrices=matrix_figures(result),
        drifts=drift_figures(result),
        changes=change_figures(result),
        probes=probe_figures(result),
        diverged=[run for run in result.runs if run["status"] == "diverged"],
        about=_about(result),
    )


def _about(result: ComparisonResult) -> dict[str, Any]:
    """What the result depends on beside the command's options."""
    data = {f"data of {task['name']}": task["fingerprint"][:16] for task in result.tasks}
    rest = {key: value for key, value in result.environment.items() if key not in ("versions", "precision")}
    precision = result.environment.get("precision")
    chosen = {"precision chosen": f"{precision['chosen']} ({precision['reason']})"} if precision else {}
    return {
        "weights": result.model["fingerprint"][:16],
        **data,
        **rest,
        **chosen,
        "versions": versions_text(result.environment),
    }
