"""The tables of a study's page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from lr_dist._distribution.text import short
from lr_dist.rate_plan import RatePlan
from lr_dist.runs.numbers import number, signed
from lr_dist.search.page.confirmed import Confirmed
from lr_dist.search.page.findings import Findings, named
from lr_dist.search.space import Space
from lr_dist.search.trials.record import LOST_NATS, LOW_P_S, TrialRecord
from lr_dist.search.trials.summary import feasible, plan_of


@dataclass(frozen=True)
class TrialRow:
    """A complete trial in the table of trials.

    Attributes:
        trial: number of the trial.
        label: name of a queued distribution; empty if the trial was sampled.
        values: the objectives, with their standard deviation if there are several seeds.
        sequences: for each task sequence p_o, p_s (with their spread), and task -> (score minus majority class, whether
            it was learned).
        feasible: whether the trial satisfies the constraints.
        seconds: total time of all runs.
        distribution: exact text form.
        rounded: the same with three digits.
    """

    trial: int
    label: str
    values: list[str]
    sequences: list[tuple[str, str, dict[str, tuple[str, bool]]]]
    feasible: bool
    seconds: float
    distribution: str
    rounded: str


@dataclass(frozen=True)
class ParameterRow:
    """A searched parameter: its value in the best trial, its mean and its spread, as text; empty if there is none."""

    name: str
    best: str
    mean: str
    spread: str


def trial_row(trial: FrozenTrial, space: Space) -> TrialRow:
    """The row of a complete trial."""
    record = TrialRecord.of(trial)
    return TrialRow(
        trial=trial.number,
        label=record.label or "",
        values=[_with_sd(v, sd, 4) for v, sd in zip(trial.values, record.value_sd, strict=True)],
        sequences=[
            (
                _with_sd(scores.p_o, scores.p_o_sd),
                _with_sd(scores.p_s, scores.p_s_sd),
                {
                    # Tasks with equal names are told apart by position.
                    f"{task}" if scores.tasks.count(task) == 1 else f"{task} ({position + 1})": (
                        signed(score - low),
                        ok,
                    )
                    for position, (task, score, low, ok) in enumerate(
                        zip(scores.tasks, scores.final, scores.baseline, scores.learned, strict=True)
                    )
                },
            )
            for scores in record.scores
        ],
        feasible=feasible(trial),
        seconds=record.seconds or 0.0,
        distribution=str(named(plan_of(trial))),
        rounded=_rounded(trial, space),
    )


@dataclass(frozen=True)
class ConfirmedRow:
    """A confirmed distribution: its label, values as text, and its exact text form."""

    label: str
    searched: str
    value: str
    seeds: int
    difference: str
    control: bool
    distribution: str


def confirmed_row(confirmed: Confirmed) -> ConfirmedRow:
    """The row of a confirmed distribution."""
    difference = "control" if confirmed.control else ""
    if confirmed.difference is not None:
        difference = signed(confirmed.difference.mean, confirmed.difference.half)
    return ConfirmedRow(
        label=confirmed.label,
        searched="" if confirmed.searched is None else f"{confirmed.searched:.4f}",
        value=_with_sd(confirmed.value, confirmed.sd, 4) + ("" if confirmed.feasible else " (violates a constraint)"),
        seeds=confirmed.seeds,
        difference=difference,
        control=confirmed.control,
        distribution=str(named(plan_of(confirmed.trial))),
    )


def unlearned(complete: Sequence[FrozenTrial]) -> dict[str, int]:
    """`sst2>qqp: qqp` -> number of complete trials that did not learn this task (final score at the majority class)."""
    counts: dict[str, int] = {}
    for trial in complete:
        for scores in TrialRecord.of(trial).scores:
            for task, ok in zip(scores.tasks, scores.learned, strict=True):
                name = f"{scores.title}: {task}"
                counts[name] = counts.get(name, 0) + (not ok)
    return counts


def bounds_of(identity: Mapping[str, Any]) -> list[str]:
    """The constraints that a study's configuration sets, in words."""
    bounds = []
    if identity["goal"]["mode"] == "constrained":
        bounds.append(f"p_s at most {identity['goal']['tolerance']:g} below that of the tuned flat rate")
    if "most_lost" in identity.get("retention", {}):
        bounds.append(f"at most {identity['retention']['most_lost']:g} nats a token of the pre-training lost")
    return bounds


def violations(complete: Sequence[FrozenTrial]) -> dict[str, int]:
    """What complete trials violate, in words -> by how many of them; empty if they have no constraints.

    A program that is searched with `optimize` can set constraints of its own, which have their own names.
    """
    counts: dict[str, int] = {}
    for trial in complete:
        violated = {_constraint(name): False for name in trial.constraints}
        for name, excess in trial.constraints.items():
            violated[_constraint(name)] |= excess > 0
        for text, is_violated in violated.items():
            counts[text] = counts.get(text, 0) + is_violated
    return counts


def _constraint(name: str) -> str:
    if name.startswith(LOW_P_S):
        return "p_s too far below that of the tuned flat rate"
    return "too much of the pre-training lost" if name.startswith(LOST_NATS) else name


def rates_table(findings: Findings) -> list[ParameterRow]:
    """Every searched parameter, in the order of depth."""
    best = findings.best.params if findings.best else {}
    return [
        ParameterRow(
            name,
            _rate(best.get(name)),
            _rate(findings.mean.get(name)),
            f"x/ {findings.spread[name]:.2f}" if name in findings.spread else "",
        )
        for name in findings.space.searched
    ]


def failures(findings: Findings) -> list[tuple[int, str, str, str]]:
    """(trial, state, reason, distribution) of the failed trials, then of the attempts that were queued again."""
    failed = [(t, "failed", TrialRecord.of(t).reason) for t in findings.with_state(TrialState.FAIL)]
    again = [(t, "queued again", TrialRecord.of(t).error or "its worker died") for t in findings.retried]
    return [
        (t.number, state, str(reason), "" if TrialRecord.of(t).distribution is None else _rounded(t, findings.space))
        for t, state, reason in [*failed, *again]
    ]


def environments(trials: Sequence[FrozenTrial]) -> dict[str, list[tuple[str, int]]]:
    """Entry of the environment (versions, machine) -> its values in the trials, each with the number of trials."""
    counters: dict[str, Counter[str]] = {}
    for trial in trials:
        environment = dict(TrialRecord.of(trial).environment or {})
        flat: dict[str, Any] = {**environment.pop("versions", {}), **environment}
        # Only the chosen precision is compared; the timings behind it differ at every start.
        if isinstance(flat.get("precision"), dict):
            flat["precision"] = flat["precision"].get("chosen")
        for key, value in flat.items():
            text = value if isinstance(value, str) else json.dumps(value)
            counters.setdefault(key, Counter())[text] += 1
    return {key: counts.most_common() for key, counts in counters.items()}


def _rounded(trial: FrozenTrial, space: Space) -> str:
    searched = space.plan({name: float(f"{rate:.3g}") for name, rate in trial.params.items()})
    stages = plan_of(trial).stages
    # With the given rates of the first stage before the searched ones.
    given = stages[:1] if len(stages) > len(searched.stages) else ()
    return str(named(RatePlan((*given, *searched.stages))))


def _rate(value: float | None) -> str:
    """Three digits, as in the text of a distribution: 9.52e-5."""
    return "" if value is None else short(float(f"{value:.3g}"))


def _with_sd(value: float | None, sd: float | None, digits: int = 3) -> str:
    text = number(value) if digits == 3 or value is None else f"{value:.{digits}f}"
    return text if sd is None else f"{text} ± {number(sd) if digits == 3 else f'{sd:.{digits}f}'}"
