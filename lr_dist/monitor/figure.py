"""The figure of a fit: scores of the old tasks, and how far the layers have moved."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lr_dist.errors import ConfigurationError, shown
from lr_dist.monitor.measurement import Measurement
from lr_dist.runs.atomic import write_bytes, write_text
from lr_dist.runs.svg import Spot, new_figure, short, to_svg


def plot(path: str | Path, history: Sequence[Measurement], best_step: int | None = None) -> Path:
    """Write the figure; the suffix of `path` says in which format.

    Args:
        path: `.svg`, or another format that matplotlib writes (`.png`, `.pdf`).
        history: the measurements, in order.
        best_step: where the weights were kept; marked.

    Raises:
        ConfigurationError: nothing was measured, or a suffix that matplotlib does not know.
        MissingExtraError: matplotlib is not installed (extra `report`).
        UnwritableFileError: the file cannot be written.
    """
    if not history:
        raise ConfigurationError("There is nothing to draw: the monitor has not measured yet. Call plot after the fit.")
    figure = new_figure(9.5, 6.0 if history[0].moved else 3.4)
    suffix = Path(path).suffix.lower().removeprefix(".")
    known = figure.canvas.get_supported_filetypes()
    if suffix not in known:
        raise ConfigurationError(f"{shown(str(path))} must end with one of {', '.join(f'.{name}' for name in known)}.")
    panels = figure.subplots(2 if history[0].moved else 1, sharex=True, squeeze=False)[:, 0]
    _draw_scores(panels[0], history, best_step)
    if history[0].moved:
        _draw_movement(panels[1], history)
    panels[-1].set_xlabel("steps")
    if suffix == "svg":
        last = history[-1]
        losses = ", ".join(f"{task}: {lost:+.3f}" for task, lost in last.forgotten.items())
        title, spots = "Scores of old tasks over steps", _spots(panels, history)
        return write_text(path, to_svg(figure, title, f"Forgotten at step {last.step}: {losses}", spots=spots))
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix)
    return write_bytes(path, buffer.getvalue())


def _spots(panels: Any, history: Sequence[Measurement]) -> list[Spot]:
    """What the mouse shows in a browser: the value of each point."""
    scores = [
        Spot(panels[0], row.step, score, f"{task}, step {row.step}: {score:.3f}")
        for row in history
        for task, score in (*row.old.items(), *row.new.items())
    ]
    moved = [
        Spot(panels[-1], row.step, far, f"{layer}, step {row.step}: {far:.3g}")
        for row in history
        for layer, far in row.moved.items()
    ]
    return scores + moved


def _draw_scores(axes, history: Sequence[Measurement], best_step: int | None) -> None:  # type: ignore[no-untyped-def]
    steps = [row.step for row in history]
    for position, task in enumerate(history[0].old):
        scores = [row.old[task] for row in history]
        color = f"C{position}"
        axes.plot(steps, scores, color=color, marker="o", ms=3, label=short(task))
        axes.axhline(scores[0], color=color, ls=":", lw=1)
    judged = [row for row in history if row.new]
    for position, metric in enumerate(judged[0].new if judged else ()):
        values = [row.new[metric] for row in judged]
        axes.plot(
            [row.step for row in judged], values, color=f"{0.2 + 0.2 * (position % 3)}", ls="-.", label=short(metric)
        )
    if best_step is not None:
        axes.axvline(best_step, color="0.4", ls="--", lw=1, label=f"kept: step {best_step}")
    axes.set_ylabel("score")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)


def _draw_movement(axes, history: Sequence[Measurement]) -> None:  # type: ignore[no-untyped-def]
    import matplotlib

    layers = list(dict.fromkeys(layer for row in history for layer in row.moved))
    colors = matplotlib.colormaps["viridis"]
    for position, layer in enumerate(layers):
        rows = [row for row in history if layer in row.moved]
        color = colors(0.9 * position / max(1, len(layers) - 1))
        axes.plot(
            [r.step for r in rows], [r.moved[layer] for r in rows], color=color, marker="o", ms=3, label=short(layer)
        )
    axes.set_ylabel("movement (relative L2)")
    axes.grid(alpha=0.3)
    # A model of many layers has too many for a legend of one column.
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7, ncols=1 + (len(layers) - 1) // 14)
