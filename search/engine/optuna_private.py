"""The only module that uses private names of Optuna; a test checks the behaviour of each.

Optuna has no public way to claim a particular waiting trial, to fail a trial of another process, or to access the
storage of a study.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial


def storage_of(study: Study) -> BaseStorage:
    """The study's storage; a database is wrapped in a cache, see `backend_of`."""
    return study._storage


def study_id(study: Study) -> int:
    """The study's id in its storage."""
    return study._study_id


def trial_id(trial: FrozenTrial | Trial) -> int:
    """The trial's id in its storage; not its number, which counts from 0 in each study."""
    return trial._trial_id


def running_trial(study: Study, key: int) -> Trial:
    """The trial with this id, to pass to an objective: it suggests the values that were fixed when it was queued."""
    from optuna.trial import Trial

    return Trial(study, key)


def fixed_params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that were fixed when the trial was queued; empty if there are none."""
    fixed = trial.system_attrs.get("fixed_params")
    return dict(fixed) if isinstance(fixed, Mapping) else {}


def backend_of(storage: Any) -> Any:
    """The storage without the cache in which Optuna wraps a database."""
    return getattr(storage, "_backend", storage)


def engine_of(storage: Any) -> Any:
    """The SQLAlchemy engine of a database storage; None for other storages."""
    return getattr(backend_of(storage), "engine", None)


def has_heartbeats(storage: Any) -> bool:
    """Whether the storage itself records heartbeats: databases do, journals and the gRPC proxy do not."""
    return bool(getattr(storage, "get_heartbeat_interval", lambda: None)())


def record_heartbeat(storage: Any, key: int) -> None:
    """Record a heartbeat for the trial with this id, in a storage that supports it."""
    storage.record_heartbeat(key)
