"""A study of exactly N trials, whatever is killed: every trial fills a numbered slot.

All N trials are queued when a study starts; a worker takes a waiting one (the storage lets only one have it; for SQLite
a lock on a file does) and never makes one of its own. So the total is right by construction. What is lost with a worker
is queued again under its slot, by whoever looks next; where two look at once, the trial with the lower number keeps the
slot.

A slot is settled by a trial that is complete, pruned, or failed with a `reason` of its own (a diverged loss).
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from lr_dist.errors import StorageError
from lr_dist.search.engine.optuna_private import (
    engine_of,
    fixed_params,
    has_heartbeats,
    record_heartbeat,
    running_trial,
    storage_of,
    study_id,
    trial_id,
)
from lr_dist.search.engine.process import is_gone_here, machine, this_process
from lr_dist.search.engine.storage import GRACE_S, sqlite_file

SLOT, LABEL, OWNER, BEAT, REASON, ERROR = "slot", "label", "owner", "beat", "reason", "error"
# Of a trial that its worker gave back unfinished (Ctrl-C, SIGTERM, another trial had its slot): nobody's fault.
RETURNED = "returned"
# What finished of a lost trial is not run again.
RUNS = "runs"
KEPT = (RUNS,)
# A slot whose workers died so often without finishing one more run is given up: its trial may be what kills them.
MAX_LOST = 5
FREE: Mapping[str, Any] = {"params": {}, "attrs": {}}
# A worker names itself right after it has taken a trial; one without a name died in between.
NAMELESS_S = 60.0
# Ours among the advisory locks of a PostgreSQL database.
LOCK = 24040


def slot_of(trial: FrozenTrial | Trial) -> int | None:
    """The slot that a trial is for; None for one that lr-dist did not queue."""
    slot = trial.user_attrs.get(SLOT)
    return slot if isinstance(slot, int) and not isinstance(slot, bool) and slot >= 0 else None


def settled(trial: FrozenTrial) -> bool:
    """Whether this trial fills its slot for good."""
    if slot_of(trial) is None:
        return False
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or (
        trial.state == TrialState.FAIL and REASON in trial.user_attrs
    )


def by_slot(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """For each slot the trial that stands for it: a settled one, else one at work or waiting; the first of several."""
    found: dict[int, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda t: (not settled(t), t.state == TrialState.WAITING, t.number)):
        slot = slot_of(trial)
        if slot is not None and (settled(trial) or not trial.state.is_finished()):
            found.setdefault(slot, trial)
    return found


def is_complete(study: Study, slots: int) -> bool:
    """Whether each of the first so many slots is settled."""
    found = by_slot(study.get_trials(deepcopy=False))
    return all(slot in found and settled(found[slot]) for slot in range(slots))


def fill(study: Study, plan: Sequence[Mapping[str, Any]]) -> None:
    """Queue a trial for every slot that has none at work, waiting or settled.

    A slot whose trial was lost gets it again. The others get those entries of the plan that fix parameters and are not
    in the study yet, in their order, and then what the sampler draws.

    Args:
        study: the study.
        plan: for each slot, `params` (fixed ones; those missing are sampled) and `attrs` (user attributes).
    """
    # Whoever finds something missing waits here, so that of many commands that start at once only one queues it.
    if _missing(study.get_trials(deepcopy=False), plan):
        with exclusive(storage_of(study)), _alone_at(study):
            _fill(study, plan)


def claim(study: Study, slots: int | None = None) -> Trial | None:
    """Take the first waiting trial that fills a slot; None where none waits.

    Args:
        study: the study.
        slots: only one of the first so many slots; None: any.
    """
    with exclusive(storage_of(study)):
        return _claim(study, slots)


def release_dead(study: Study, watch: Watch | None = None) -> list[int]:
    """Fail the running trials whose worker is gone; returns the numbers of those that Optuna's own heartbeat did not
    show. `fill` queues all of them again.

    On this machine a worker is gone when its process is. Elsewhere it is gone when its heartbeat stopped: Optuna's own
    where the storage keeps them, else the one that `worker.run_trial` writes, as seen by this process's clock. A trial
    without an owner for a minute was taken by a worker that died in that moment.

    Args:
        study: the study.
        watch: what this process has seen before; without one only what can be told at once is.
    """
    watch = watch or Watch()
    with exclusive(storage_of(study)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)
        released = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _is_gone(trial, watch.still_s(trial), has_heartbeats(storage_of(study))):
                with contextlib.suppress(UpdateFinishedTrialError):
                    if storage_of(study).set_trial_state_values(trial_id(trial), state=TrialState.FAIL):
                        released.append(trial.number)
        return released


class Watch:
    """Since when the running trials of others show no sign of life, by this process's own clock."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, float]] = {}

    def still_s(self, trial: FrozenTrial) -> float:
        """Seconds for which this trial has looked as it does now."""
        sign = (trial.user_attrs.get(OWNER), trial.user_attrs.get(BEAT))
        before = self._seen.get(trial_id(trial))
        if before is None or before[0] != sign:
            before = self._seen[trial_id(trial)] = (sign, time.monotonic())
        return time.monotonic() - before[1]


@contextlib.contextmanager
def exclusive(storage: Any) -> Iterator[None]:
    """Alone with a SQLite file among the processes of this machine; nothing to do for other storages.

    Optuna reads a trial's state and writes it in two steps, and SQLite has no row to lock in between: two workers would
    both believe to have the same trial. Not to be nested.

    Raises:
        StorageError: the lock's file cannot be made.
    """
    file = sqlite_file(storage)
    if file is None:
        yield
        return
    from filelock import FileLock

    lock = FileLock(f"{file}.lock")
    try:
        lock.acquire()
    except OSError as error:
        raise StorageError(
            f"The lock {file}.lock beside the storage cannot be made: {error.strerror or error}. Check the permissions "
            "of the folder."
        ) from error
    # Released by the system, too, however the process ends.
    try:
        yield
    finally:
        lock.release()


def without_worker(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The user attributes with which a lost trial is queued again."""
    return {key: attrs[key] for key in (SLOT, LABEL, *KEPT) if key in attrs}


@contextlib.contextmanager
def _alone_at(study: Study) -> Iterator[None]:
    """Alone at this study of a PostgreSQL database, among all machines; other storages do not wait.

    Not needed for exactness, which the slots give: it saves the trials that several would queue for the same slots.
    """
    engine = engine_of(storage_of(study))
    if engine is None or engine.dialect.name != "postgresql":
        yield
        return
    from sqlalchemy import text

    with engine.connect() as connection:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(:first, :study)"), {"first": LOCK, "study": study_id(study)}
        )
        yield


def _missing(trials: Sequence[FrozenTrial], plan: Sequence[Mapping[str, Any]]) -> bool:
    taken = by_slot(trials)
    return any(slot not in taken for slot in range(len(plan)))


def _fill(study: Study, plan: Sequence[Mapping[str, Any]]) -> None:
    trials = [t for t in study.get_trials(deepcopy=False) if slot_of(t) is not None]
    taken = by_slot(trials)
    lost: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state.is_finished() and not settled(trial):
            lost.setdefault(trial.user_attrs[SLOT], []).append(trial)
    last = {slot: attempts[-1] for slot, attempts in lost.items()}
    wanted = iter(_not_there(plan, list({**last, **taken}.values())))
    for slot in range(len(plan)):
        if slot in taken:
            continue
        if slot not in last:
            entry = next(wanted, FREE)
            study.enqueue_trial(dict(entry["params"]), user_attrs={**entry["attrs"], SLOT: slot})
            continue
        # What was drawn for a lost trial is tried again, not another draw.
        trial, attrs = last[slot], without_worker(last[slot].user_attrs)
        reason = _why_given_up(lost[slot])
        if reason is None:
            study.enqueue_trial({**fixed_params(trial), **trial.params}, user_attrs=attrs)
        else:
            study.add_trial(
                create_trial(
                    state=TrialState.FAIL,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs={**attrs, REASON: reason},
                )
            )


def _why_given_up(attempts: Sequence[FrozenTrial]) -> str | None:
    """Why a slot is not tried again; None where it is."""

    def finished_runs(trial: FrozenTrial) -> int:
        runs = trial.user_attrs.get(RUNS, ())
        return len(runs) if isinstance(runs, (list, tuple)) else 0

    most = max(map(finished_runs, attempts))
    killed = sum(
        OWNER in t.user_attrs and not {ERROR, RETURNED} & t.user_attrs.keys() and finished_runs(t) == most
        for t in attempts
    )
    if killed < MAX_LOST:
        return None
    return (
        f"Its worker ended without a word {killed} times (killed, out of memory, a crash of its process or machine) "
        "and finished no further run, so it is not tried again."
    )


def _not_there(plan: Sequence[Mapping[str, Any]], trials: list[FrozenTrial]) -> list[Mapping[str, Any]]:
    """Those entries of the plan that say what to try, and that no slot has yet."""
    missing = []
    for entry in plan:
        label, params = entry["attrs"].get(LABEL), entry["params"]
        if not params:
            continue
        for trial in trials:
            if fixed_params(trial) == params or (label and trial.user_attrs.get(LABEL) == label):
                trials.remove(trial)
                break
        else:
            missing.append(entry)
    return missing


def _claim(study: Study, slots: int | None) -> Trial | None:
    for waiting in storage_of(study).get_all_trials(study_id(study), deepcopy=False, states=(TrialState.WAITING,)):
        slot = slot_of(waiting)
        if slot is None or (slots is not None and slot >= slots):
            continue
        # Another worker may have it; or it was taken here, and this process then stopped for so long (SIGSTOP, a paused
        # machine) that it was taken for dead and its trial was failed.
        with contextlib.suppress(UpdateFinishedTrialError):
            trial = _take(study, waiting)
            if trial is not None:
                return trial
    return None


def _take(study: Study, waiting: FrozenTrial) -> Trial | None:
    """Take one waiting trial; None where another worker has it or another trial fills its slot.

    Raises:
        UpdateFinishedTrialError: another process has failed it.
    """
    storage, key = storage_of(study), trial_id(waiting)
    if not storage.set_trial_state_values(key, state=TrialState.RUNNING):
        return None
    # Each of these alone is enough for others to see that this process died; until then the trial has no name.
    if has_heartbeats(storage):
        record_heartbeat(storage, key)
    storage.set_trial_user_attr(key, OWNER, this_process())
    if _is_second(study, waiting):
        storage.set_trial_user_attr(key, RETURNED, True)
        storage.set_trial_state_values(key, state=TrialState.FAIL)
        return None
    return running_trial(study, key)


def _is_second(study: Study, trial: FrozenTrial) -> bool:
    slot = slot_of(trial)
    others = [t for t in study.get_trials(deepcopy=False) if slot_of(t) == slot]
    return any(settled(t) or (not t.state.is_finished() and t.number < trial.number) for t in others)


def _is_gone(trial: FrozenTrial, still_s: float, heartbeats: bool) -> bool:
    owner = trial.user_attrs.get(OWNER)
    if not isinstance(owner, Mapping) or not {"pid", "started"} <= owner.keys():
        return still_s > NAMELESS_S
    if owner.get("machine") == machine():
        return is_gone_here(owner)
    return not heartbeats and still_s > GRACE_S
