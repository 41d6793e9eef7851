"""A summary of a study, for the terminal, during the search and afterwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lr_dist.distribution import LRDistribution
from lr_dist.rate_plan import RatePlan
from lr_dist.search.engine.optuna_private import storage_of
from lr_dist.search.engine.slots import by_slot
from lr_dist.search.engine.storage import study_errors
from lr_dist.search.trials.checked import checked_trials
from lr_dist.search.trials.precision import precisions
from lr_dist.search.trials.record import TrialRecord
from lr_dist.search.trials.workload import Work, seconds_left, work_of_references, work_of_trials

if TYPE_CHECKING:
    from optuna import Study

# The name of the study that confirms another begins with it.
CONFIRMATION = "confirmation/"


@dataclass(frozen=True)
class StudySummary:
    """The state of a study.

    Attributes:
        name: of the study.
        slots: total number of trials of the complete study.
        complete, pruned, failed, running, waiting: number of slots in each state; a diverged trial counts as failed,
            and a slot waits whether its trial is queued or not.
        best: the best complete and feasible trial; None if there is none, or for several objectives.
        precisions: precision -> number of trials started in it; a study with `auto` can have both.
        seconds_left: estimated from the trials and references that are finished, or from the epochs of those that are
            running; None before the first epoch has ended.
        references, references_done: number of flat rates to try for the references, and of those that are done.
        confirmations, confirmations_done: number of trials that confirm the best ones, and of those that are done.
    """

    name: str
    slots: int
    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int
    best: FrozenTrial | None
    precisions: dict[str, int]
    seconds_left: float | None
    references: int = 0
    references_done: int = 0
    confirmations: int = 0
    confirmations_done: int = 0

    @classmethod
    def of(cls, study: Study) -> StudySummary:
        """Read the study's storage.

        Raises:
            InvalidTrialsError: a trial was altered or damaged.
            StorageError: the study was deleted, or cannot be read.
        """
        current = by_slot(checked_trials(study))
        trials = list(current.values())
        with study_errors(study):
            references = work_of_references(study)
            confirming = _confirming(study)
            own = work_of_trials(study, current)
            work = [*references, own, *confirming]
        counts = Counter(trial.state for trial in trials)
        return cls(
            name=study.study_name,
            slots=own.slots,
            complete=counts[TrialState.COMPLETE],
            pruned=counts[TrialState.PRUNED],
            failed=counts[TrialState.FAIL],
            running=counts[TrialState.RUNNING],
            waiting=own.slots - own.done - counts[TrialState.RUNNING],
            best=best_trial(study, trials),
            precisions=precisions(trials),
            seconds_left=seconds_left(work),
            references=sum(each.slots for each in references),
            references_done=sum(each.done for each in references),
            confirmations=sum(each.slots for each in confirming),
            confirmations_done=sum(each.done for each in confirming),
        )

    @property
    def done(self) -> int:
        """Number of settled slots."""
        return self.complete + self.pruned + self.failed

    @property
    def finished(self) -> bool:
        """Whether no trial is left, and none to confirm."""
        return self.done >= self.slots and self.confirmations_done >= self.confirmations


def complete_trials(study: Study) -> list[FrozenTrial]:
    """The complete trials, one per slot, sorted by number."""
    current = by_slot(checked_trials(study)).values()
    return sorted((t for t in current if t.state == TrialState.COMPLETE), key=lambda t: t.number)


def best_trial(study: Study, trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The complete and feasible trial with the highest value; on a tie, the first one."""
    if len(study.directions) > 1:
        return None
    candidates = [t for t in trials if t.state == TrialState.COMPLETE and feasible(t)]
    return max(candidates, key=lambda t: (t.values[0], -t.number), default=None)


def feasible(trial: FrozenTrial) -> bool:
    """Whether a trial satisfies all of its constraints."""
    return all(value <= 0 for value in trial.constraints.values())


def distribution_of(trial: FrozenTrial) -> LRDistribution:
    """The distribution of a trial that has started."""
    tried = TrialRecord.of(trial).tried
    assert tried is not None, f"trial {trial.number} has not started"
    return tried


def plan_of(trial: FrozenTrial) -> RatePlan:
    """The distributions of all stages of a trial that has started."""
    planned = TrialRecord.of(trial).planned
    assert planned is not None, f"trial {trial.number} has not started"
    return planned


def not_learned(trial: FrozenTrial) -> list[str]:
    """The tasks whose final score in this trial is no better than their majority class, as `sst2>qqp: qqp`."""
    return [task for scores in TrialRecord.of(trial).scores for task in scores.not_learned]


def row_of(trial: FrozenTrial) -> dict[str, Any]:
    """A trial as a flat CSV row: slot, state, values, parameters, and p_o and p_s with their spread per sequence."""
    record = TrialRecord.of(trial)
    row: dict[str, Any] = {
        "trial": trial.number,
        "slot": record.slot,
        "label": record.label or "",
        "state": trial.state.name.lower(),
        "seconds": "" if record.seconds is None else record.seconds,
    }
    for index, value in enumerate(trial.values or ()):
        row[f"value_{index}" if len(trial.values) > 1 else "value"] = value
    row["reason"] = record.reason or ""
    for scores in record.scores:
        for key in ("p_o", "p_s", "p_o_sd", "p_s_sd"):
            value = getattr(scores, key)
            row[f"{scores.title} {key}"] = "" if value is None else value
        row[f"{scores.title} learned"] = all(scores.learned)
    return {**row, **{name: trial.params[name] for name in trial.params}}


def _confirming(study: Study) -> list[Work]:
    """The trials that confirm the best ones, if there are any."""
    try:
        confirmation = optuna.load_study(study_name=f"{CONFIRMATION}{study.study_name}", storage=storage_of(study))
    except KeyError:
        return []
    return [work_of_trials(confirmation, by_slot(confirmation.get_trials(deepcopy=False)))]
