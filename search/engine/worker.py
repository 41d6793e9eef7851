"""One worker: claims waiting trials of a study, runs them and reports their values, until none is left."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from optuna import Study, TrialPruned
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState

from lr_dist.errors import DivergedError, LRDistError, TrialError
from lr_dist.runs.redact import redact
from lr_dist.search.engine.optuna_private import has_heartbeats, record_heartbeat, storage_of, trial_id
from lr_dist.search.engine.slots import (
    BEAT,
    ERROR,
    REASON,
    RETURNED,
    Liveness,
    claim,
    exclusive,
    fill,
    is_complete,
    release_dead,
    slot_of,
)
from lr_dist.search.engine.storage import HEARTBEAT_S, is_storage_error, study_errors
from lr_dist.sequence.interrupts import interruptible, interrupts_held_back

MAX_ERRORS = 3
Objective = Callable[[Trial], Sequence[float]]


def drain(
    study: Study,
    objective: Objective,
    plan: Sequence[Mapping[str, Any]],
    *,
    stopped: Callable[[], bool] = lambda: False,
    poll_s: float = 2.0,
) -> None:
    """Run trials until every slot of `plan` is settled, also those that other workers run.

    Args:
        study: shared with other workers through its storage.
        objective: runs a trial. Ctrl-C and SIGTERM interrupt it only inside
            `lr_dist.sequence.interrupts.interruptible`, where it must not use the storage: an interrupted storage call
            could leave the trial in state running forever.
        plan: the slots, see `lr_dist.search.engine.slots.fill`.
        stopped: called between trials; True stops the worker.
        poll_s: polling interval in seconds while other workers run the last trials.

    Raises:
        StorageError: the storage could not be read or written, or the study was deleted.
        LRDistError: the error of a trial; its slot is queued again at the next start.
    """
    liveness = Liveness()
    with study_errors(study), interrupts_held_back():
        while True:
            with interruptible():
                if stopped():
                    return
            release_dead(study, liveness)
            fill(study, plan)
            trial = claim(study, len(plan))
            if trial is not None:
                run_trial(study, trial, objective)
            elif is_complete(study, len(plan)):
                return
            else:
                with interruptible():
                    time.sleep(poll_s)


def run_trial(study: Study, trial: Trial, objective: Objective) -> None:
    """Run one trial that this process has claimed, and report its outcome.

    A diverged run settles its slot as failed, with the reason. If anything else ends the trial early (Ctrl-C included),
    the slot is queued again. If this process was taken for dead and another one has the slot, the result is dropped.
    """
    with _heartbeat(storage_of(study), trial_id(trial)):
        try:
            values = _finite(objective(trial))
        except TrialPruned:
            _tell(study, trial, TrialState.PRUNED)
        except DivergedError as error:
            with contextlib.suppress(UpdateFinishedTrialError):
                trial.set_user_attr(REASON, redact(str(error)))
            _tell(study, trial, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return
        except BaseException as error:
            # The first error is shown, even if reporting it to the storage fails as well.
            with contextlib.suppress(Exception):
                if not isinstance(error, Exception):
                    trial.set_user_attr(RETURNED, True)
                elif not is_storage_error(error):
                    _note_error(study, trial, error)
                _tell(study, trial, TrialState.FAIL)
            if not isinstance(error, Exception) or isinstance(error, LRDistError) or is_storage_error(error):
                raise
            raise TrialError(
                f"Trial {trial.number} ended with {type(error).__name__}: {redact(str(error))}. Finished trials are "
                "kept; run the same command again to retry this one."
            ) from error
        else:
            _tell(study, trial, TrialState.COMPLETE, values)


def _finite(values: Sequence[float]) -> list[float]:
    """Check the values: Optuna would silently fail a trial with NaN, and its slot would be queued again forever."""
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise DivergedError(f"The trial's value is {', '.join(map(str, numbers))}: scores must be finite.")
    return numbers


def _tell(study: Study, trial: Trial, state: TrialState, values: list[float] | None = None) -> None:
    with exclusive(storage_of(study)), contextlib.suppress(UpdateFinishedTrialError):
        study.tell(trial, values, state=state, skip_if_finished=True)


def _note_error(study: Study, trial: Trial, error: Exception) -> None:
    """Record the error. After `MAX_ERRORS` errors the slot is settled, so that one bad trial cannot block the study."""
    message = redact(f"{type(error).__name__}: {error}")
    trial.set_user_attr(ERROR, message[:1000])
    slot = slot_of(storage_of(study).get_trial(trial_id(trial)))
    errors = sum(slot_of(t) == slot and ERROR in t.user_attrs for t in study.get_trials(deepcopy=False))
    if errors >= MAX_ERRORS:
        trial.set_user_attr(REASON, f"failed {errors} times, last with {message}"[:1000])


@contextmanager
def _heartbeat(storage: BaseStorage, key: int) -> Iterator[None]:
    """Record heartbeats of a running trial; in a user attribute if the storage itself has none."""
    ended = threading.Event()

    def beat() -> None:
        for count in range(2**63):
            # Errors of the storage are handled by the main thread; it may be reachable again at the next heartbeat.
            with contextlib.suppress(Exception):
                if has_heartbeats(storage):
                    record_heartbeat(storage, key)
                else:
                    storage.set_trial_user_attr(key, BEAT, count)
            if ended.wait(HEARTBEAT_S):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=HEARTBEAT_S)
