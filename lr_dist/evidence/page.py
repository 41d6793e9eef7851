"""The page of an evidence run: verdict, table, curves; one HTML file that loads nothing."""

from __future__ import annotations

from pathlib import Path

from lr_dist.evidence.summary import Outcome
from lr_dist.evidence.table import NOTE, header, rows, verdict
from lr_dist.extras import require_libraries
from lr_dist.runs.atomic import write_text
from lr_dist.runs.numbers import number
from lr_dist.runs.pages.figure import PALETTE, page_figure
from lr_dist.runs.pages.render import render
from lr_dist.runs.svg import Spot, new_figure, short

_SHAPES = ("o", "s", "D")


def write_page(outcome: Outcome, path: str | Path) -> Path:
    """Write the page and return its path.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed (extra `report`).
        UnwritableFileError: the page cannot be written.
    """
    require_libraries("report", "jinja2", "matplotlib")
    html = render(
        "lr_dist.evidence",
        "evidence.html",
        outcome=outcome,
        verdict=verdict(outcome),
        header=header(outcome),
        rows=rows(outcome),
        note=NOTE,
        curves=curves_figure(outcome),
        arms=_arms(outcome),
        protocol={key: value for key, value in outcome.config.items() if key != "contenders"},
    )
    return write_text(path, html, instead="Give another --output.")


def curves_figure(outcome: Outcome) -> str:
    """p_o against p_s, mean over the held-out sequences: a line for each arm with a curve, a point for the others."""
    figure = new_figure(9.0, 5.0)
    axes = figure.subplots()
    spots = []
    for position, finding in enumerate(outcome.findings):
        # Past ten arms the colours begin again, with another shape.
        colour, shape = PALETTE[position % len(PALETTE)], _SHAPES[position // len(PALETTE) % len(_SHAPES)]
        points = outcome.curves.get(finding.name, [])
        if len(points) > 1:
            axes.plot([p[1] for p in points], [p[2] for p in points], "-o", color=colour, ms=3, lw=1, alpha=0.7)
            for setting, p_s, p_o, runs in points:
                where = f"p_o {number(p_o)}, p_s {number(p_s)}, {runs} runs"
                spots.append(Spot(axes, p_s, p_o, f"curve of {finding.name} at {setting}: {where}"))
        x, y = finding.means["p_s"], finding.means["p_o"]
        marker, size = ("*", 13) if position == 0 else (shape, 7)
        axes.plot([x], [y], marker, ls="", ms=size, color=colour, label=short(finding.name), zorder=3)
        text = f"{finding.name} ({finding.text}): p_o {number(y)}, p_s {number(x)}"
        spots.append(Spot(axes, x, y, text, counted=True))
    axes.set_xlabel("p_s: score on the task learned last")
    axes.set_ylabel("p_o: score on the earlier tasks")
    axes.grid(alpha=0.3)
    names = ", ".join(finding.name for finding in outcome.findings)
    return page_figure(figure, "p_o against p_s", f"Retention against learning of {names}", spots=spots)


def _arms(outcome: Outcome) -> list[tuple[str, ...]]:
    """Every arm: its text, what was tried for its settings, what was chosen, and its score on dev."""
    rows: list[tuple[str, ...]] = []
    for name, arm in outcome.config["contenders"].items():
        choice = outcome.choices.get(name)
        tried = "; ".join(f"{setting}: {', '.join(map(str, values))}" for setting, values in arm["settings"].items())
        chosen = ("", "") if choice is None else (choice.text, number(choice.score))
        rows.append((name, arm["text"], tried, *chosen))
    return rows
