"""One worker: takes waiting trials of a study, runs them, and tells their values, until none is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from optuna import Study, TrialPruned
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState

from lr_dist.errors import DivergedError, LRDistError, TrialError
from lr_dist.search.slots import ERROR, REASON, by_slot, claim, fill, release_dead

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
    """Run trials until every slot of `plan` is settled, waiting for those at other workers.

    Args:
        study: shared with other workers through its storage.
        objective: runs a trial.
        plan: the slots, see `lr_dist.search.slots.fill`.
        stopped: asked between trials.
        poll_s: seconds between looks where nothing waits but others still work.

    Raises:
        LRDistError: what a trial raised; its slot is queued again for the next start.
    """
    while not stopped():
        release_dead(study)
        fill(study, plan)
        trial = claim(study)
        if trial is not None:
            run_trial(study, trial, objective)
            continue
        trials = study.get_trials(deepcopy=False)
        if all(t.state.is_finished() for t in by_slot(trials).values()) and len(by_slot(trials)) >= len(plan):
            return
        time.sleep(poll_s)


def run_trial(study: Study, trial: Trial, objective: Objective) -> None:
    """Run one trial that this process has taken, and tell how it ended.

    A diverged run settles its slot as failed, with the reason; anything else that ends a trial early, Ctrl-C too,
    leaves the slot to be queued again.
    """
    with _heartbeat(study._storage, trial._trial_id):
        try:
            values = objective(trial)
        except TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        except DivergedError as error:
            trial.set_user_attr(REASON, str(error))
            study.tell(trial, state=TrialState.FAIL)
        except BaseException as error:
            if isinstance(error, Exception):
                _note_error(study, trial, error)
            study.tell(trial, state=TrialState.FAIL)
            if not isinstance(error, Exception) or isinstance(error, LRDistError):
                raise
            raise TrialError(
                f"Trial {trial.number} ended with {type(error).__name__}: {error}. What finished is kept; start the "
                "same command again to retry it."
            ) from error
        else:
            study.tell(trial, list(values))


def _note_error(study: Study, trial: Trial, error: Exception) -> None:
    """Keep the error; a slot that failed so often is settled, so that one bad trial does not block the study."""
    trial.set_user_attr(ERROR, f"{type(error).__name__}: {error}"[:1000])
    slot = trial.user_attrs.get("slot")
    errors = sum(t.user_attrs.get("slot") == slot and ERROR in t.user_attrs for t in study.get_trials(deepcopy=False))
    if errors >= MAX_ERRORS:
        trial.set_user_attr(REASON, f"failed {errors} times, last with {type(error).__name__}: {error}"[:1000])


@contextmanager
def _heartbeat(storage: BaseStorage, trial_id: int) -> Iterator[None]:
    """Keep telling a storage that records heartbeats that this trial is alive."""
    interval = getattr(storage, "get_heartbeat_interval", lambda: None)()
    if not interval:
        yield
        return
    ended = threading.Event()

    def beat() -> None:
        while True:
            storage.record_heartbeat(trial_id)  # type: ignore[attr-defined]
            if ended.wait(interval):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=interval)
