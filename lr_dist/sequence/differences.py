"""Differences between arms and a control, paired by task sequence and seed, with confidence intervals.

With the same seed, every arm has the same heads, the same order of examples and the same random draws. So a pair of
runs differs only in the arm, and the noise that both share cancels.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lr_dist.errors import ConfigurationError, InvalidResultError, shown
from lr_dist.extras import require_libraries
from lr_dist.sequence.result import ComparisonResult

DIFFERENCES = ("p_o", "p_s", "average_accuracy", "forgetting")
# Settings in which results that are combined may differ.
OWN = ("tasks", "arms", "seeds")


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, mean - half to mean + half, after Student's t.

    Attributes:
        mean: of the values.
        half: half the interval's width; None for a single value, which has no spread.
        n: number of values.
    """

    mean: float
    half: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float], level: float) -> Interval:
        """t(1/2 + level/2, n - 1) standard errors around the mean."""
        from scipy.stats import t

        n = len(values)
        half = float(t.ppf(0.5 + level / 2, n - 1)) * statistics.stdev(values) / n**0.5 if n > 1 else None
        return cls(statistics.fmean(values), half, n)


@dataclass(frozen=True)
class Difference:
    """One arm minus the control.

    Attributes:
        sequence: `sst2>qqp`; None for all sequences together.
        arm: its label.
        metrics: p_o, p_s, average_accuracy and forgetting -> the difference; without those that a single task does not
            have. For one sequence, `n` counts seeds. For all together, it counts sequences, each with the mean of its
            seeds: seeds say nothing about other tasks.
        left_out: seeds for which one of the two diverged.
    """

    sequence: str | None
    arm: str
    metrics: dict[str, Interval]
    left_out: int


def differences(results: Sequence[ComparisonResult], control: str, level: float = 0.95) -> list[Difference]:
    """Every arm minus `control`: a row for each sequence and, if there are several, one for all together.

    Args:
        results: results of different task sequences with equal settings.
        control: the label of an arm that is in all results.
        level: level of the confidence intervals, between 0 and 1.

    Raises:
        InvalidResultError: a result without the control, without finished pairs or with other settings; a sequence
            twice; no arm besides the control.
        ConfigurationError: an invalid level.
        MissingExtraError: scipy is not installed (extra `report`).
    """
    if not 0 < level < 1:
        raise ConfigurationError(f"level={level!r} must lie between 0 and 1, e.g. 0.95.")
    require_libraries("report", "scipy")
    _check(results, control)
    labels = dict.fromkeys(entry["label"] for result in results for entry in result.arms)
    if len(labels) == 1:
        raise InvalidResultError(f"The only arm of the results is {control}, so there is no difference to show.")
    rows = []
    for label in labels:
        if label == control:
            continue
        own = [_of_sequence(result, label, control, level) for result in results if _has(result, label)]
        rows += own
        if len(own) > 1:
            means = {name: [row.metrics[name].mean for row in own if name in row.metrics] for name in DIFFERENCES}
            together = {name: Interval.of(values, level) for name, values in means.items() if values}
            rows.append(Difference(None, label, together, sum(row.left_out for row in own)))
    return rows


def _of_sequence(result: ComparisonResult, label: str, control: str, level: float) -> Difference:
    ours, theirs = _runs(result, label), _runs(result, control)
    both = [seed for seed in ours if seed in theirs]
    done = [seed for seed in both if ours[seed]["status"] == theirs[seed]["status"] == "done"]
    if not done:
        raise InvalidResultError(
            f"The result of {_sequence(result)} has no seed for which both {label} and {control} are done. Let its "
            "`lr-dist compare` finish."
        )
    values = {
        name: [ours[seed]["metrics"][name] - theirs[seed]["metrics"][name] for seed in done]
        for name in DIFFERENCES
        if ours[done[0]]["metrics"][name] is not None
    }
    metrics = {name: Interval.of(each, level) for name, each in values.items()}
    return Difference(_sequence(result), label, metrics, len(both) - len(done))


def _check(results: Sequence[ComparisonResult], control: str) -> None:
    names = [_sequence(result) for result in results]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidResultError(f"Two results are of {twice}, which would count twice. Give one of each sequence.")
    seen: dict[str, tuple[str, Any]] = {}  # setting -> the first result that has it, and its value
    for name, result in zip(names, results, strict=True):
        if not _has(result, control):
            there = ", ".join(entry["label"] for entry in result.arms)
            raise InvalidResultError(f"The result of {name} has no arm {control!r}; it has {there}.")
        # An arm need not be in every result, but a label must mean the same arm in all.
        for key, value in _settings(result).items():
            other, theirs = seen.setdefault(key, (name, value))
            if theirs != value:
                raise InvalidResultError(
                    f"The results of {other} and {name} cannot be put together: {key} is {shown(theirs)} in one and "
                    f"{shown(value)} in the other."
                )


def _settings(result: ComparisonResult) -> dict[str, Any]:
    own = {key: value for key, value in result.config.items() if key not in OWN}
    if "start" in result.model:  # it has learned the first task, so each sequence has another one
        own = {key: value for key, value in own.items() if key not in ("model", "start")}
        return {**own, **_meant(result), "started": True}
    return {**own, "model": result.model["fingerprint"], **_meant(result), "started": False}


def _meant(result: ComparisonResult) -> dict[str, str]:
    return {f"arm {entry['label']}": " + ".join([entry["fingerprint"], *entry["methods"]]) for entry in result.arms}


def _has(result: ComparisonResult, label: str) -> bool:
    return any(entry["label"] == label for entry in result.arms)


def _runs(result: ComparisonResult, label: str) -> dict[int, dict[str, Any]]:
    return {run["seed"]: run for run in result.runs if run["arm"] == label}


def _sequence(result: ComparisonResult) -> str:
    return ">".join(task["name"] for task in result.tasks)
