"""The figures of a comparison's page, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lr_dist._distribution.plot import plot_rates
from lr_dist.runs.numbers import number
from lr_dist.runs.svg import new_figure, short, to_svg
from lr_dist.sequence.result import ComparisonResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rates_figure(result: ComparisonResult) -> str:
    """The learning rate of every group, one line per stage of each arm's rate plan."""
    figure = new_figure(9.5, 4.2)
    axes = figure.subplots()
    drawn: list[Any] = []
    for entry in result.arms:
        for stage, each in enumerate(entry["stages"]):
            # Arms that differ only in their methods share a line.
            if each["rates"] in drawn:
                continue
            drawn.append(each["rates"])
            name = entry["label"] if len(entry["stages"]) == 1 else f"stage {stage + 1} of {entry['label']}"
            plot_rates(each["rates"], axes, short(name), relative=False)
    figure.legend(loc="outside right upper", fontsize=8)
    return to_svg(figure)


def tradeoff_figure(result: ComparisonResult) -> str:
    """p_o against p_s: one point per arm with bars of one standard deviation, and lines at the majority class."""
    figure = new_figure(9.5, 4.6)
    axes = figure.subplots()
    for position, summary in enumerate(result.summary):
        if not summary["runs"]:
            continue
        old, new = summary["metrics"]["p_o"], summary["metrics"]["p_s"]
        axes.errorbar(
            new["mean"],
            old["mean"],
            xerr=new["sd"],
            yerr=old["sd"],
            fmt="o",
            color=f"C{position}",
            capsize=3,
            label=short(summary["arm"]),
        )
    baselines = [task["baseline"] for task in result.tasks]
    axes.axvline(baselines[-1], color="0.5", ls=":", lw=1)
    axes.axhline(sum(baselines[:-1]) / (len(baselines) - 1), color="0.5", ls=":", lw=1, label="majority class")
    axes.set_xlabel(f"p_s: score on {short(result.tasks[-1]['name'])}, learned last")
    axes.set_ylabel("p_o: score on the earlier tasks")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return to_svg(figure)


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
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value < 0.6 else "black")
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(mean)), ["untrained", *(f"after {name}" for name in names)], fontsize=8)
    axes.xaxis.tick_top()
    return to_svg(figure)
