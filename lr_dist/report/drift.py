"""Heat maps of what `compare --drift true` measured: layers by stages."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lr_dist.checks import is_number
from lr_dist.errors import InvalidResultError
from lr_dist.runs.numbers import number
from lr_dist.runs.pages.figure import page_svg
from lr_dist.runs.svg import Spot, new_figure, short
from lr_dist.sequence.result import ComparisonResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLACK = "#010101"
Cells = list[list[float | None]]


def drift_figures(result: ComparisonResult) -> list[tuple[str, str]]:
    """(label, SVG) of each arm that was measured: how far each layer went in each stage, the mean over the seeds, on
    one colour scale for all arms; the head is the top row.

    Raises:
        InvalidResultError: a result file that was altered by hand.
    """
    return _figures(result, lambda stage: stage["drift"], "viridis", lambda value: f"{value:.2g}", symmetric=False)


def change_figures(result: ComparisonResult) -> list[tuple[str, str]]:
    """(label, SVG) of each arm that was measured: 1 - CKA of each layer's hidden states on the texts of earlier tasks.

    Raises:
        InvalidResultError: a result file that was altered by hand.
    """

    def changed(stage: Mapping[str, Any]) -> dict[str, float]:
        return {layer: 1 - value for layer, value in stage["cka"].items()}

    return _figures(result, changed, "viridis", lambda value: f"{value:.2g}", symmetric=False)


def probe_figures(result: ComparisonResult) -> list[tuple[str, str]]:
    """(label, SVG) of each arm that was probed: what p_o gains after each stage if one layer is put back.

    Raises:
        InvalidResultError: a result file that was altered by hand.
    """
    return _figures(
        result, lambda stage: stage["probe"]["put_back"], "RdBu", lambda value: number(value), symmetric=True
    )


def _figures(
    result: ComparisonResult,
    values: Callable[[Mapping[str, Any]], Mapping[str, float]],
    colours: str,
    text: Callable[[float], str],
    *,
    symmetric: bool,
) -> list[tuple[str, str]]:
    means: list[tuple[str, list[str], list[int], Cells]] = []
    for entry in result.arms:
        runs = [_stages(run) for run in result.runs if run["arm"] == entry["label"] and run["status"] == "done"]
        runs = [run for run in runs if run]
        try:
            read = [[values(stage) if _has(values, stage) else {} for stage in run] for run in runs]
            layers = list(dict.fromkeys(layer for run in read for stage in run for layer in stage))
            columns = [i for i in range(len(read[0]) if read else 0) if any(run[i] for run in read)]
            cells = [[_mean([run[i][layer] for run in read if layer in run[i]]) for i in columns] for layer in layers]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise InvalidResultError(
                f"The drift of {entry['label']} in this result file is not what a comparison writes ({error!r}): the "
                "file was altered or cut. Restore it, or run the comparison again."
            ) from error
        if layers and columns:
            means.append((entry["label"], layers, columns, cells))
    every = [abs(value) for _, _, _, cells in means for row in cells for value in row if value is not None]
    most = max(every, default=0.0) or 1.0
    names = [task["name"] for task in result.tasks]
    return [
        (label, _figure([names[i] for i in columns], layers, cells, colours, text, -most if symmetric else 0.0, most))
        for label, layers, columns, cells in means
    ]


def _stages(run: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    measured = run.get("measures", {})
    stages = measured.get("drift", []) if isinstance(measured, Mapping) else []
    return stages if isinstance(stages, list) else []


def _has(values: Callable[[Mapping[str, Any]], Any], stage: Mapping[str, Any]) -> bool:
    """Whether this stage was measured: the probe leaves out the first one."""
    try:
        return bool(values(stage))
    except KeyError:
        return False


def _mean(values: Sequence[Any]) -> float | None:
    if not all(is_number(value) for value in values):
        raise ValueError(f"{values} are not numbers")
    return statistics.fmean(values) if values else None


def _figure(
    tasks: Sequence[str],
    layers: Sequence[str],
    cells: Cells,
    colours: str,
    text: Callable[[float], str],
    least: float,
    most: float,
) -> str:
    figure = new_figure(1.6 + 1.15 * len(tasks), 0.8 + 0.27 * len(layers))
    axes: Axes = figure.subplots()
    # NaN is left blank: a layer that this stage has no number for.
    filled = [[float("nan") if value is None else value for value in row] for row in cells]
    axes.imshow(filled, cmap=colours, vmin=least, vmax=most, aspect="auto", origin="lower")
    middle = (least + most) / 2
    for i, row in enumerate(cells):
        for j, value in enumerate(row):
            if value is not None:
                far = abs(value - middle) > 0.6 * (most - middle) if least < 0 else value < 0.6 * most
                axes.text(j, i, text(value), ha="center", va="center", fontsize=7, color="white" if far else _BLACK)
    axes.set_xticks(range(len(tasks)), [f"in {short(name)}" for name in tasks], fontsize=8)
    axes.set_yticks(range(len(layers)), list(layers), fontsize=7)
    axes.xaxis.tick_top()
    spots = [
        Spot(axes, j, i, f"{layers[i]} in {tasks[j]}: {value:.3g}", width=1, height=1)
        for i, row in enumerate(cells)
        for j, value in enumerate(row)
        if value is not None
    ]
    return page_svg(figure, "By layer and task", spots=spots)
