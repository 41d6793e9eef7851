"""The figures of a comparison's page, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lr_dist._distribution.plot import plot_rates
from lr_dist._distribution.text import short as short_number
from lr_dist.report.families import Family, families
from lr_dist.report.rows import spread
from lr_dist.report.standing import Standings
from lr_dist.runs.numbers import number
from lr_dist.runs.pages.figure import PALETTE, css_colour, page_figure, page_svg, rate_spots
from lr_dist.runs.svg import Spot, new_figure, short
from lr_dist.sequence.result import ComparisonResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# On a coloured cell the text stays dark where the page's own text is light.
_BLACK = "#010101"


def rates_figure(result: ComparisonResult) -> str:
    """The learning rate of every group, one line per stage of each arm's rate plan."""
    figure = new_figure(9.5, 4.2)
    axes = figure.subplots()
    drawn: list[Any] = []
    spots: list[Spot] = []
    for entry in result.arms:
        for stage, each in enumerate(entry["stages"]):
            # Arms that differ only in their methods share a line.
            if each["rates"] in drawn:
                continue
            drawn.append(each["rates"])
            name = entry["label"] if len(entry["stages"]) == 1 else f"stage {stage + 1} of {entry['label']}"
            plot_rates(each["rates"], axes, short(name), relative=False)
            spots += rate_spots(axes, each["rates"], name)
    return page_figure(figure, "The rates over depth", spots=spots)


def tradeoff_figure(result: ComparisonResult, standing: Standings) -> tuple[str, list[LegendEntry]]:
    """p_o against p_s, and its legend.

    A point for each arm, with bars of one standard deviation over the seeds; arms that differ in one number are joined
    by a line, the flat rates, which are to be beaten, by a thick one; dotted lines at the majority class. For sequences
    of two tasks or more.
    """
    figure = new_figure(8.0, 4.8)
    axes = figure.subplots()
    done = {summary["arm"]: summary for summary in result.summary if summary["runs"]}
    means = {label: (each["metrics"]["p_s"]["mean"], each["metrics"]["p_o"]["mean"]) for label, each in done.items()}
    line = standing.line.labels if standing.line is not None else ()
    curves = [family for family in families(result.arms) if sum(label in means for label in family.labels) > 1]
    curves = [family for family in curves if not set(family.labels) <= set(line)]
    if standing.line is not None:
        curves.insert(0, standing.line)
    legend: list[LegendEntry] = []
    colour_of: dict[str, str] = {}
    for family in curves:
        is_line = standing.line is not None and family == standing.line
        fresh = [label for label in family.labels if label in means and label not in colour_of]
        colour = PALETTE[len(legend) % len(PALETTE)] if fresh or is_line else "#888888"
        xs, ys = zip(*(means[label] for label in family.labels if label in means), strict=True)
        axes.plot(xs, ys, color=colour, lw=2.5 if is_line else 1.2, zorder=2, alpha=1.0 if fresh else 0.6)
        colour_of.update(dict.fromkeys(fresh, colour))
        if fresh:
            legend.append(LegendEntry(family.name, css_colour(colour), is_line))
    for label in means:
        if label not in colour_of:
            colour_of[label] = PALETTE[len(legend) % len(PALETTE)]
            legend.append(LegendEntry(label, css_colour(colour_of[label]), False))
    spots = []
    for label, (x, y) in means.items():
        metrics = done[label]["metrics"]
        axes.errorbar(x, y, metrics["p_o"]["sd"], metrics["p_s"]["sd"], color=colour_of[label], lw=0.7, alpha=0.5)
        axes.plot([x], [y], "s" if label in line else "o", ms=7, color=colour_of[label], zorder=3)
        text = f"{label}: p_o {spread(metrics['p_o'])}, p_s {spread(metrics['p_s'])}"
        at_equal = standing.of.get(label)
        text = f"{text}; p_o at equal p_s {at_equal.text}" if at_equal and at_equal.value else text
        spots.append(Spot(axes, x, y, text, counted=True))
    _label_strengths(axes, curves, means)
    baselines = [task["baseline"] for task in result.tasks]
    if means:
        _mark_majority(axes, baselines[-1], sum(baselines[:-1]) / (len(baselines) - 1), list(means.values()))
    axes.set_xlabel(f"p_s: score on {short(result.tasks[-1]['name'])}, learned last")
    axes.set_ylabel("p_o: score on the earlier tasks")
    axes.grid(alpha=0.3)
    described = "; ".join(spot.text for spot in spots)
    return page_svg(figure, "p_o against p_s", described, spots=spots), legend


@dataclass(frozen=True)
class LegendEntry:
    """A line of a figure's legend, which the page writes.

    Attributes:
        name: of an arm, or of a family of arms.
        colour: a CSS colour.
        is_line: whether it is the line to beat.
    """

    name: str
    colour: str
    is_line: bool


def _label_strengths(axes: Axes, curves: Sequence[Family], means: Mapping[str, tuple[float, float]]) -> None:
    """Write the number in which the arms of a curve differ beside the first and the last."""
    written = set()
    for family in curves:
        there = [(value, label) for value, label in family.members if label in means]
        for value, label in (there[0], there[-1]):
            if label not in written:
                axes.annotate(
                    short_number(value), means[label], (5, 5), textcoords="offset points", fontsize=7, alpha=0.8
                )
                written.add(label)


def _mark_majority(axes: Axes, last: float, earlier: float, points: Sequence[tuple[float, float]]) -> None:
    """Lines at the majority class's scores, where they are near; far ones would press the arms into a corner."""
    xs, ys = zip(*points, strict=True)
    if min(xs) - last < max(max(xs) - min(xs), 0.02):
        axes.axvline(last, color="0.5", ls=":", lw=1)
    if min(ys) - earlier < max(max(ys) - min(ys), 0.02):
        axes.axhline(earlier, color="0.5", ls=":", lw=1)


def matrix_figures(result: ComparisonResult) -> list[tuple[str, str]]:
    """(label, SVG) of the mean accuracy matrix of each arm, on one colour scale from 0 to 1."""
    return [(summary["arm"], _matrix_figure(result, summary)) for summary in result.summary if summary["runs"]]


def _matrix_figure(result: ComparisonResult, summary: Mapping[str, Any]) -> str:
    names = [short(task["name"]) for task in result.tasks]
    mean, sd = summary["matrix"]["mean"], summary["matrix"]["sd"]
    figure = new_figure(1.6 + 1.15 * len(names), 1.1 + 0.55 * len(mean))
    axes: Axes = figure.subplots()
    axes.imshow(mean, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(mean):
        for j, value in enumerate(row):
            text = number(value) + (f"\n± {number(sd[i][j])}" if summary["runs"] > 1 else "")
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value < 0.6 else _BLACK)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    rows = ["untrained", *(f"after {name}" for name in names)]
    if "start" in result.model:
        rows[:2] = ["start", "start"]
    axes.set_yticks(range(len(mean)), rows, fontsize=8)
    axes.xaxis.tick_top()
    spots = [
        Spot(axes, j, i, f"{rows[i]}: {names[j]} {number(value)}", width=1, height=1)
        for i, row in enumerate(mean)
        for j, value in enumerate(row)
    ]
    return page_svg(figure, f"Accuracy matrix of {summary['arm']}", spots=spots)
