"""A study of exactly N trials, whatever is killed: every trial fills a numbered slot.

All N trials are queued when a study starts; a worker takes a waiting one (the storage lets only one have it; for SQLite
a lock on a file does) and never makes one of its own. So the total is right by construction. What is lost with a worker
is queued again under its slot, by whoever looks next; where two look at once, the trial with the lower number keeps the
slot.

A slot is settled by a trial that is complete, pruned, or failed with a `reason` of its own (a diverged loss).
"""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from filelock import FileLock
from optuna import Study
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

SLOT, OWNER, REASON, ERROR = "slot", "owner", "reason", "error"
# What finished of a lost trial is not run again.
KEPT = ("runs",)
NAMELESS = timedelta(minutes=1)


def settled(trial: FrozenTrial) -> bool:
    """Whether this trial fills its slot for good."""
    if SLOT not in trial.user_attrs:
        return False
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or (
        trial.state == TrialState.FAIL and REASON in trial.user_attrs
    )


def by_slot(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """For each slot the trial that stands for it: a settled one, else one at work or waiting; the first of several."""
    found: dict[int, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda t: (not settled(t), t.state == TrialState.WAITING, t.number)):
        slot = trial.user_attrs.get(SLOT)
        if slot is not None and (settled(trial) or not trial.state.is_finished()):
            found.setdefault(slot, trial)
    return found


def fill(study: Study, plan: Sequence[Mapping[str, Any]]) -> None:
    """Queue a trial for every slot that has none at work, waiting or settled.

    Args:
        study: the study.
        plan: for each slot, `params` (fixed ones; those missing are sampled) and `attrs` (user attributes).
    """
    with exclusive(study._storage):
        _fill(study, plan)


def claim(study: Study) -> Trial | None:
    """Take the first waiting trial; None where none waits."""
    with exclusive(study._storage):
        return _claim(study)


def release_dead(study: Study) -> list[int]:
    """Fail the running trials whose worker is gone; returns their numbers. `fill` queues them again.

    On this machine a worker is gone when its process is; elsewhere, where the storage keeps heartbeats, when its
    heartbeat stopped. A trial without an owner for a minute was taken by a worker that died in that moment.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    released = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _is_gone(trial):
            continue
        with contextlib.suppress(UpdateFinishedTrialError):
            if study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
                released.append(trial.number)
    return released


@contextlib.contextmanager
def exclusive(storage: Any) -> Iterator[None]:
    """Alone with a SQLite file among the processes of this machine; nothing to do for other storages.

    Optuna reads a trial's state and writes it in two steps, and SQLite has no row to lock in between: two workers would
    both believe to have the same trial.
    """
    url = str(getattr(getattr(storage, "_backend", storage), "url", ""))
    if not url.startswith("sqlite:///"):
        yield
        return
    # Released by the system however the process ends.
    with FileLock(f"{url.removeprefix('sqlite:///').partition('?')[0]}.lock"):
        yield


def owner() -> dict[str, Any]:
    """This process, so that others can tell whether it still lives."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _started(pid)}


def _fill(study: Study, plan: Sequence[Mapping[str, Any]]) -> None:
    trials = study.get_trials(deepcopy=False)
    taken = by_slot(trials)
    for slot, entry in enumerate(plan):
        if slot in taken:
            continue
        lost = [t for t in trials if t.user_attrs.get(SLOT) == slot]
        # What was drawn for a lost trial is tried again, not another draw.
        params = dict(lost[-1].params) or entry["params"] if lost else entry["params"]
        kept = {key: lost[-1].user_attrs[key] for key in KEPT if lost and key in lost[-1].user_attrs}
        study.enqueue_trial(dict(params), user_attrs={**entry["attrs"], **kept, SLOT: slot})


def _claim(study: Study) -> Trial | None:
    storage, study_id = study._storage, study._study_id
    for waiting in storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.WAITING,)):
        try:
            if not storage.set_trial_state_values(waiting._trial_id, state=TrialState.RUNNING):
                continue
        except UpdateFinishedTrialError:
            continue
        if _is_second(study, waiting):
            with contextlib.suppress(UpdateFinishedTrialError):
                storage.set_trial_state_values(waiting._trial_id, state=TrialState.FAIL)
            continue
        storage.set_trial_user_attr(waiting._trial_id, OWNER, owner())
        return Trial(study, waiting._trial_id)
    return None


def _is_second(study: Study, trial: FrozenTrial) -> bool:
    slot = trial.user_attrs.get(SLOT)
    others = [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get(SLOT) == slot]
    return any(settled(t) or (not t.state.is_finished() and t.number < trial.number) for t in others)


def _is_gone(trial: FrozenTrial) -> bool:
    owner_of = trial.user_attrs.get(OWNER)
    if owner_of is None:
        begun = trial.datetime_start
        return begun is not None and datetime.now() - begun > NAMELESS
    return owner_of["host"] == socket.gethostname() and _started(owner_of["pid"]) != owner_of["started"]


def _started(pid: int) -> float | None:
    """When a process began: the same number may serve another one later. None where there is no such process."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 2)
    except psutil.NoSuchProcess:
        return None
