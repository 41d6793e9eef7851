"""How much work a study is, and how long the rest of it takes: its references and its trials."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lr_dist.search.engine.optuna_private import storage_of
from lr_dist.search.engine.slots import by_slot, number_of_slots, settled
from lr_dist.search.trials.record import TrialRecord

if TYPE_CHECKING:
    from optuna import Study

WORKLOAD = "lr_dist_workload"


@dataclass(frozen=True)
class Work:
    """Trials of one kind: those of a study, or the flat rates of one of its references.

    Attributes:
        trials: the current trial of each slot that is queued.
        slots: number of slots.
        steps: training steps of a whole trial; None if it is not known.
    """

    trials: Sequence[FrozenTrial]
    slots: int
    steps: float | None = None

    @property
    def done(self) -> int:
        """Number of settled slots."""
        return sum(map(settled, self.trials))

    @property
    def left(self) -> int:
        """Number of slots that are not settled."""
        return self.slots - self.done


def note_workload(study: Study, trial_steps: int, references: Mapping[str, tuple[int, int]]) -> None:
    """Store with a study how much work it is.

    Args:
        study: the study.
        trial_steps: training steps of one trial.
        references: name of each reference study -> its number of trials, and the steps of one.
    """
    stored = _stored(study)
    # Machines that train in another precision have other references.
    together = {**stored.get("references", {}), **{name: list(each) for name, each in references.items()}}
    workload = {"trial": trial_steps, "references": together}
    if stored != workload:
        study.set_user_attr(WORKLOAD, workload)


def reference_names(study: Study) -> list[str]:
    """Names of the studies of the flat references; empty if there are none, or if the study does not record them."""
    return list(_stored(study).get("references", {}))


def work_of_references(study: Study) -> list[Work]:
    """The references of a study, done and to be done."""
    works = []
    for name, (slots, steps) in _stored(study).get("references", {}).items():
        try:
            reference = optuna.load_study(study_name=name, storage=storage_of(study))
            trials = list(by_slot(reference.get_trials(deepcopy=False)).values())
        except KeyError:  # no worker has begun it
            trials = []
        works.append(Work(trials, slots, steps))
    return works


def work_of_trials(study: Study, current: Mapping[int, FrozenTrial]) -> Work:
    """The trials of a study; `current` is the trial of each slot that is queued."""
    steps = _stored(study).get("trial")
    return Work(
        list(current.values()), number_of_slots(study, current), steps if isinstance(steps, (int, float)) else None
    )


def seconds_left(works: Sequence[Work]) -> float | None:
    """Estimate the time until all work is done, with as many workers as are running trials now.

    It is estimated from finished trials, and before there are any, from the epochs that running ones have finished.

    Returns:
        Seconds; None if no epoch is finished yet.
    """
    if not any(work.left for work in works):
        return 0.0
    pace = _seconds_per_step(works)
    total = 0.0
    for work in works:
        if not work.left:
            continue
        durations = [t.duration.total_seconds() for t in work.trials if settled(t) and t.duration is not None]
        if durations:
            typical = statistics.fmean(durations)
        elif pace is not None and work.steps is not None:
            typical = pace * work.steps
        else:
            return None
        total += typical * work.left
    running = [t for work in works for t in work.trials if t.state == TrialState.RUNNING]
    now = datetime.now()
    spent = sum((now - t.datetime_start).total_seconds() for t in running if t.datetime_start)
    return max(0.0, total - spent) / max(1, len(running))


def _seconds_per_step(works: Sequence[Work]) -> float | None:
    seconds = steps = 0.0
    for work in works:
        for trial in work.trials:
            progress = TrialRecord.of(trial).progress
            if trial.state in (TrialState.RUNNING, TrialState.COMPLETE) and progress and progress["done"]:
                seconds += progress["seconds"]
                steps += progress["done"]
    return seconds / steps if steps else None


class TrialProgress:
    """The progress of a trial through its training steps.

    Args:
        total: training steps of the trial. Those that turn out to be taken over from other trials do not count.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = time.monotonic()

    def skip(self, steps: int) -> None:
        """Steps that need not be made."""
        self._total -= steps

    def add(self, steps: int) -> None:
        """Steps that have been made."""
        self._done += steps

    def to_dict(self) -> dict[str, float]:
        """Plain data: `done` and `total` steps, and the seconds so far."""
        return {"done": self._done, "total": self._total, "seconds": round(time.monotonic() - self._began, 3)}


def _stored(study: Study) -> dict[str, Any]:
    stored = study.user_attrs.get(WORKLOAD)
    return dict(stored) if isinstance(stored, Mapping) else {}
