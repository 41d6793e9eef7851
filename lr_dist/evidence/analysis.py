"""Differences between tuned arms and the tuned control, with bootstrap intervals over sequences and seeds."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lr_dist.errors import InvalidResultError
from lr_dist.evidence.config import EvidenceConfig, sequence_name
from lr_dist.evidence.tuning import Choice
from lr_dist.sequence.equal_ps import on_curve
from lr_dist.sequence.result import ComparisonResult

RESAMPLES = 2_000
METRICS = ("p_o", "p_s", "average_accuracy", "forgetting")

Scores = Mapping[str, float]
# sequence -> seed -> metric -> value
Table = Mapping[str, Mapping[int, Scores]]


@dataclass(frozen=True)
class Estimate:
    """A mean with its bootstrap interval.

    Attributes:
        mean: over the sequences, of each one's mean over its seeds.
        low, high: the interval's ends; None with a single sequence and seed.
        sequences: number of sequences with a value.
        pairs: number of pairs of runs.
    """

    mean: float
    low: float | None
    high: float | None
    sequences: int
    pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Finding:
    """A tuned arm beside the tuned control.

    Attributes:
        name: of the arm.
        text: the arm with its chosen settings.
        means: metric -> mean over sequences and seeds; `probe_p_o` and `probe_forgetting` with a linear probe,
            `retention_lost` (nats a token) with retention.
        differences: metric -> the arm minus the control.
        forgetting_gone: share of the control's forgetting that the arm does not have; None if the control forgets
            nothing.
        at_equal_p_s: p_o of the arm minus p_o of the control's curve at the arm's p_s; None if the curve reaches this
            p_s in no sequence, or the control has no curve.
        seconds: mean training time of a run, as if nothing were shared.
        runs, diverged: number of runs.
        given_up: number of seeds after which the arm was given up; None for an arm with all seeds.
    """

    name: str
    text: str
    means: Mapping[str, float]
    differences: Mapping[str, Estimate]
    forgetting_gone: Estimate | None
    at_equal_p_s: Estimate | None
    seconds: float
    runs: int
    diverged: int
    given_up: int | None = None

    @property
    def called(self) -> str:
        """Its name, with the number of its seeds if it has not all of them."""
        if self.given_up is None:
            return self.name
        return f"{self.name} ({self.given_up} seed{'s' if self.given_up > 1 else ''})"


def findings(
    config: EvidenceConfig, choices: Mapping[str, Choice], results: Sequence[ComparisonResult], level: float = 0.95
) -> list[Finding]:
    """One finding for each arm that has a run which the control has, too; the control first.

    Runs are paired by sequence and seed: both have the same first-stage weights, order of examples and random numbers.
    Of these pairs only those are used that every arm with all seeds has ended, so that the means of a run in progress
    are of the same pairs. Where an arm diverged it has no score, and the others keep theirs. An arm that is given up
    and has none of these pairs has all of its own.

    Args:
        config: the protocol.
        choices: of the tuning.
        results: of the held-out sequences.
        level: of the intervals.

    Raises:
        InvalidResultError: no finished run of the control.
    """
    control = choices[config.control]
    tables = {name: scores_of(config, choice.text, results) for name, choice in choices.items()}
    flat = tables[config.control]
    if not any(flat.values()):
        raise InvalidResultError("The control has no finished run yet; let the evidence run go on.")
    curve_settings = config.arms()[config.control].curve_of(control.settings)
    texts = [config.arms()[config.control].written(settings) for settings in curve_settings]
    curve = [scores_of(config, text, results) for text in texts]
    begun = [name for name, table in tables.items() if any(set(table[s]) & set(seeds) for s, seeds in flat.items())]
    given_up = {name: config.given_up_after(arm) for name, arm in config.arms().items()}
    full = [name for name in begun if given_up[name] is None]
    runs = {name: runs_of(config.arm_text(choices[name].text), results) for name in full}
    diverged = {
        name: {s: {run["seed"] for run in each if not _is_done(run)} for s, each in runs[name].items()} for name in full
    }
    common = {
        s: sorted(set(seeds).intersection(*({*tables[name][s], *diverged[name][s]} for name in full)))
        for s, seeds in flat.items()
    }
    if not any(common.values()):
        common = {s: sorted(seeds) for s, seeds in flat.items()}
    names = [config.control, *(name for name in begun if name != config.control)]
    found = [_finding(config, choices[name], tables[name], flat, curve, results, common, level) for name in names]
    return [replace(finding, given_up=given_up[finding.name]) for finding in found]


def scores_of(
    config: EvidenceConfig, text: str, results: Sequence[ComparisonResult]
) -> dict[str, dict[int, dict[str, float]]]:
    """The metrics of an arm's finished runs, by sequence and seed; runs without what the protocol measures are not."""
    needed = set(config.measured)
    return {
        sequence: {run["seed"]: run["metrics"] for run in runs if _is_done(run) and needed <= set(run["metrics"])}
        for sequence, runs in runs_of(config.arm_text(text), results).items()
    }


def runs_of(label: str, results: Sequence[ComparisonResult]) -> dict[str, list[Mapping[str, Any]]]:
    """The runs of an arm that have ended, by sequence; every sequence has an entry."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        runs = found.setdefault(sequence_name([task["name"] for task in result.tasks]), [])
        runs += [run for run in result.runs if run["arm"] == label]
    return found


def _is_done(run: Mapping[str, Any]) -> bool:
    return bool(run["status"] == "done")


def _finding(
    config: EvidenceConfig,
    choice: Choice,
    ours: Table,
    flat: Table,
    curve: Sequence[Table],
    results: Sequence[ComparisonResult],
    common: Mapping[str, Sequence[int]],
    level: float,
) -> Finding:
    runs = [run for each in runs_of(config.arm_text(choice.text), results).values() for run in each]
    pairs = _paired(ours, common)
    if not pairs:
        # An arm that is given up has few runs, and the others may have none of the same seeds yet.
        pairs = _paired(ours, flat)

    def mean_of(table: Table, name: str, seeds: Sequence[int], metric: str) -> float:
        return statistics.fmean(table[name][seed][metric] for seed in seeds)

    def difference(metric: str) -> Callable[[str, Sequence[int]], float | None]:
        return lambda name, seeds: mean_of(ours, name, seeds, metric) - mean_of(flat, name, seeds, metric)

    def gain(name: str, seeds: Sequence[int]) -> float | None:
        points = [
            (mean_of(each, name, seeds, "p_s"), mean_of(each, name, seeds, "p_o"))
            for each in curve
            if all(seed in each.get(name, {}) for seed in seeds)
        ]
        # A single point is no curve: two arms have the same p_s by chance only.
        reached = on_curve(points, mean_of(ours, name, seeds, "p_s")) if len(curve) > 1 else None
        return None if reached is None else mean_of(ours, name, seeds, "p_o") - reached

    def forgotten(table: Table) -> Callable[[str, Sequence[int]], float | None]:
        return lambda name, seeds: mean_of(table, name, seeds, "forgetting")

    measured = (*METRICS, *config.measured)
    return Finding(
        name=choice.name,
        text=choice.text,
        means={
            metric: statistics.fmean(mean_of(ours, name, seeds, metric) for name, seeds in pairs.items())
            for metric in measured
        },
        differences={metric: _required(bootstrap(pairs, difference(metric), level)) for metric in measured},
        forgetting_gone=bootstrap_ratio(pairs, forgotten(ours), forgotten(flat), level),
        at_equal_p_s=bootstrap(pairs, gain, level),
        seconds=statistics.fmean([run["train_seconds"] for run in runs if _is_done(run)] or [0.0]),
        runs=len(runs),
        diverged=sum(not _is_done(run) for run in runs),
    )


def _paired(ours: Table, others: Mapping[str, Collection[int]]) -> dict[str, list[int]]:
    """Sequence -> the seeds that both have; only sequences with one."""
    pairs = {name: sorted(set(ours[name]) & set(others[name])) for name in ours if name in others}
    return {name: seeds for name, seeds in pairs.items() if seeds}


def bootstrap(
    pairs: Mapping[str, Sequence[int]],
    value: Callable[[str, Sequence[int]], float | None],
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate | None:
    """A mean over sequences with the percentile interval of a bootstrap over sequences, and over seeds within each.

    Args:
        pairs: sequence -> its seeds.
        value: of a sequence with these seeds; None leaves the sequence out.
        level: of the interval.
        resamples: number of resamples.

    Returns:
        None if no sequence has a value.
    """
    return _bootstrap(
        pairs,
        lambda name, seeds: (v,) if (v := value(name, seeds)) is not None else None,
        lambda rows: float(rows[:, 0].mean()),
        level,
        resamples,
    )


def bootstrap_ratio(
    pairs: Mapping[str, Sequence[int]],
    ours: Callable[[str, Sequence[int]], float | None],
    theirs: Callable[[str, Sequence[int]], float | None],
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate | None:
    """1 - (mean of ours) / (mean of theirs), with an interval as in `bootstrap`; None if theirs is 0 or less."""

    def both(name: str, seeds: Sequence[int]) -> tuple[float, ...] | None:
        a, b = ours(name, seeds), theirs(name, seeds)
        return None if a is None or b is None else (a, b)

    def ratio(rows: np.ndarray) -> float:
        a, b = rows.mean(axis=0)
        return float(1 - a / b) if b > 0 else float("nan")

    estimate = _bootstrap(pairs, both, ratio, level, resamples)
    return None if estimate is None or np.isnan(estimate.mean) else estimate


def _bootstrap(
    pairs: Mapping[str, Sequence[int]],
    value: Callable[[str, Sequence[int]], tuple[float, ...] | None],
    statistic: Callable[[np.ndarray], float],
    level: float,
    resamples: int,
) -> Estimate | None:
    known = {name: seeds for name, seeds in pairs.items() if value(name, seeds) is not None}
    if not known:
        return None
    names = list(known)
    mean = statistic(np.array([value(name, known[name]) for name in names]))
    count = sum(len(seeds) for seeds in known.values())
    if count == 1 or np.isnan(mean):
        return Estimate(mean, None, None, len(names), count)
    cache: dict[tuple[str, tuple[int, ...]], tuple[float, ...] | None] = {}
    drawn = []
    for resample in _resamples(tuple((name, tuple(seeds)) for name, seeds in known.items()), resamples):
        rows = []
        for name, seeds in resample:
            if (name, seeds) not in cache:
                cache[name, seeds] = value(name, seeds)
            if (row := cache[name, seeds]) is not None:
                rows.append(row)
        if rows:
            drawn.append(statistic(np.array(rows)))
    if np.isnan(drawn).all():  # no resample has a value
        return Estimate(mean, None, None, len(names), count)
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(mean, float(low), float(high), len(names), count)


@functools.lru_cache(maxsize=8)
def _resamples(pairs: tuple[tuple[str, tuple[int, ...]], ...], number: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Sequences drawn with replacement, each with seeds drawn likewise; the same for every arm and metric."""
    rng = np.random.default_rng(0)
    return [
        [
            (name, tuple(sorted(rng.choice(seeds, size=len(seeds)).tolist())))
            for name, seeds in (pairs[index] for index in rng.integers(len(pairs), size=len(pairs)))
        ]
        for _ in range(number)
    ]


def _required(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate
