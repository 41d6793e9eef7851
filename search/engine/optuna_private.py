"""All of Optuna's private names that lr-dist needs, in one place; each has a test of what it does.

Optuna offers no public way to take one certain waiting trial, to fail a trial of another process, or to reach the
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
    """Where the study is stored; a database is behind a cache, see `backend_of`."""
    return study._storage


def study_id(study: Study) -> int:
    """The study's key in its storage."""
    return study._study_id


def trial_id(trial: FrozenTrial | Trial) -> int:
    """The trial's key in its storage; not its number, which counts from 0 in each study."""
    return trial._trial_id


def running_trial(study: Study, key: int) -> Trial:
    """The trial with this key, for an objective: parameters that were fixed when it was queued are drawn as fixed."""
    from optuna.trial import Trial

    return Trial(study, key)


def fixed_params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that were fixed when the trial was queued; empty where none were."""
    fixed = trial.system_attrs.get("fixed_params")
    return dict(fixed) if isinstance(fixed, Mapping) else {}


def backend_of(storage: Any) -> Any:
    """The storage itself, behind the cache that Optuna puts before a database."""
    return getattr(storage, "_backend", storage)


def engine_of(storage: Any) -> Any:
    """SQLAlchemy's engine of a database; None for other storages."""
    return getattr(backend_of(storage), "engine", None)


def has_heartbeats(storage: Any) -> bool:
    """Whether the storage keeps heartbeats itself: databases do, journals and the gRPC proxy do not."""
    return bool(getattr(storage, "get_heartbeat_interval", lambda: None)())


def record_heartbeat(storage: Any, key: int) -> None:
    """Tell a storage that keeps heartbeats that the worker of the trial with this key is alive."""
    storage.record_heartbeat(key)
