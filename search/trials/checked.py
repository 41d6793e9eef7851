"""Read studies back. A storage may have been altered by hand, so its content is validated before it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lr_dist.checks import is_number
from lr_dist.distribution import LRDistribution
from lr_dist.errors import InvalidTrialsError, LRDistError, shown
from lr_dist.rate_plan import RatePlan
from lr_dist.search.engine.slots import ERROR, LABEL, REASON, slot_of
from lr_dist.search.engine.storage import study_errors
from lr_dist.search.space import Space
from lr_dist.search.trials.config import MODES, OWN, Goal
from lr_dist.search.trials.study import IDENTITY

if TYPE_CHECKING:
    from optuna import Study


def checked_trials(study: Study) -> list[FrozenTrial]:
    """All trials of a study; those queued by `lr-dist search` are validated.

    Raises:
        InvalidTrialsError: an entry is missing or invalid; the message names the trial, the entry and its value.
        StorageError: the trials cannot be read.
    """
    with study_errors(study):
        trials = study.get_trials(deepcopy=False)
        objectives = len(study.directions)
        if any(direction != StudyDirection.MAXIMIZE for direction in study.directions):
            raise InvalidTrialsError(
                f"The study {study.study_name!r} minimises its objective; `lr-dist search` only maximises."
            )
    for trial in trials:
        if slot_of(trial) is not None:
            _check(study.study_name, trial, objectives)
    return trials


def checked_identity(study: Study) -> dict[str, Any] | None:
    """A study's identity, see `SearchConfig.identity`; None if `lr-dist search` did not create the study.

    Raises:
        InvalidTrialsError: an entry is missing or invalid; the message names it.
        StorageError: the study cannot be read.
    """
    with study_errors(study):
        identity = study.user_attrs.get(IDENTITY)
    if identity is None:
        return None
    where = f"The study {study.study_name!r} was altered: its configuration"
    _expect(where, "", identity, _is_mapping, "a mapping")
    own = identity.get("goal") == {"mode": OWN}
    for name, (is_right, what) in _IDENTITY.items():
        if own and name in ("goal", "settings"):
            continue
        if name not in identity:
            raise InvalidTrialsError(f"{where} lacks {name!r}. Restore it from a backup, or start a new study.")
        _expect(where, name, identity[name], is_right, what)
    if len(identity["data"]) != len(identity["sequences"]):
        raise InvalidTrialsError(
            f"{where} has data fingerprints of {len(identity['data'])} sequences, but "
            f"{len(identity['sequences'])} sequences. Restore it from a backup, or start a new study."
        )
    for name in ("start", "head of the start"):
        if name in identity:
            _expect(where, name, identity[name], _is_text, "text")
    _expect(where, "first", identity.get("first", ""), _is_text, "text")
    if "retention" in identity:
        _expect(
            where,
            "retention",
            identity["retention"],
            # As an objective it has no bound.
            lambda kept: _is_mapping(kept) and _is_finite(kept.get("most_lost", 0)),
            "a mapping, most_lost in it a number",
        )
    layers = identity.get("num_layers", 1)
    _expect(where, "num_layers", layers, _is_count, "a whole number from 1")
    space_of(study.study_name, identity)
    return dict(identity)


def space_of(name: str, identity: Mapping[str, Any]) -> Space:
    """The search space of a study.

    Raises:
        InvalidTrialsError: it is invalid.
    """
    values = dict(identity["space"])
    try:
        return Space(values.pop("family"), **values)
    except (LRDistError, TypeError, KeyError, ValueError) as error:
        raise InvalidTrialsError(f"The study {name!r} was altered: its space is invalid ({error}).") from error


def _check(study: str, trial: FrozenTrial, objectives: int) -> None:
    where = f"Trial {trial.number} of the study {study!r} was altered or damaged: its"
    for name, value in trial.params.items():
        _expect(where, f"parameter {name}", value, _is_finite, "a finite number")
    for name, (is_right, what) in _ATTRIBUTES.items():
        if name in trial.user_attrs:
            _expect(where, name, trial.user_attrs[name], is_right, what)
    if "distribution" in trial.user_attrs:
        try:
            LRDistribution.from_dict(trial.user_attrs["distribution"])
        except (LRDistError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise InvalidTrialsError(f"{where} distribution is invalid ({error}).") from error
    if "plan" in trial.user_attrs:
        try:
            RatePlan.from_dict(trial.user_attrs["plan"])
        except (LRDistError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise InvalidTrialsError(f"{where} plan is invalid ({error}).") from error
    for name, value in _constraints(where, trial).items():
        _expect(where, f"constraint {name}", value, _is_finite, "a finite number")
    if trial.state != TrialState.COMPLETE:
        return
    _expect(
        where, "values", trial.values, lambda v: _is_list(v, _is_finite, objectives), f"{objectives} finite numbers"
    )
    if not trial.params:
        raise InvalidTrialsError(
            f"{where} parameters are missing. Restore the study from a backup, or start a new one."
        )
    if "sequences" in trial.user_attrs:
        spread = trial.user_attrs.get("value_sd")
        _expect(where, "value_sd", spread, lambda v: _is_list(v, _is_spread, objectives), "a spread for each value")
        for needed in ("distribution", "seconds"):
            if needed not in trial.user_attrs:
                raise InvalidTrialsError(
                    f"{where} {needed} is missing. Restore the study from a backup, or start a new one."
                )


def _constraints(where: str, trial: FrozenTrial) -> Mapping[str, Any]:
    try:
        return trial.constraints
    except Exception as error:
        raise InvalidTrialsError(f"{where} constraints cannot be read ({error}).") from error


def _expect(where: str, name: str, value: Any, is_right: Callable[[Any], bool], what: str) -> None:
    if not is_right(value):
        raise InvalidTrialsError(
            f"{where}{f' {name}' if name else ''} must be {what}, not {shown(value)}. Restore the study from a "
            "backup, or start a new one under another name."
        )


def _is_finite(value: Any) -> bool:
    return is_number(value) and abs(value) < math.inf


def _is_spread(value: Any) -> bool:
    return value is None or _is_finite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_list(value: Any, is_right: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_right, value)) and (length is None or len(value) == length)


def _is_sequence(value: Any) -> bool:
    """Whether this is a valid record of one task sequence of a complete trial."""
    if not _is_mapping(value) or not _is_list(value.get("tasks"), _is_text) or not value["tasks"]:
        return False
    tasks = len(value["tasks"])
    return (
        _is_finite(value.get("p_s"))
        and (_is_finite(value.get("p_o")) if tasks > 1 else value.get("p_o") is None)
        and all(name in value and _is_spread(value[name]) for name in ("p_o_sd", "p_s_sd"))
        and all(_is_list(value.get(name), _is_finite, tasks) for name in ("final", "baseline"))
        and _is_list(value.get("learned"), lambda v: isinstance(v, bool), tasks)
    )


def _is_environment(value: Any) -> bool:
    return _is_mapping(value) and _is_mapping(value.get("versions", {}))


def _is_goal(value: Any) -> bool:
    if not _is_mapping(value):
        return False
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
    try:
        Goal(**values)
    except (LRDistError, TypeError):
        return False
    return True


def _is_sequences_of_tasks(value: Any) -> bool:
    def is_task(task: Any) -> bool:
        return _is_text(task) or _is_mapping(task)

    return _is_list(value, lambda sequence: _is_list(sequence, is_task) and bool(sequence)) and bool(value)


_SETTINGS = ("epochs", "batch_size", "max_length", "warmup", "schedule", "weight_decay", "precision", "method")
_ATTRIBUTES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    LABEL: (_is_text, "text"),
    REASON: (_is_text, "text"),
    ERROR: (_is_text, "text"),
    "seconds": (_is_finite, "a finite number"),
    "environment": (_is_environment, "a mapping with versions and machine"),
    "progress": (
        lambda value: _is_mapping(value) and all(_is_finite(value.get(n)) for n in ("done", "total", "seconds")),
        "a mapping with the numbers done, total and seconds",
    ),
    "sequences": (
        lambda value: _is_list(value, _is_sequence) and bool(value),
        "a list of task sequences with their scores",
    ),
}
_IDENTITY: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is_text, "text"),
    "sequences": (_is_sequences_of_tasks, "a list of task sequences"),
    "weights": (_is_text, "text"),
    "data": (
        lambda value: _is_list(value, lambda fingerprints: _is_list(fingerprints, _is_text)),
        "the tasks' fingerprints for each sequence",
    ),
    "space": (_is_mapping, "a mapping"),
    "goal": (_is_goal, f"a goal ({', '.join(MODES)})"),
    "seeds": (lambda value: _is_list(value, lambda v: isinstance(v, int)) and bool(value), "a list of seeds"),
    "limit": (lambda value: value is None or _is_count(value), "a whole number from 1, or null"),
    "settings": (
        lambda value: _is_mapping(value) and all(_is_text(value.get(n)) or _is_finite(value.get(n)) for n in _SETTINGS),
        f"a mapping with text or a number for {', '.join(_SETTINGS)}",
    ),
}
