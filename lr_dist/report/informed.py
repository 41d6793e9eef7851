"""The result of `lr-dist informed` as a table, in words, and as a self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lr_dist.extras import require_libraries
from lr_dist.knowledge.informed.config import INFORMED, MIXED, NONE
from lr_dist.knowledge.informed.result import InformedResult
from lr_dist.runs.atomic import write_text
from lr_dist.runs.numbers import number, signed
from lr_dist.runs.pages.figure import PALETTE, page_figure
from lr_dist.runs.pages.render import render
from lr_dist.runs.svg import Spot, new_figure, short
from lr_dist.sequence.environment import versions_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

HEADER = ("arm", "examples", "runs", "score", "minus none", "minus mixed", "letters noisy", "words dropped", "steps")
NOTE = (
    "Mean ± standard deviation over draws. Differences are paired by draw, ± half of the 95% interval (Student's t). "
    "Letters noisy, words dropped: score on test texts with such errors. Steps: on the task, until the mean curve on "
    "dev is where that of none ends; the first stage's steps are not counted."
)


def rows(result: InformedResult) -> list[tuple[str, ...]]:
    """A row for each arm (or part) and limit, in the columns of `HEADER`, by limit."""
    ordered = sorted(result.summary, key=lambda cell: cell["limit"])
    return [_row(cell) for cell in ordered]


def _row(cell: Mapping[str, Any]) -> tuple[str, ...]:
    spread = f" ± {number(cell['sd'])}" if cell["sd"] is not None else ""
    noise = cell["noise"]
    return (
        cell["label"],
        f"{cell['limit']:,}",
        str(cell["n"]),
        number(cell["mean"]) + spread,
        _difference(cell, NONE),
        _difference(cell, MIXED),
        number(noise.get("characters")),
        number(noise.get("words")),
        "n/a" if not cell["curve"] else "never" if cell["reached"] is None else str(cell["reached"]),
    )


def _difference(cell: Mapping[str, Any], other: str) -> str:
    difference = cell["against"].get(other)
    if difference is None:
        return ""
    return signed(difference["mean"], difference["half"])


def verdict(result: InformedResult) -> str:
    """What the prototypes brought, at each limit, in words."""
    parts = []
    for other, name in ((NONE, "no prototypes"), (MIXED, "prototypes in the training set")):
        said = []
        for cell in sorted(result.summary, key=lambda cell: cell["limit"]):
            difference = cell["against"].get(other)
            if cell["label"] == INFORMED and difference is not None:
                half = difference["half"]
                clear = half is not None and abs(difference["mean"]) > half
                said.append(
                    f"{_difference(cell, other)} with {cell['limit']:,} examples" + ("" if clear else " (not clear)")
                )
        if said:
            parts.append(f"Informed pre-training against {name}: {'; '.join(said)}.")
    zero_shot = [cell["zero_shot"] for cell in result.summary if cell["label"] == INFORMED and cell["zero_shot"]]
    if zero_shot:
        parts.append(f"The prototypes alone, without an example of the task, score {number(zero_shot[0])}.")
    at_end = sorted({(choice.arm, choice.limit) for choice in result.choices if choice.at_end})
    if at_end:
        listed = ", ".join(f"{arm} with {limit:,}" for arm, limit in at_end)
        parts.append(
            f"The chosen rate is the lowest or highest that was tried for {listed}: a better one may lie beyond."
        )
    if len(result.runs) < result.planned_runs:
        parts.append(f"{len(result.runs)} of {result.planned_runs} runs are finished, so this is preliminary.")
    return " ".join(parts)


def terminal_table(result: InformedResult) -> Table:
    """A rich table."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{result.task['name']}, {result.task['metric']}", box=None, padding=(0, 2, 0, 0))
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold", no_wrap=index == 0)
    for row in rows(result):
        table.add_row(*map(escape, row))
    return table


def write_informed(result: InformedResult, path: str | Path) -> Path:
    """Write the page and return its path.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed (extra `report`).
        UnwritableFileError: the page cannot be written.
    """
    require_libraries("report", "jinja2", "matplotlib")
    html = render(
        "lr_dist.report",
        "informed.html",
        result=result,
        verdict=verdict(result),
        header=HEADER,
        rows=rows(result),
        note=NOTE,
        sizes=sizes_figure(result),
        curves=[(f"{limit:,} examples", figure) for limit, figure in curve_figures(result)],
        parts=parts_figure(result),
        choices=[
            (
                choice.arm,
                f"{choice.limit:,}",
                choice.rates + (" (at an end)" if choice.at_end else ""),
                choice.stage_rates or "",
                number(choice.score),
                choice.tried,
            )
            for choice in result.choices
        ],
        task={f"task: {key}": value for key, value in result.task.items()},
        versions=versions_text(result.environment),
    )
    return write_text(path, html, instead="Give another --output.")


def sizes_figure(result: InformedResult) -> str:
    """Score by number of examples: a line for each arm, with one standard deviation."""
    figure = new_figure(8.0, 4.2)
    axes: Axes = figure.subplots()
    spots: list[Spot] = []
    labels = list(dict.fromkeys(cell["label"] for cell in result.summary if ": " not in cell["label"]))
    for index, label in enumerate(labels):
        cells = sorted((c for c in result.summary if c["label"] == label and c["n"]), key=lambda c: c["limit"])
        if not cells:
            continue
        places = [cell["limit"] * 1.02**index for cell in cells]  # beside each other
        for place, cell in zip(places, cells, strict=True):
            spread = f" ± {number(cell['sd'])}" if cell["sd"] is not None else ""
            text = f"{label}, {cell['limit']:,} examples: {number(cell['mean'])}{spread}"
            spots.append(Spot(axes, place, cell["mean"], text, counted=True))
        axes.errorbar(
            places,
            [cell["mean"] for cell in cells],
            [cell["sd"] or 0.0 for cell in cells],
            fmt="-o",
            ms=4,
            lw=1.2,
            elinewidth=0.7,
            color=PALETTE[index % len(PALETTE)],
            label=short(label),
        )
    axes.axhline(result.task["baseline"], color="0.5", ls=":", lw=1)
    axes.set_xscale("log")
    limits = sorted({cell["limit"] for cell in result.summary})
    axes.set_xticks(limits, [f"{limit:,}" for limit in limits])
    axes.minorticks_off()
    axes.set_xlabel("training examples")
    axes.set_ylabel(result.task["metric"])
    axes.grid(alpha=0.3)
    return page_figure(figure, "Score by number of training examples", verdict(result), spots=spots)


def curve_figures(result: InformedResult) -> list[tuple[int, str]]:
    """For each limit, the score on dev over the steps on the task."""
    figures = []
    for limit in sorted({cell["limit"] for cell in result.summary}):
        cells = [
            c for c in result.summary if c["limit"] == limit and c["curve"] and c["label"] in (NONE, INFORMED, MIXED)
        ]
        if not cells:
            continue
        figure = new_figure(5.0, 3.2)
        axes: Axes = figure.subplots()
        spots: list[Spot] = []
        for index, cell in enumerate(cells):
            steps, scores = zip(*cell["curve"], strict=True)
            axes.plot(steps, scores, "-o", ms=3, lw=1.2, color=PALETTE[index], label=short(cell["label"]))
            spots += [
                Spot(axes, step, score, f"{cell['label']}, step {step}: {number(score)}")
                for step, score in cell["curve"]
            ]
        axes.set_xlabel("steps on the task")
        axes.set_ylabel(f"{result.task['metric']} on dev")
        axes.grid(alpha=0.3)
        figures.append((limit, page_figure(figure, f"Learning curves with {limit} examples", spots=spots)))
    return figures


def parts_figure(result: InformedResult) -> str:
    """The gain over no prototypes of each part that is carried over alone; "" without parts."""
    cells = [cell for cell in result.summary if cell["label"].startswith(INFORMED) and NONE in cell["against"]]
    labels = list(dict.fromkeys(cell["label"] for cell in cells))
    if len(labels) < 2:
        return ""
    limits = sorted({cell["limit"] for cell in cells})
    figure = new_figure(8.0, 1.2 + 0.45 * len(labels))
    axes: Axes = figure.subplots()
    spots: list[Spot] = []
    for index, limit in enumerate(limits):
        here = {cell["label"]: cell["against"][NONE] for cell in cells if cell["limit"] == limit}
        places = [labels.index(label) + 0.6 * (index - (len(limits) - 1) / 2) / len(limits) for label in here]
        for place, (label, each) in zip(places, here.items(), strict=True):
            said = f"{label}, {limit:,} examples: {signed(each['mean'], each['half'])}"
            spots.append(Spot(axes, each["mean"], place, said))
        axes.errorbar(
            [each["mean"] for each in here.values()],
            places,
            xerr=[each["half"] or 0.0 for each in here.values()],
            fmt="o",
            ms=4,
            lw=1,
            color=PALETTE[index % len(PALETTE)],
            label=f"{limit:,} examples",
        )
    axes.axvline(0, color="0.5", lw=1)
    axes.set_yticks(range(len(labels)), [short(label) for label in labels], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{result.task['metric']} minus that of no prototypes")
    axes.grid(alpha=0.3)
    return page_figure(figure, "Which part carries the gain", spots=spots)
