"""Create a study, or continue one with the same configuration, and plan its slots."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lr_dist._distribution.sanity import warn_of_rates
from lr_dist.distribution import LRDistribution
from lr_dist.errors import ConfigurationError, StudyMismatchError, UnknownStudyError
from lr_dist.presets import list_presets, resolve_distribution
from lr_dist.search.trials.config import AUTO, HYPERBAND, NO_PRUNER, WILCOXON, SearchConfig

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

IDENTITY, PRUNER = "lr_dist_identity", "lr_dist_pruner"
# Not compared: paths may differ between machines, and the number of layers follows from the weights.
NOT_COMPARED = {"model", "start", "sequences", "num_layers"}
# Names of studies that belong to others: flat references, and confirmations.
RESERVED = ("reference/", "confirmation/")
PATIENCE_S = 5.0
LEAST_REACH = 2e-3
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
    # The epochs of a first task that is given, or has given rates, do not count.
    if config.first is not None or "start" in new:
        tasks -= len(new["data"])
    parts: dict[str, Any] = {"sampler": sampler(config)}
    directions = [optuna.study.StudyDirection.MAXIMIZE] * len(config.directions)
    try:
        study = optuna.load_study(storage=storage, study_name=name, **parts)
    except KeyError:
        try:
            study = optuna.create_study(storage=storage, study_name=name, directions=directions, **parts)
            # Before the identity, for which other commands wait.
            name_metrics(study, config.goal.names)
            study.set_user_attr(PRUNER, config.chosen_pruner)
            study.set_user_attr(IDENTITY, new)
        except DuplicatedStudyError:  # another command has just created it
            study = optuna.load_study(storage=storage, study_name=name, **parts)
    stored = _identity_of(study)
    if stored is None and not study.get_trials(deepcopy=False) and study.directions == directions:
        # The process that created it died before it could store the identity.
        name_metrics(study, config.goal.names)
        study.set_user_attr(PRUNER, config.chosen_pruner)
        study.set_user_attr(IDENTITY, new)
    elif stored is None or _changed(stored, new):
        raise StudyMismatchError(_difference(name, stored, new))
    study.pruner = pruner(config, tasks, _pruner_of(study, config))
    return study


def name_metrics(study: Study, names: list[str]) -> None:
    """Name the values of the study's trials, for Optuna's plots, tables and dashboard."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(names)


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
        names = [n for n in optuna.get_all_study_names(storage) if not n.startswith(RESERVED)]
        existing = f"It has: {', '.join(names)}." if names else "It has no studies."
        raise UnknownStudyError(f"The storage has no study {name!r}. {existing}") from None


def sampler(config: SearchConfig) -> Any:
    """TPE. With a seed, a slot's samples depend on the seed, the slot and the earlier trials, not on the worker."""
    from lr_dist.search.space.sampler import SlotSampler, tpe

    if config.sampler_seed is None:
        return tpe(None)
    return SlotSampler(config.sampler_seed)


def _pruner_of(study: Study, config: SearchConfig) -> str:
    """The pruner with which the study was begun: what two of them report cannot be compared.

    Raises:
        StudyMismatchError: another one is given.
    """
    # Studies made before there was a choice have none stored.
    begun = study.user_attrs.get(PRUNER, NO_PRUNER if config.goal.several else HYPERBAND)
    if config.pruner not in (AUTO, begun):
        raise StudyMismatchError(
            f"The study {study.study_name!r} was begun with the pruner {begun}, and {config.pruner} is given. Leave "
            "out --pruner, or give another --study."
        )
    return str(begun)


def pruner(config: SearchConfig, tasks: int, name: str) -> Any:
    """The pruner of a study.

    - hyperband: over the epochs of a trial's first seed, reduction factor 2 as in arXiv 2404.01317.
    - wilcoxon: a trial is stopped if its values on the instances (sequence and seed) that it has finished are lower
      than the best trial's, paired by instance, with p < 0.1 (Wilcoxon's signed-rank test).

    Args:
        config: of the study.
        tasks: number of tasks in all sequences together whose rates are searched; the halves of a shift count as two.
        name: wilcoxon, hyperband or none.
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.pruners import HyperbandPruner, NopPruner, WilcoxonPruner

    if name == NO_PRUNER:
        return NopPruner()
    if name == WILCOXON:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return WilcoxonPruner(p_threshold=0.1)
    return HyperbandPruner(min_resource=1, max_resource=config.settings.epochs * tasks, reduction_factor=2)


def plan(config: SearchConfig, num_layers: int, steps: int | None = None) -> list[dict[str, Any]]:
    """The slots of a study: flat rates, the shipped presets, the user's queued distributions, then sampled trials.

    A distribution that the space cannot represent exactly (a rate outside the bounds, a fixed parameter, a profile with
    more knots) is replaced by the nearest one in the space, and labelled `near ...`. A shipped preset that cannot learn
    in the steps of a task is left out, see `hopeless_presets`.

    Args:
        config: of the study.
        num_layers: of the model.
        steps: training steps of the shortest task; None to keep all presets.

    Raises:
        ConfigurationError: a distribution queued by the user has no counterpart in the space, or `trials` is too small
            for it.
    """
    slots: list[dict[str, Any]] = []
    left_out = hopeless_presets(config, num_layers, steps)
    for label, distribution, by_user in _queued_first(config):
        if label in left_out and not by_user:
            continue
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


def hopeless_presets(config: SearchConfig, num_layers: int, steps: int | None) -> dict[str, float]:
    """Shipped presets that cannot learn at this size -> how far their highest rate moves a weight.

    A step of Adam moves a weight by about the rate, so `rate x steps` bounds how far it gets. Flat 2e-5 in 94 steps,
    which comes to 2e-3, was measured to learn hardly anything (docs/search.md); weights are of the order of 0.05.

    Args:
        config: of the study.
        num_layers: of the model.
        steps: training steps of the shortest task; None if they are not known.
    """
    if steps is None:
        return {}
    reach = {
        label: steps * max(distribution.absolute(config.settings.lr).rates(num_layers).values())
        for label, distribution in _shipped()
    }
    return {label: distance for label, distance in reach.items() if distance < LEAST_REACH}


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
    presets = [(name, distribution, False) for name, distribution in _shipped()]
    return [*flat, *presets, *((str(spec), resolve_distribution(spec), True) for spec in config.queued)]


def _shipped() -> list[tuple[str, LRDistribution]]:
    shipped = [entry.preset for entry in list_presets() if entry.source == "shipped" and entry.preset is not None]
    # Recipes from the literature are made for other models; those that a search found are starting points.
    found = [preset for preset in shipped if preset.provenance.trials and preset.is_plain]
    return [(preset.name, preset.distribution) for preset in found]


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
