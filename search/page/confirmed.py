"""The confirmed trials of a study: their means over fresh seeds, beside the search's optimistic values."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from lr_dist.search.engine.slots import by_slot
from lr_dist.search.page.findings import Findings, is_flat_trial
from lr_dist.search.trials.checked import checked_trials
from lr_dist.search.trials.confirmation import confirmation_of, same_parameters
from lr_dist.search.trials.record import TrialRecord
from lr_dist.search.trials.summary import feasible
from lr_dist.sequence.differences import Interval

if TYPE_CHECKING:
    from optuna import Study

LEVEL = 0.95


@dataclass(frozen=True)
class Confirmed:
    """A distribution that was run again.

    Attributes:
        trial: the trial of the confirmation.
        label: `trial 12`, or `flat 0.0001`.
        flat: whether it is one rate everywhere.
        searched: its value in the search; None if it was not a complete trial there.
        value: the mean over the fresh seeds.
        sd: the standard deviation over them; None for one seed.
        seeds: their number.
        difference: to the control, paired by seed; None for the control itself, or if there is none.
        control: whether it is the control: the flat rate with the highest mean.
        feasible: whether it satisfies the constraints.
    """

    trial: FrozenTrial
    label: str
    flat: bool
    searched: float | None
    value: float
    sd: float | None
    seeds: int
    difference: Interval | None
    control: bool
    feasible: bool


def confirmed(study: Study, findings: Findings) -> list[Confirmed]:
    """The confirmed distributions of a study, the highest mean first; empty if there are none.

    Raises:
        InvalidTrialsError: the confirmation was altered or damaged.
    """
    confirmation = confirmation_of(study)
    if confirmation is None:
        return []
    current = by_slot(checked_trials(confirmation)).values()
    trials = [t for t in current if t.state == TrialState.COMPLETE and TrialRecord.of(t).values_by_seed]
    flat = [trial for trial in trials if is_flat_trial(trial)]
    control = max(flat, key=_rank, default=None)
    return [_row(trial, control, findings.complete) for trial in sorted(trials, key=_rank, reverse=True)]


def _rank(trial: FrozenTrial) -> tuple[bool, float, int]:
    return feasible(trial), trial.values[0], -trial.number


def _row(trial: FrozenTrial, control: FrozenTrial | None, searched: Sequence[FrozenTrial]) -> Confirmed:
    record = TrialRecord.of(trial)
    by_seed = [values[0] for values in record.values_by_seed]
    difference = None
    if control is not None and control.number != trial.number:
        theirs = [values[0] for values in TrialRecord.of(control).values_by_seed]
        difference = Interval.of([a - b for a, b in zip(by_seed, theirs, strict=True)], LEVEL)
    return Confirmed(
        trial=trial,
        label=record.label or f"trial {trial.number}",
        flat=is_flat_trial(trial),
        searched=next((t.values[0] for t in searched if same_parameters(t.params, trial.params)), None),
        value=trial.values[0],
        sd=statistics.stdev(by_seed) if len(by_seed) > 1 else None,
        seeds=len(by_seed),
        difference=difference,
        control=control is not None and control.number == trial.number,
        feasible=feasible(trial),
    )
