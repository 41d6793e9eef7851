"""A study: created or continued in its storage, with the same meaning as when it began."""

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
# Paths may differ between machines, weights and data may not; the layers are the weights'.
FOLLOWS = {"model", "sequences", "num_layers"}
PATIENCE_S = 5.0
FLAT_FIRST = (1e-5, 2e-5, 1e-4)


def open_study(storage: BaseStorage, name: str, config: SearchConfig, identity: Mapping[str, Any]) -> Study:
    """Create the study, or continue it.

    Raises:
        StudyMismatchError: a study of this name searches something else; it is left as it is.
    """
    import optuna
    from optuna.exceptions import DuplicatedStudyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = json.loads(json.dumps(identity))
    tasks = sum(len(fingerprints) for fingerprints in known["data"])
    parts: dict[str, Any] = {"sampler": sampler(config), "pruner": pruner(config, tasks)}
    wanted = [optuna.study.StudyDirection.MAXIMIZE] * len(config.directions)
    try:
        study = optuna.load_study(storage=storage, study_name=name, **parts)
    except KeyError:
        try:
            study = optuna.create_study(storage=storage, study_name=name, directions=wanted, **parts)
            study.set_user_attr(IDENTITY, known)
        except DuplicatedStudyError:  # another command was faster
            study = optuna.load_study(storage=storage, study_name=name, **parts)
    before = _identity_of(study)
    if before is None and not study.get_trials(deepcopy=False) and study.directions == wanted:
        # Whoever created it died before it could say what for.
        study.set_user_attr(IDENTITY, known)
    elif before is None or _changed(before, known):
        raise StudyMismatchError(_difference(name, before, known))
    return study


def load_study(storage: BaseStorage, name: str) -> Study:
    """A study that is there, to look at.

    Raises:
        UnknownStudyError: it is not; the message lists those that are.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        names = [n for n in optuna.get_all_study_names(storage) if not n.startswith("reference/")]
        there = f"There are: {', '.join(names)}." if names else "The storage holds no study."
        raise UnknownStudyError(f"The storage has no study {name!r}. {there}") from None


def sampler(config: SearchConfig) -> Any:
    """TPE. With a seed, a slot's draws depend on that, the slot and the trials before it, not on the worker."""
    from lr_dist.search.space.sampler import SlotSampler, tpe

    if config.sampler_seed is None:
        return tpe(None)
    return SlotSampler(config.sampler_seed)


def pruner(config: SearchConfig, tasks: int) -> Any:
    """Hyperband over the epochs of a trial's first seed, reduction factor 2 as in arXiv 2404.01317.

    Args:
        config: of the study.
        tasks: in all sequences together; the halves of a shift are two.
    """
    from optuna.pruners import HyperbandPruner, NopPruner

    if config.goal.mode == "pareto":
        return NopPruner()
    return HyperbandPruner(min_resource=1, max_resource=config.settings.epochs * tasks, reduction_factor=2)


def plan(config: SearchConfig, num_layers: int) -> list[dict[str, Any]]:
    """The slots of a study: first flat rates, the shipped presets and what the user queued, then `trials` in all.

    What the space does not hold exactly (a rate outside its bounds, a fixed parameter, a profile with more corners) is
    tried as the nearest that it holds, and labelled `near ...`.

    Raises:
        ConfigurationError: a distribution that the user queued is not in the space, or there is no trial left for it.
    """
    slots: list[dict[str, Any]] = []
    for label, distribution, asked_for in _first(config):
        absolute = distribution.absolute(config.settings.lr)
        params = config.space.project(absolute, num_layers)
        if params is None and asked_for:
            raise ConfigurationError(
                f"The space {config.space.family} holds nothing near the queued {label}. Queue another one, or "
                "give another --space."
            )
        # Several presets are the same in a coarse space, and so is a relative one at its anchor.
        if params is None or any(_same(params, slot["params"]) for slot in slots):
            continue
        if asked_for and len(slots) >= config.trials:
            raise ConfigurationError(
                f"There is no trial for the queued {label}: {config.trials} trials, and {len(slots)} distributions "
                "come before it. Give more --trials."
            )
        exact = _same(config.space.distribution(params).rates(num_layers), absolute.rates(num_layers))
        slots.append({"params": params, "attrs": {"label": label if exact else f"near {label}"}})
    slots += [{"params": {}, "attrs": {}}] * max(0, config.trials - len(slots))
    return slots[: config.trials]


def check_queued(config: SearchConfig, num_layers: int) -> None:
    """Warn of doubtful rates among the distributions that the user queued; once, in the process that starts workers.

    Raises:
        NothingToTrainError: one of them freezes everything.
    """
    for spec in config.queued:
        warn_of_rates(resolve_distribution(spec), num_layers, config.settings.lr, "AdamW")


def _same(rates: Mapping[str, float], others: Mapping[str, float]) -> bool:
    return all(math.isclose(rate, others[name], rel_tol=1e-6) for name, rate in rates.items())


def _first(config: SearchConfig) -> list[tuple[str, LRDistribution, bool]]:
    """Label, distribution, and whether the user asked for it."""
    flat = [(f"flat {lr:g}", LRDistribution.flat(lr), False) for lr in FLAT_FIRST]
    shipped = [entry for entry in list_presets() if entry.source == "shipped"]
    presets = [(entry.name, entry.preset.distribution, False) for entry in shipped if entry.preset is not None]
    return [*flat, *presets, *((str(spec), resolve_distribution(spec), True) for spec in config.queued)]


def _identity_of(study: Study) -> Any:
    """What a study searches; one that another command has just created gets a moment to say it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        before = study.user_attrs.get(IDENTITY)
        if before is not None or study.get_trials(deepcopy=False) or time.monotonic() > deadline:
            return before
        time.sleep(0.2)


def _changed(before: Any, now: Mapping[str, Any]) -> bool:
    """Whether trials would mean something else."""
    if not isinstance(before, dict):
        return True
    return any(before.get(key) != now.get(key) for key in {*before, *now} - FOLLOWS)


def _difference(name: str, before: Any, now: Mapping[str, Any]) -> str:
    if not isinstance(before, dict):
        return f"The storage has a study {name!r} that lr-dist search did not make. Give another --study."
    parts = [f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in now if before.get(key) != now[key]]
    parts += [f"{key}: {before[key]!r} there, nothing now" for key in before if key not in now]
    return (
        f"The study {name!r} searches something else, so its trials cannot be compared with new ones "
        f"({'; '.join(parts)}). Nothing was changed. Give another --study, or the same settings; only --trials, "
        "--workers and --queued may change."
    )
