"""A study: created or continued in its storage, with the same meaning as when it began."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lr_dist.distribution import LRDistribution
from lr_dist.errors import StudyMismatchError, UnknownStudyError
from lr_dist.presets import list_presets, resolve_distribution
from lr_dist.search.config import SearchConfig

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

IDENTITY, CONFIG = "lr_dist_identity", "lr_dist_config"
FLAT_FIRST = (1e-5, 2e-5, 1e-4)


def open_study(
    storage: BaseStorage, name: str, config: SearchConfig, identity: Mapping[str, Any], *, workers: int = 1
) -> Study:
    """Create the study, or continue it.

    Raises:
        StudyMismatchError: a study of this name searches something else; it is left as it is.
    """
    import optuna
    from optuna.samplers import TPESampler

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = json.loads(json.dumps(identity))
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=config.directions,
        load_if_exists=True,
        # Stated, because the defaults have changed between versions of Optuna.
        sampler=TPESampler(multivariate=True, constant_liar=workers > 1, seed=config.sampler_seed),
        pruner=pruner(config),
    )
    before = study.user_attrs.get(IDENTITY)
    if before is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(IDENTITY, known)
    elif before != known:
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


def pruner(config: SearchConfig) -> Any:
    """Hyperband over the epochs of a trial's first seed, reduction factor 2 as in arXiv 2404.01317."""
    from optuna.pruners import HyperbandPruner, NopPruner

    if config.goal.mode == "pareto":
        return NopPruner()
    # A shift is one name and two tasks.
    tasks = sum(len(sequence) + sum("@" in str(task) for task in sequence) for sequence in config.sequences)
    return HyperbandPruner(min_resource=1, max_resource=config.settings.epochs * tasks, reduction_factor=2)


def plan(config: SearchConfig, num_layers: int) -> list[dict[str, Any]]:
    """The slots of a study: first flat rates, the shipped presets and what the user queued, then `trials` in all."""
    slots: list[dict[str, Any]] = []
    for label, distribution in _first(config):
        absolute = distribution.absolute(config.settings.lr)
        params = config.space.project(absolute, num_layers)
        # Several presets are the same in a coarse space.
        if params is not None and params not in [slot["params"] for slot in slots]:
            slots.append({"params": params, "attrs": {"label": label}})
    slots += [{"params": {}, "attrs": {}}] * max(0, config.trials - len(slots))
    return slots[: config.trials]


def _first(config: SearchConfig) -> list[tuple[str, LRDistribution]]:
    flat = [(f"flat {lr:g}", LRDistribution.flat(lr)) for lr in FLAT_FIRST]
    shipped = [entry for entry in list_presets() if entry.source == "shipped"]
    presets = [(entry.name, entry.preset.distribution) for entry in shipped if entry.preset is not None]
    return [*flat, *presets, *((str(spec), resolve_distribution(spec)) for spec in config.queued)]


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
