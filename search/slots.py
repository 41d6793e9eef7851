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
from optuna.trial import FrozenTrial, Trial, TrialState

from lr_dist.errors import StorageError
from lr_dist.search.process import is_gone_here, machine, this_process
from lr_dist.search.storage import GRACE_S, backend_of, sqlite_file

SLOT, LABEL, OWNER, BEAT, REASON, ERROR = "slot", "label", "owner", "beat", "reason", "error"
# What finished of a lost trial is not run again.
KEPT = ("runs",)
FREE: Mapping[str, Any] = {"params": {}, "attrs": {}}
# A worker names itself right after it has taken a trial; one without a name died in between.
NAMELESS_S = 60.0
# Ours among the advisory locks of a PostgreSQL database.
LOCK = 24040


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
        with exclusive(study._storage), _alone_at(study):
            _fill(study, plan)


def claim(study: Study, slots: int | None = None) -> Trial | None:
    """Take the first waiting trial that fills a slot; None where none waits.

    Args:
        study: the study.
        slots: only one of the first so many slots; None: any.
    """
    with exclusive(study._storage):
        return _claim(study, slots)


def release_dead(study: Study, watch: Watch | None = None) -> list[int]:
    """Fail the running trials whose worker is gone; returns their numbers. `fill` queues them again.

    On this machine a worker is gone when its process is. Elsewhere it is gone when its heartbeat stopped: Optuna's own
    where the storage keeps them, else the one that `lr_dist.search.worker` writes, as seen by this process's clock. A
    trial without an owner for a minute was taken by a worker that died in that moment.

    Args:
        study: the study.
        watch: what this process has seen before; without one only what can be told at once is.
    """
    watch = watch or Watch()
    with exclusive(study._storage):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)
        released = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _is_gone(trial, watch.still_s(trial), has_heartbeats(study._storage)):
                with contextlib.suppress(UpdateFinishedTrialError):
                    if study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
                        released.append(trial.number)
        return released


class Watch:
    """Since when the running trials of others show no sign of life, by this process's own clock."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, float]] = {}

    def still_s(self, trial: FrozenTrial) -> float:
        """Seconds for which this trial has looked as it does now."""
        sign = (trial.user_attrs.get(OWNER), trial.user_attrs.get(BEAT))
        before = self._seen.get(trial._trial_id)
        if before is None or before[0] != sign:
            before = self._seen[trial._trial_id] = (sign, time.monotonic())
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


def has_heartbeats(storage: Any) -> bool:
    """Whether the storage keeps heartbeats itself: databases do, journals and the gRPC proxy do not."""
    return bool(getattr(storage, "get_heartbeat_interval", lambda: None)())


def without_worker(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The user attributes with which a lost trial is queued again."""
    return {key: attrs[key] for key in (SLOT, LABEL, *KEPT) if key in attrs}


@contextlib.contextmanager
def _alone_at(study: Study) -> Iterator[None]:
    """Alone at this study of a PostgreSQL database, among all machines; other storages do not wait.

    Not needed for exactness, which the slots give: it saves the trials that several would queue for the same slots.
    """
    engine = getattr(backend_of(study._storage), "engine", None)
    if engine is None or engine.dialect.name != "postgresql":
        yield
        return
    from sqlalchemy import text

    with engine.connect() as connection:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(:first, :study)"), {"first": LOCK, "study": study._study_id}
        )
        yield


def _missing(trials: Sequence[FrozenTrial], plan: Sequence[Mapping[str, Any]]) -> bool:
    taken = by_slot(trials)
    return any(slot not in taken for slot in range(len(plan)))


def _fill(study: Study, plan: Sequence[Mapping[str, Any]]) -> None:
    trials = [t for t in study.get_trials(deepcopy=False) if SLOT in t.user_attrs]
    taken = by_slot(trials)
    lost = {t.user_attrs[SLOT]: t for t in trials if t.state.is_finished() and not settled(t)}
    wanted = iter(_not_there(plan, list({**lost, **taken}.values())))
    for slot in range(len(plan)):
        if slot in taken:
            continue
        if slot in lost:
            # What was drawn for a lost trial is tried again, not another draw.
            params = {**lost[slot].system_attrs.get("fixed_params", {}), **lost[slot].params}
            attrs = without_worker(lost[slot].user_attrs)
        else:
            entry = next(wanted, FREE)
            params, attrs = dict(entry["params"]), dict(entry["attrs"])
        study.enqueue_trial(params, user_attrs={**attrs, SLOT: slot})


def _not_there(plan: Sequence[Mapping[str, Any]], trials: list[FrozenTrial]) -> list[Mapping[str, Any]]:
    """Those entries of the plan that say what to try, and that no slot has yet."""
    missing = []
    for entry in plan:
        label, params = entry["attrs"].get(LABEL), entry["params"]
        if not params:
            continue
        for trial in trials:
            if trial.system_attrs.get("fixed_params") == params or (label and trial.user_attrs.get(LABEL) == label):
                trials.remove(trial)
                break
        else:
            missing.append(entry)
    return missing


def _claim(study: Study, slots: int | None) -> Trial | None:
    storage, study_id = study._storage, study._study_id
    for waiting in storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.WAITING,)):
        slot = waiting.user_attrs.get(SLOT)
        if slot is None or (slots is not None and slot >= slots):
            continue
        try:
            if not storage.set_trial_state_values(waiting._trial_id, state=TrialState.RUNNING):
                continue
        except UpdateFinishedTrialError:
            continue
        # Each of these alone is enough for others to see that this process died; until then the trial has no name.
        if has_heartbeats(storage):
            storage.record_heartbeat(waiting._trial_id)  # type: ignore[attr-defined]
        storage.set_trial_user_attr(waiting._trial_id, OWNER, this_process())
        if _is_second(study, waiting):
            with contextlib.suppress(UpdateFinishedTrialError):
                storage.set_trial_state_values(waiting._trial_id, state=TrialState.FAIL)
            continue
        return Trial(study, waiting._trial_id)
    return None


def _is_second(study: Study, trial: FrozenTrial) -> bool:
    slot = trial.user_attrs[SLOT]
    others = [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get(SLOT) == slot]
    return any(settled(t) or (not t.state.is_finished() and t.number < trial.number) for t in others)


def _is_gone(trial: FrozenTrial, still_s: float, heartbeats: bool) -> bool:
    owner = trial.user_attrs.get(OWNER)
    if owner is None:
        return still_s > NAMELESS_S
    if owner.get("machine") == machine():
        return is_gone_here(owner)
    return not heartbeats and still_s > GRACE_S
