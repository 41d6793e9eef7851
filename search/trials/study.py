"""Create a study, or continue one with the same configuration, and plan its slots."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lr_dist._distribution.sanity import warn_of_rates
from lr_dist.distribution import LRDistribution
from lr_dist.errors import ConfigurationError, StudyMismatchError, UnknownStudyError
from lr_dist.presets import list_presets, resolve_distribution
from lr_dist.search.trials.config import SearchConfig

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

IDENTITY = "lr_dist_identity"
# Not compared: paths may differ between machines, and the number of layers follows from the weights.
NOT_COMPARED = {"model", "sequences", "num_layers"}
PATIENCE_S = 5.0
FLAT_FIRST = (1e-5, 2e-5, 1e-4)


def open_study(storage: BaseStorage, name: str, config: SearchConfig, identity: Mapping[str, Any]) -> Study:
    """Create the study, or continue it.

    Raises:
        StudyMismatchError: a study of this name has another configuration; it is not changed.
    """
    import optuna
    from optuna.exceptions import DuplicatedStudyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    new = json.loads(json.dumps(identity))
    tasks = sum(len(fingerprints) for fingerprints in new["data"])
    if config.first is not None:
        tasks -= len(new["data"])
    parts: dict[str, Any] = {"sampler": sampler(config), "pruner": pruner(config, tasks)}
    directions = [optuna.study.StudyDirection.MAXIMIZE] * len(config.directions)
    try:
        study = optuna.load_study(storage=storage, study_name=name, **parts)
    except KeyError:
        try:
            study = optuna.create_study(storage=storage, study_name=name, directions=directions, **parts)
            study.set_user_attr(IDENTITY, new)
        except DuplicatedStudyError:  # another command has just created it
            study = optuna.load_study(storage=storage, study_name=name, **parts)
    stored = _identity_of(study)
    if stored is None and not study.get_trials(deepcopy=False) and study.directions == directions:
        # The process that created it died before it could store the identity.
        study.set_user_attr(IDENTITY, new)
    elif stored is None or _changed(stored, new):
        raise StudyMismatchError(_difference(name, stored, new))
    return study


def load_study(storage: BaseStorage, name: str) -> Study:
    """Load an existing study.

    Raises:
        UnknownStudyError: there is no such study; the message lists the existing ones.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        names = [n for n in optuna.get_all_study_names(storage) if not n.startswith("reference/")]
        existing = f"It has: {', '.join(names)}." if names else "It has no studies."
        raise UnknownStudyError(f"The storage has no study {name!r}. {existing}") from None


def sampler(config: SearchConfig) -> Any:
    """TPE. With a seed, a slot's samples depend on the seed, the slot and the earlier trials, not on the worker."""
    from lr_dist.search.space.sampler import SlotSampler, tpe

    if config.sampler_seed is None:
        return tpe(None)
    return SlotSampler(config.sampler_seed)


def pruner(config: SearchConfig, tasks: int) -> Any:
    """Hyperband over the epochs of a trial's first seed, reduction factor 2 as in arXiv 2404.01317.

    Args:
        config: of the study.
        tasks: number of tasks in all sequences together whose rates are searched; the halves of a shift count as two.
    """
    from optuna.pruners import HyperbandPruner, NopPruner

    if config.goal.mode == "pareto":
        return NopPruner()
    return HyperbandPruner(min_resource=1, max_resource=config.settings.epochs * tasks, reduction_factor=2)


def plan(config: SearchConfig, num_layers: int) -> list[dict[str, Any]]:
    """The slots of a study: flat rates, the shipped presets, the user's queued distributions, then sampled trials.

    A distribution that the space cannot represent exactly (a rate outside the bounds, a fixed parameter, a profile with
    more knots) is replaced by the nearest one in the space, and labelled `near ...`.

    Raises:
        ConfigurationError: a distribution queued by the user has no counterpart in the space, or `trials` is too small
            for it.
    """
    slots: list[dict[str, Any]] = []
    for label, distribution, by_user in _queued_first(config):
        absolute = distribution.absolute(config.settings.lr)
        params = config.space.project(absolute, num_layers)
        if params is None and by_user:
            raise ConfigurationError(
                f"The space {config.space.family} cannot represent the queued {label}, even approximately. Queue "
                "another distribution, or give another --space."
            )
        # Different presets can be equal in a coarse space, as can a relative preset and its absolute version.
        if params is None or any(_same(params, slot["params"]) for slot in slots):
            continue
        if by_user and len(slots) >= config.trials:
            raise ConfigurationError(
                f"There is no trial left for the queued {label}: the study has {config.trials} trials, and "
                f"{len(slots)} distributions come before it. Increase --trials."
            )
        exact = _same(config.space.distribution(params).rates(num_layers), absolute.rates(num_layers))
        slots.append({"params": params, "attrs": {"label": label if exact else f"near {label}"}})
    slots += [{"params": {}, "attrs": {}}] * max(0, config.trials - len(slots))
    return slots[: config.trials]


def check_queued(config: SearchConfig, num_layers: int) -> None:
    """Warn about unlikely rates in the user's queued distributions; once, in the process that starts the workers.

    Raises:
        NothingToTrainError: one of them freezes everything.
    """
    for spec in config.queued:
        warn_of_rates(resolve_distribution(spec), num_layers, config.settings.lr, "AdamW")


def _same(rates: Mapping[str, float], others: Mapping[str, float]) -> bool:
    return all(math.isclose(rate, others[name], rel_tol=1e-6) for name, rate in rates.items())


def _queued_first(config: SearchConfig) -> list[tuple[str, LRDistribution, bool]]:
    """Label, distribution, and whether the user queued it."""
    flat = [(f"flat {lr:g}", LRDistribution.flat(lr), False) for lr in FLAT_FIRST]
    shipped = [entry for entry in list_presets() if entry.source == "shipped"]
    presets = [(entry.name, entry.preset.distribution, False) for entry in shipped if entry.preset is not None]
    return [*flat, *presets, *((str(spec), resolve_distribution(spec), True) for spec in config.queued)]


def _identity_of(study: Study) -> Any:
    """The stored identity; waits briefly for it if another command has just created the study."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        stored = study.user_attrs.get(IDENTITY)
        if stored is not None or study.get_trials(deepcopy=False) or time.monotonic() > deadline:
            return stored
        time.sleep(0.2)


def _changed(stored: Any, new: Mapping[str, Any]) -> bool:
    """Whether new trials could not be compared with the existing ones."""
    if not isinstance(stored, dict):
        return True
    return any(stored.get(key) != new.get(key) for key in {*stored, *new} - NOT_COMPARED)


def _difference(name: str, stored: Any, new: Mapping[str, Any]) -> str:
    if not isinstance(stored, dict):
        return f"The storage has a study {name!r} that lr-dist search did not create. Give another --study."
    parts = [f"{key}: stored {stored.get(key)!r}, given {new[key]!r}" for key in new if stored.get(key) != new[key]]
    parts += [f"{key}: stored {stored[key]!r}, not given" for key in stored if key not in new]
    return (
        f"The study {name!r} has another configuration, so its trials cannot be compared with new ones "
        f"({'; '.join(parts)}). Nothing was changed. Give another --study, or the same settings; only --trials, "
        "--workers and --queued may change."
    )
