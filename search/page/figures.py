"""The figures of a study's page, as SVG text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from lr_dist._distribution.plot import plot_rates
from lr_dist.runs.numbers import number, signed
from lr_dist.runs.pages.figure import CALM, FAINT, GOLD, GREY, page_figure, rate_spots
from lr_dist.runs.svg import Spot, new_figure, short
from lr_dist.search.combining.combine import PAPER_BASE, geometric_spread
from lr_dist.search.page.findings import Findings, front_of
from lr_dist.search.trials.record import TrialRecord
from lr_dist.search.trials.summary import distribution_of, feasible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Limits of what is drawn; the page says if something was left out.
MOST_POINTS, MOST_LINES, MOST_LABELS, MOST_NUMBERED, BEST_DRAWN = 2000, 300, 10, 12, 5
# Up to so many trials, those in one place get a ring and their number.
MOST_COUNTED = 100
# Of how many points and lines the mouse shows the values: more would make the page large, and be in each other's way.
MOST_HOVERED, MOST_HOVERED_LINES = 300, 40
WIDTH = 9.5


def history_figure(findings: Findings) -> str:
    """The value of every trial by number, and the best value so far; one panel per objective."""
    names = findings.objectives
    figure = new_figure(WIDTH, 3.9 if len(names) == 1 else 5.6)
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    spots: list[Spot] = []
    for index, (axes, name) in enumerate(zip(panels, names, strict=True)):
        spots += _history(axes, findings, index, name)
        axes.set_ylabel(name)
    panels[-1].set_xlabel("trial")
    return page_figure(figure, "Value by trial", "The value of every complete trial and the best so far.", spots=spots)


def majority_figure(findings: Findings, sequence: int) -> str:
    """Final score minus majority class, for every complete trial and task."""
    trials = _thinned(findings.complete, findings.top)
    rows = [TrialRecord.of(trial).scores[sequence] for trial in trials]
    hovered = {trial.number for trial in _thinned(trials, findings.top, MOST_HOVERED)}
    figure = new_figure(WIDTH, 3.2)
    axes = figure.subplots()
    axes.axhline(0, color=GREY, lw=1, label="majority class")
    spots: list[Spot] = []
    for task, name in enumerate(rows[0].tasks):
        above = [row.final[task] - row.baseline[task] for row in rows]
        learned = [row.learned[task] for row in rows]
        colour = f"C{task % 10}"
        _dots(axes, [t.number for t in trials], above, learned, color=colour, label=short(name))
        spots += [
            Spot(axes, t.number, y, f"{trial_name(t)}: {name} {signed(y)}" + ("" if ok else ", not learned"))
            for t, y, ok in zip(trials, above, learned, strict=True)
            if t.number in hovered
        ]
    axes.plot([], [], "o", mfc="none", color=GREY, ms=5, label="hollow: not learned")
    axes.set_xlabel("trial")
    axes.set_ylabel("score - majority class")
    axes.grid(alpha=0.3)
    described = f"The tasks of {findings.titles[sequence]}."
    return page_figure(figure, "Distance from the majority class by trial", described, spots=spots)


def front_figure(findings: Findings, sequence: int) -> str:
    """p_o against p_s on one sequence of two tasks or more: every complete trial, and the Pareto front."""
    rows = {trial.number: TrialRecord.of(trial).scores[sequence] for trial in findings.complete}
    retained = {number: row.p_o for number, row in rows.items() if row.p_o is not None}
    points = [(rows[trial.number].p_s, retained[trial.number]) for trial in findings.complete]
    front = [findings.complete[i] for i in front_of(points)]
    figure = new_figure(WIDTH, 4.8)
    axes = figure.subplots()
    drawn = _thinned(findings.complete, front)
    for queued, marker in ((False, "o"), (True, "D")):
        selected = [trial for trial in drawn if TrialRecord.of(trial).is_queued == queued]
        _dots(
            axes,
            [rows[t.number].p_s for t in selected],
            [retained[t.number] for t in selected],
            [all(rows[t.number].learned) for t in selected],
            marker=marker,
            color=GREY if queued else CALM,
            label="queued (flat rates, presets)" if queued else "trial",
        )
    xs, ys = [rows[t.number].p_s for t in front], [retained[t.number] for t in front]
    axes.plot(xs, ys, "-o", color=GOLD, ms=6, lw=1.2, mfc="none", mew=1.6, label="Pareto front", zorder=4)
    if findings.best is not None:
        best = findings.best.number
        axes.plot(rows[best].p_s, retained[best], "*", color="k", ms=13, label="best value", zorder=5)
    axes.plot([], [], "o", mfc="none", color=GREY, ms=5, label="hollow: a task not learned")
    first = rows[findings.complete[0].number]
    axes.axvline(first.baseline[-1], color="0.5", ls=":", lw=1)
    axes.axhline(statistics.fmean(first.baseline[:-1]), color="0.5", ls=":", lw=1, label="majority class")
    _number_apart(axes, [(t.number, x, y) for t, x, y in zip(front, xs, ys, strict=True)])
    tasks = [short(task) for task in first.tasks]
    axes.set_xlabel(f"p_s: score on {tasks[-1]}, learned last")
    axes.set_ylabel(f"p_o: score on {tasks[0]}" if len(tasks) == 2 else "p_o: mean score on the earlier tasks")
    axes.grid(alpha=0.3)
    members = ", ".join(str(trial.number) for trial in front[:50])
    spots = [
        Spot(axes, x, y, f"{trial_name(t)}: p_o {number(y)}, p_s {number(x)}", counted=len(drawn) <= MOST_COUNTED)
        for t, x, y in ((t, rows[t.number].p_s, retained[t.number]) for t in _thinned(drawn, front, MOST_HOVERED))
    ]
    title = f"p_o against p_s of {findings.titles[sequence]}"
    return page_figure(figure, title, f"On the front: trials {members}.", spots=spots)


def retention_figure(findings: Findings) -> str:
    """What every complete trial loses of the pre-training, against its score, and the Pareto front."""
    figure = new_figure(WIDTH, 4.2)
    axes = figure.subplots()
    for queued, marker in ((False, "o"), (True, "D")):
        selected = [t for t in _thinned(findings.complete, findings.front) if TrialRecord.of(t).is_queued == queued]
        _dots(
            axes,
            [-trial.values[1] for trial in selected],
            [trial.values[0] for trial in selected],
            [all(all(scores.learned) for scores in TrialRecord.of(trial).scores) for trial in selected],
            marker=marker,
            color=GREY if queued else CALM,
            label="queued (flat rates, presets)" if queued else "trial",
        )
    xs, ys = [-trial.values[1] for trial in findings.front], [trial.values[0] for trial in findings.front]
    axes.plot(xs, ys, "-o", color=GOLD, ms=6, lw=1.2, mfc="none", mew=1.6, label="Pareto front", zorder=4)
    axes.plot([], [], "o", mfc="none", color=GREY, ms=5, label="hollow: a task not learned")
    _number_apart(axes, [(t.number, x, y) for t, x, y in zip(findings.front, xs, ys, strict=True)])
    axes.set_xlabel("nats a token lost of the pre-training")
    axes.set_ylabel("score")
    axes.grid(alpha=0.3)
    spots = [
        Spot(
            axes,
            -t.values[1],
            t.values[0],
            f"{trial_name(t)}: score {number(t.values[0])}, lost {number(-t.values[1])}",
        )
        for t in _thinned(findings.complete, findings.front, MOST_HOVERED)
    ]
    return page_figure(figure, "What is lost of the pre-training, against the score", spots=spots)


def parameters_figure(findings: Findings, objective: int) -> str:
    """Parallel coordinates of the searched parameters, coloured by value; for a single one, value against rate."""
    names = findings.space.searched
    trials = _best_last(findings, objective, MOST_LINES)
    values = [trial.values[objective] for trial in trials]
    kept = [trial.values[objective] for trial in findings.complete if feasible(trial)] or values
    figure = new_figure(WIDTH, 4.2)
    axes = figure.subplots()
    what = findings.objectives[objective]
    if len(names) == 1:
        rates = [trial.params[names[0]] for trial in trials]
        _dots(axes, rates, values, [feasible(trial) for trial in trials], color=CALM, label="trial")
        axes.set_xscale("log")
        axes.set_xlabel(names[0])
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
        spots = [
            Spot(
                axes,
                x,
                y,
                f"{trial_name(t)}: {names[0]} {x:.3g}, {what} {number(y)}",
                counted=len(trials) <= MOST_COUNTED,
            )
            for t, x, y in zip(trials, rates, values, strict=True)
        ]
        return page_figure(figure, f"{what} over {names[0]}", spots=spots)
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    # The left axis is for the rates; a decay factor has its own axis and bounds.
    low, high = (math.log10(bound) for bound in (findings.space.low, findings.space.high))
    lines = [[(x, _height(findings, n, trial.params[n], low, high)) for x, n in enumerate(names)] for trial in trials]
    # Trials below the median are grey, so that the colours distinguish the good ones.
    median = statistics.median(kept)
    colours = ScalarMappable(Normalize(median, max(kept)), "viridis_r")
    colours.set_array(kept)
    good = [i for i, trial in enumerate(trials) if feasible(trial) and values[i] >= median]
    poor = [i for i in range(len(trials)) if i not in set(good)]
    axes.add_collection(LineCollection([lines[i] for i in poor], colors=FAINT, lw=0.8))
    shades = colours.to_rgba(np.array([values[i] for i in good]))
    axes.add_collection(LineCollection([lines[i] for i in good], colors=shades, lw=1.3))
    axes.set_xlim(-0.15, len(names) - 0.85)
    axes.set_ylim(low - 0.08, high + 0.08)
    for x in range(len(names)):
        axes.axvline(x, color="0.6", lw=0.8, zorder=0)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("learning rate")
    _log_ticks(axes, low, high)
    if "factor" in names:
        _factor_axis(axes, findings, low, high)
    figure.colorbar(colours, ax=axes, label=f"{what}, from the median up", pad=0.08)
    spots = [
        Spot(axes, x, height, f"{trial_name(t)}, {what} {number(value)}: {names[x]} {t.params[names[x]]:.3g}")
        for t, value, line in list(zip(trials, values, lines, strict=True))[-MOST_HOVERED_LINES:]
        for x, height in line
    ]
    return page_figure(figure, f"Parallel coordinates of the searched parameters, coloured by {what}", spots=spots)


def importance_figure(values: Mapping[str, float]) -> str:
    """One bar per parameter, in the order of depth."""
    figure = new_figure(WIDTH, 2.8)
    axes = figure.subplots()
    bars = axes.bar(range(len(values)), list(values.values()), color=CALM, width=0.6)
    axes.bar_label(bars, [number(value) for value in values.values()], fontsize=8)
    axes.set_xticks(range(len(values)), list(values))
    axes.margins(y=0.15)
    axes.set_xlabel("parameter, from the input to the output")
    axes.set_ylabel("importance")
    description = ", ".join(f"{name} {number(value)}" for name, value in values.items())
    spots = [
        Spot(axes, x, value / 2, f"{name}: {number(value)}", width=0.6, height=value)
        for x, (name, value) in enumerate(values.items())
    ]
    return page_figure(figure, "Importance of each parameter", description, spots=spots)


def depth_figure(findings: Findings, num_layers: int) -> str:
    """The best distributions over depth, their mean, and their spread."""
    figure = new_figure(WIDTH, 4.4)
    axes = figure.subplots()
    spots: list[Spot] = []
    for trial in (findings.front or findings.ranked)[:BEST_DRAWN]:
        name = trial_name(trial) if len(trial.values) > 1 else f"{trial_name(trial)}: {number(trial.values[0])}"
        plot_rates(distribution_of(trial).rates(num_layers), axes, short(name), relative=False)
        spots += rate_spots(axes, distribution_of(trial).rates(num_layers), trial_name(trial))
    mean = findings.space.distribution(findings.mean) if findings.mean else None
    assert mean is not None
    rates = mean.rates(num_layers)
    what = "mean of the front" if findings.front else f"rank-weighted mean ({PAPER_BASE:g})"
    axes.plot(range(len(rates)), [rate or math.nan for rate in rates.values()], color="k", lw=2.4, label=what)
    spots += rate_spots(axes, rates, what)
    if len(findings.top) > 1:
        trained = {group for group, rate in rates.items() if rate}
        each = [distribution_of(trial).rates(num_layers) for trial in findings.top]
        spread = geometric_spread([{group: row[group] for group in trained} for row in each])
        low, high = (
            [rates[group] * spread[group] ** sign if group in trained else math.nan for group in rates]
            for sign in (-1, 1)
        )
        of = "the front" if findings.front else f"the best {len(findings.top)}"
        axes.fill_between(range(len(rates)), low, high, color="0.5", alpha=0.18, lw=0, label=f"spread of {of}")
    return page_figure(figure, f"The best distributions over the depth of {num_layers} layers", spots=spots)


def _history(axes: Axes, findings: Findings, objective: int, name: str) -> list[Spot]:
    complete = findings.complete
    queued = [trial for trial in complete if TrialRecord.of(trial).is_queued]
    others = [trial for trial in complete if not TrialRecord.of(trial).is_queued]
    shown = _thinned(others, findings.top)
    value = [trial.values[objective] for trial in shown]
    _dots(axes, [t.number for t in shown], value, [feasible(t) for t in shown], color=CALM, label="trial")
    for index, trial in enumerate(queued[:MOST_POINTS]):
        label = short(TrialRecord.of(trial).label or "") if index < MOST_LABELS else None
        if index == MOST_LABELS:
            label = f"{len(queued) - MOST_LABELS} more queued"
        _dots(
            axes,
            [trial.number],
            [trial.values[objective]],
            [feasible(trial)],
            marker="D",
            color=f"C{min(index, MOST_LABELS - 1)}",
            label=label,
        )
    kept = [trial for trial in complete if feasible(trial)]
    if kept:
        last = findings.trials[-1].number
        numbers = [trial.number for trial in kept]
        best = list(accumulate((trial.values[objective] for trial in kept), max))
        # Only the points where it increases; thousands of equal steps would add nothing.
        rises = [i for i in range(len(best)) if i == 0 or best[i] > best[i - 1]]
        axes.step(
            [*(numbers[i] for i in rises), last],
            [*(best[i] for i in rises), best[-1]],
            where="post",
            color="k",
            lw=1.2,
            label="best so far",
        )
    if len(kept) < len(complete):
        axes.plot([], [], "o", mfc="none", color=GREY, ms=5, label="hollow: violates a constraint")
    for state, colour, what in ((TrialState.PRUNED, "C7", "pruned"), (TrialState.FAIL, "C3", "failed")):
        ended = _thinned(findings.with_state(state), [])
        if ended:
            axes.plot(
                [t.number for t in ended], [0.03] * len(ended), "x", color=colour, ms=5, label=what,
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.08 * (high - low), high)
    axes.grid(alpha=0.3)
    hovered = _thinned([*shown, *queued[:MOST_POINTS]], findings.top, MOST_HOVERED)
    return [
        Spot(axes, t.number, t.values[objective], f"{trial_name(t)}: {name} {number(t.values[objective])}")
        for t in hovered
    ]


def _dots(
    axes: Axes,
    xs: Sequence[float],
    ys: Sequence[float],
    filled: Sequence[bool],
    *,
    color: str,
    label: str | None,
    marker: str = "o",
) -> None:
    """Draw points, hollow if not `filled`, with one legend entry."""
    for full in (True, False):
        points = [(x, y) for x, y, f in zip(xs, ys, filled, strict=True) if f == full]
        if points:
            axes.plot(
                *zip(*points, strict=True), marker, ls="", ms=5, color=color, mfc=color if full else "none", alpha=0.8,
                label=label, zorder=3,
            )  # fmt: skip
            label = None


def _thinned(trials: Sequence[FrozenTrial], keep: Sequence[FrozenTrial], most: int = MOST_POINTS) -> list[FrozenTrial]:
    """An even sample of at most about so many trials that always includes those to keep."""
    if len(trials) <= most:
        return list(trials)
    kept = {trial.number for trial in keep}
    step = len(trials) / most
    even = {trials[int(i * step)].number for i in range(most)}
    return [trial for trial in trials if trial.number in kept or trial.number in even]


def _best_last(findings: Findings, objective: int, most: int) -> list[FrozenTrial]:
    """At most `most` trials, a third of them the best and the others an even sample; best last, drawn on top."""
    ordered = sorted(findings.complete, key=lambda t: (feasible(t), t.values[objective]))
    if len(ordered) <= most:
        return ordered
    best, rest = ordered[-most // 3 :], ordered[: -most // 3]
    step = len(rest) / (most - len(best))
    return [rest[int(i * step)] for i in range(most - len(best))] + best


def _height(findings: Findings, name: str, value: float, low: float, high: float) -> float:
    if name != "factor":
        return math.log10(value)
    first, last = (math.log10(bound) for bound in findings.space.bounds(name))
    return low + (math.log10(value) - first) / (last - first) * (high - low)


def _log_ticks(axes: Axes, low: float, high: float) -> None:
    powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    ticks = list(powers) if len(powers) > 1 else [low, high]
    axes.set_yticks(ticks, [f"{10**tick:.0e}" if tick in powers else f"{10**tick:.2g}" for tick in ticks])


def _factor_axis(axes: Axes, findings: Findings, low: float, high: float) -> None:
    second = axes.twinx()
    second.set_ylim(axes.get_ylim())
    first, last = findings.space.bounds("factor")
    ticks = [first * (last / first) ** (i / 4) for i in range(5)]
    second.set_yticks([_height(findings, "factor", tick, low, high) for tick in ticks], [f"{t:.2f}" for t in ticks])
    second.set_ylabel("factor")


def _number_apart(axes: Axes, points: Sequence[tuple[int, float, float]]) -> None:
    """Write each trial's number next to its point, unless another number is too close."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    written: list[tuple[float, float]] = []
    for trial, x, y in points:
        place = ((x - left) / (right - left or 1), (y - bottom) / (top - bottom or 1))
        near = any(abs(place[0] - a) < 0.05 and abs(place[1] - b) < 0.05 for a, b in written)
        if not near and len(written) < MOST_NUMBERED:
            written.append(place)
            axes.annotate(str(trial), (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8, color=GOLD)


def trial_name(trial: FrozenTrial) -> str:
    """`trial 12`, or `trial 2 (flat 0.0001)` for a queued one."""
    label = TrialRecord.of(trial).label
    return f"trial {trial.number}" + (f" ({label})" if label else "")
