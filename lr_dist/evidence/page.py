"""The page of an evidence run: verdict, table, curves; one HTML file that loads nothing."""

from __future__ import annotations

from pathlib import Path

from lr_dist.evidence.summary import Outcome
from lr_dist.evidence.table import NOTE, header, rows, verdict
from lr_dist.extras import require_libraries
from lr_dist.runs.atomic import write_text
from lr_dist.runs.svg import new_figure, short, to_svg


def write_page(outcome: Outcome, path: str | Path) -> Path:
    """Write the page and return its path.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed (extra `report`).
        UnwritableFileError: the page cannot be written.
    """
    require_libraries("report", "jinja2", "matplotlib")
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loaders = ChoiceLoader([PackageLoader("lr_dist.evidence", "."), PackageLoader("lr_dist.report", ".")])
    environment = Environment(loader=loaders, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    html = environment.get_template("evidence.html").render(
        outcome=outcome,
        verdict=verdict(outcome),
        header=header(outcome),
        rows=rows(outcome),
        note=NOTE,
        curves_svg=curves_figure(outcome),
    )
    return write_text(path, html, instead="Give another --output.")


def curves_figure(outcome: Outcome) -> str:
    """p_o against p_s, mean over the held-out sequences: a line for each arm with a curve, a point for the others."""
    figure = new_figure(9.0, 5.0)
    axes = figure.subplots()
    for position, finding in enumerate(outcome.findings):
        color, points = f"C{position % 10}", outcome.curves.get(finding.name, [])
        if len(points) > 1:
            axes.plot([p[1] for p in points], [p[2] for p in points], "-o", color=color, ms=3, lw=1, alpha=0.7)
        marker, size = ("*", 140) if position == 0 else ("o", 45)
        x, y = finding.means["p_s"], finding.means["p_o"]
        axes.scatter(x, y, marker=marker, s=size, color=color, label=short(finding.name), zorder=3)
    axes.set_xlabel("p_s: score on the task learned last")
    axes.set_ylabel("p_o: score on the earlier tasks")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    names = ", ".join(finding.name for finding in outcome.findings)
    return to_svg(figure, "p_o against p_s", f"Retention against learning of {names}")
