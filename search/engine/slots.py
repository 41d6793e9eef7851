"""A study of exactly N trials, even if workers are killed: every trial fills a numbered slot.

Trials are queued for the slots in order, `WINDOW` at a time: every worker reads all waiting trials at every turn. A
worker claims a waiting trial (atomically, by the storage; for SQLite, under a file lock), so a slot is filled once, and
there are no more than N. A trial that is lost with its worker is queued again under the same slot, by any process that
notices. If two processes do this at once, the trial with the lower number keeps the slot.

A slot is settled by a trial that is complete, pruned, or failed for good with a `reason` (such as a diverged loss).
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
# Marks a trial that its worker gave back unfinished (Ctrl-C, SIGTERM, slot already taken); not counted as an error.
RETURNED = "returned"
# The finished runs of a lost trial are kept, and not run again.
RUNS = "runs"
KEPT = (RUNS,)
# A slot is given up after its workers died this often without finishing another run: the trial may be the cause.
MAX_LOST = 5
SAMPLED: Mapping[str, Any] = {"params": {}, "attrs": {}}
# A worker records itself as the owner right after it claims a trial. No owner after this time: it died in between.
NAMELESS_S = 60.0
# So many trials wait at most; more are queued when fewer than half of them are left.
WINDOW = 100
# The study's attribute that counts its slots, of which not all are queued.
SLOTS = "lr_dist_slots"
# Our key among the advisory locks of a PostgreSQL database.
LOCK = 24040


def slot_of(trial: FrozenTrial | Trial) -> int | None:
    """A trial's slot; None if lr-dist did not queue the trial."""
    slot = trial.user_attrs.get(SLOT)
    return slot if isinstance(slot, int) and not isinstance(slot, bool) and slot >= 0 else None


def settled(trial: FrozenTrial) -> bool:
    """Whether this trial settles its slot: complete, pruned, or failed for good."""
    if slot_of(trial) is None:
        return False
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or (
        trial.state == TrialState.FAIL and REASON in trial.user_attrs
    )


def by_slot(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The current trial of each slot: a settled one, else a running or waiting one; the first if there are several."""
    current: dict[int, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda t: (not settled(t), t.state == TrialState.WAITING, t.number)):
        slot = slot_of(trial)
        if slot is not None and (settled(trial) or not trial.state.is_finished()):
            current.setdefault(slot, trial)
    return current


def number_of_slots(study: Study, current: Mapping[int, FrozenTrial]) -> int:
    """Slots of a study, queued or not; `current` is what `by_slot` gave."""
    noted = study.user_attrs.get(SLOTS)
    return max(len(current), noted if isinstance(noted, int) else 0)


def is_complete(study: Study, slots: int) -> bool:
    """Whether the first `slots` slots are all settled."""
    current = by_slot(study.get_trials(deepcopy=False))
    return all(slot in current and settled(current[slot]) for slot in range(slots))


def fill(study: Study, plan: Sequence[Mapping[str, Any]]) -> None:
    """Queue trials for the slots that have no running, waiting or settled one, in order, until `WINDOW` of them wait.

    Nothing is done while half of these still wait, unless a trial was lost: then the same trial is queued again. The
    other slots get the entries of the plan that fix parameters and are not in the study yet, in order, and after those
    trials whose parameters are sampled.

    Args:
        study: the study.
        plan: for each slot, `params` (fixed values; the missing ones are sampled) and `attrs` (user attributes).
    """
    # Checked again under the lock: if many commands start at once, only one of them queues the trials.
    if _missing(study.get_trials(deepcopy=False), plan):
        with exclusive(storage_of(study)), _study_lock(study):
            _fill(study, plan)


def claim(study: Study, slots: int | None = None) -> Trial | None:
    """Claim the first waiting trial of a slot; None if no trial is waiting.

    Args:
        study: the study.
        slots: claim only from the first `slots` slots; None for all.
    """
    with exclusive(storage_of(study)):
        return _claim(study, slots)


def release_dead(study: Study, liveness: Liveness | None = None) -> list[int]:
    """Fail the running trials whose worker is dead, so that `fill` queues them again.

    On this machine, a worker is dead if its process does not exist. On other machines, it is dead if its heartbeat has
    stopped: Optuna's own if the storage records heartbeats, otherwise the one written by `worker.run_trial`, measured
    by this process's clock. A trial that has had no owner for a minute was claimed by a worker that died right then.

    Args:
        study: the study.
        liveness: earlier observations of this process; without them, only workers of this machine can be found dead.

    Returns:
        The numbers of the failed trials, without those that Optuna failed by its own heartbeat.
    """
    liveness = liveness or Liveness()
    with exclusive(storage_of(study)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)
        released = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _is_dead(trial, liveness.silent_s(trial), has_heartbeats(storage_of(study))):
                with contextlib.suppress(UpdateFinishedTrialError):
                    if storage_of(study).set_trial_state_values(trial_id(trial), state=TrialState.FAIL):
                        released.append(trial.number)
        return released


class Liveness:
    """How long the running trials of other workers have sent no heartbeat, by this process's own clock."""

    def __init__(self) -> None:
        self._last_change: dict[int, tuple[Any, float]] = {}

    def silent_s(self, trial: FrozenTrial) -> float:
        """Seconds since this trial's owner or heartbeat last changed, as observed by this process."""
        state = (trial.user_attrs.get(OWNER), trial.user_attrs.get(BEAT))
        last = self._last_change.get(trial_id(trial))
        if last is None or last[0] != state:
            last = self._last_change[trial_id(trial)] = (state, time.monotonic())
        return time.monotonic() - last[1]


@contextlib.contextmanager
def exclusive(storage: Any) -> Iterator[None]:
    """Lock a SQLite file among the processes of this machine; does nothing for other storages.

    Optuna reads and writes a trial's state in two steps, and SQLite has no row locks, so two workers could both claim
    the same trial. Not reentrant.

    Raises:
        StorageError: the lock file cannot be created.
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
            f"The lock file {file}.lock next to the storage cannot be created: {error.strerror or error}. Check the "
            "permissions of the folder."
        ) from error
    # If the process is killed, the operating system releases the lock.
    try:
        yield
    finally:
        lock.release()


def without_worker(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The user attributes that a lost trial keeps when it is queued again."""
    return {key: attrs[key] for key in (SLOT, LABEL, *KEPT) if key in attrs}


@contextlib.contextmanager
def _study_lock(study: Study) -> Iterator[None]:
    """Lock this study in a PostgreSQL database, for all machines; does nothing for other storages.

    The slots alone keep the total exact. The lock only avoids surplus trials, queued by several processes at once.
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
    """Whether slots are to be filled now: those of lost trials, or new ones because few trials wait."""
    taken = by_slot(trials)
    missing = {slot for slot in range(len(plan)) if slot not in taken}
    if not missing:
        return False
    waiting = sum(trial.state == TrialState.WAITING for trial in taken.values())
    return waiting <= WINDOW // 2 or any(slot_of(trial) in missing for trial in trials)


def _fill(study: Study, plan: Sequence[Mapping[str, Any]]) -> None:
    trials = [t for t in study.get_trials(deepcopy=False) if slot_of(t) is not None]
    taken = by_slot(trials)
    if len(plan) > number_of_slots(study, taken):
        study.set_user_attr(SLOTS, len(plan))
    lost: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state.is_finished() and not settled(trial):
            lost.setdefault(trial.user_attrs[SLOT], []).append(trial)
    last = {slot: attempts[-1] for slot, attempts in lost.items()}
    unqueued = iter(_not_queued(plan, list({**last, **taken}.values())))
    waiting = sum(trial.state == TrialState.WAITING for trial in taken.values())
    for slot in range(len(plan)):
        if slot in taken:
            continue
        if slot not in last:
            if waiting >= WINDOW:
                continue
            waiting += 1
            entry = next(unqueued, SAMPLED)
            study.enqueue_trial(dict(entry["params"]), user_attrs={**entry["attrs"], SLOT: slot})
            continue
        # A lost trial is run again with the parameters that were sampled for it, not with new ones.
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
    """Why a slot is given up; None if it is to be tried again."""

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
        f"Its worker died {killed} times without an error message (killed, out of memory, or a crash of the process or "
        "machine) and finished no further run, so it is not tried again."
    )


def _not_queued(plan: Sequence[Mapping[str, Any]], trials: list[FrozenTrial]) -> list[Mapping[str, Any]]:
    """The entries of the plan with fixed parameters that no trial of the study has yet."""
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
        # Another worker may have claimed it. Or we did, but were paused for so long (SIGSTOP, a suspended machine) that
        # another process took this one for dead and failed its trial.
        with contextlib.suppress(UpdateFinishedTrialError):
            trial = _claim_one(study, waiting)
            if trial is not None:
                return trial
    return None


def _claim_one(study: Study, waiting: FrozenTrial) -> Trial | None:
    """Claim one waiting trial; None if another worker has it, or another trial has its slot.

    Raises:
        UpdateFinishedTrialError: another process has failed it.
    """
    storage, key = storage_of(study), trial_id(waiting)
    if not storage.set_trial_state_values(key, state=TrialState.RUNNING):
        return None
    # Either of these lets other processes detect that this one died; until then the trial has no owner.
    if has_heartbeats(storage):
        record_heartbeat(storage, key)
    storage.set_trial_user_attr(key, OWNER, this_process())
    if _is_duplicate(study, waiting):
        storage.set_trial_user_attr(key, RETURNED, True)
        storage.set_trial_state_values(key, state=TrialState.FAIL)
        return None
    return running_trial(study, key)


def _is_duplicate(study: Study, trial: FrozenTrial) -> bool:
    slot = slot_of(trial)
    others = [t for t in study.get_trials(deepcopy=False) if slot_of(t) == slot]
    return any(settled(t) or (not t.state.is_finished() and t.number < trial.number) for t in others)


def _is_dead(trial: FrozenTrial, silent_s: float, heartbeats: bool) -> bool:
    owner = trial.user_attrs.get(OWNER)
    if not isinstance(owner, Mapping) or not {"pid", "started"} <= owner.keys():
        return silent_s > NAMELESS_S
    if owner.get("machine") == machine():
        return is_gone_here(owner)
    return not heartbeats and silent_s > GRACE_S
