"""`optimize`: search rates for a program of one's own, with the same studies as `lr-dist search`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import Trial

from lr_dist.checks import is_number, is_whole
from lr_dist.errors import ConfigurationError, StudyMismatchError, TrialError, shown
from lr_dist.presets import resolve_distribution
from lr_dist.search.engine.slots import LABEL
from lr_dist.search.engine.storage import open_storage, storage_errors
from lr_dist.search.engine.worker import drain
from lr_dist.search.space import Space
from lr_dist.search.space.sampler import SlotSampler, tpe
from lr_dist.search.trials.config import OWN
from lr_dist.search.trials.record import keep
from lr_dist.search.trials.study import IDENTITY, RESERVED, name_metrics
from lr_dist.sequence.environment import describe_environment
from lr_dist.sequence.interrupts import interruptible

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner

Objective = Callable[[Trial], float]


def optimize(
    objective: Objective,
    space: Space,
    *,
    trials: int = 50,
    study: str = "search",
    storage: str | None = None,
    queued: Sequence[str | Mapping[str, Any]] = (),
    num_layers: int = 12,
    lr: float | None = None,
    model: str = "not stated",
    pruner: BasePruner | None = None,
    seed: int | None = None,
) -> Study:
    """Search for the rates with which a program of one's own scores highest.

    A trial calls `objective`, which asks the space for rates, trains in any way, and returns a score to maximise:

        def objective(trial: optuna.Trial) -> float:
            rates = space.suggest(trial)
            trainer = L.Trainer(callbacks=[LayerwiseLR(rates)], max_epochs=3)
            module = MyModule()
            trainer.fit(module, datamodule)
            return trainer.callback_metrics["val_acc"].item()

        study = optimize(objective, Space("shape", low=1e-5, high=1e-3), trials=30, storage="sqlite:///study.db")

    The study is one of `lr-dist search`: exactly `trials` trials, also if the program is killed and started again, or
    runs in several processes with the same storage; `lr-dist search status`, `report` and `export`, `combine` and
    `dashboard` work on it. A trial whose score is not finite fails and is not tried again. Ctrl-C gives the running
    trial back. The first error of `objective` ends the call; the next start tries that trial again, up to three times.

    Args:
        objective: called with an Optuna trial. It can report intermediate values and raise `optuna.TrialPruned`, and
            ask for further numbers, which are not part of the distribution.
        space: what `space.suggest(trial)` samples from; `space.suggest_plan(trial)` for a staged one.
        trials: number of trials of the whole study.
        study: its name; a study of this name with the same space is continued.
        storage: URL, see `lr-dist search --storage`; None for one in memory, which ends with the process.
        queued: distributions to try first, such as the control `flat:lr=1e-4`.
        num_layers: of the model; the queued ones are projected on the space for it, and the report draws rates for it.
        lr: the optimizer's own rate, which queued relative distributions multiply.
        model: its name, for the report and the provenance of presets.
        pruner: what `trial.should_prune()` asks; by default Optuna's median pruner.
        seed: of the sampler; makes the trials of a single process repeatable.

    Returns:
        The Optuna study, with all its trials settled.

    Raises:
        ConfigurationError: a wrong argument, or a queued distribution that the space cannot represent.
        StudyMismatchError: a study of this name has another space, or is not of `optimize`.
        TrialError: `objective` raised an error, or returned something else than a number.
        StorageError: the storage cannot be used.
    """
    if not isinstance(space, Space):
        raise ConfigurationError(f"space must be a Space, such as Space('shape'), not {shown(space)}.")
    if not is_whole(trials, 1):
        raise ConfigurationError(f"trials must be a whole number from 1, not {shown(trials)}.")
    if not is_whole(num_layers, 1):
        raise ConfigurationError(f"num_layers must be a whole number from 1, not {shown(num_layers)}.")
    check_study_name(study)
    slots = _plan(space, queued, trials, num_layers, lr)
    opened = None if storage is None else open_storage(storage)
    if opened is None:
        return _run(None, study, objective, space, slots, own_identity(study, space, num_layers, model), pruner, seed)
    with storage_errors(opened):
        return _run(opened, study, objective, space, slots, own_identity(study, space, num_layers, model), pruner, seed)


def _run(
    storage: BaseStorage | None,
    name: str,
    objective: Objective,
    space: Space,
    slots: Sequence[Mapping[str, Any]],
    identity: Mapping[str, Any],
    pruner: BasePruner | None,
    seed: int | None,
) -> Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        sampler=tpe(None) if seed is None else SlotSampler(seed),
        pruner=pruner,
        load_if_exists=True,
    )
    stored = study.user_attrs.get(IDENTITY)
    if stored is None and not study.get_trials(deepcopy=False):
        name_metrics(study, ["score"])
        study.set_user_attr(IDENTITY, dict(identity))
    elif not isinstance(stored, Mapping) or any(stored.get(key) != identity[key] for key in ("goal", "space")):
        there = "no search of lr-dist" if not isinstance(stored, Mapping) else f"the space {stored.get('space')}"
        raise StudyMismatchError(
            f"The study {name!r} in this storage is another one ({there}; given: the space {identity['space']}). "
            "Nothing was changed. Give another study=..., or the same space."
        )
    drain(study, _Recorded(objective, space), slots)
    return study


class _Recorded:
    """The objective, with what a trial of `lr-dist search` records."""

    def __init__(self, objective: Objective, space: Space) -> None:
        self._objective = objective
        self._space = space

    def __call__(self, trial: Trial) -> tuple[float, ...]:
        plan = self._space.suggest_plan(trial)
        keep(trial, distribution=plan.stages[0], **({"plan": plan} if len(plan.stages) > 1 else {}))
        keep(trial, environment=describe_environment())
        with interruptible():
            score = self._objective(trial)
        if not is_number(score):
            raise TrialError(f"The objective must return one number, the score to maximise, not {shown(score)}.")
        keep(trial, value_sd=[None])
        return (float(score),)


def _plan(
    space: Space, queued: Sequence[str | Mapping[str, Any]], trials: int, num_layers: int, lr: float | None
) -> list[dict[str, Any]]:
    slots: list[dict[str, Any]] = []
    for spec in queued:
        distribution = resolve_distribution(spec)
        if distribution.relative and lr is None:
            raise ConfigurationError(f"The queued {spec} multiplies the optimizer's own rate: give it as lr=....")
        params = space.project(distribution.absolute(lr or 1.0), num_layers)
        if params is None:
            raise ConfigurationError(
                f"The space {space.family} cannot represent the queued {spec}, even approximately. Queue another one, "
                "or give another space."
            )
        slots.append({"params": params, "attrs": {LABEL: str(spec)}})
    if len(slots) > trials:
        raise ConfigurationError(f"{len(slots)} distributions are queued for {trials} trials; increase trials=....")
    return slots + [{"params": {}, "attrs": {}}] * (trials - len(slots))


def check_study_name(name: str) -> None:
    """Check the name of a new study.

    Raises:
        ConfigurationError: it is empty, or means a study that belongs to another one.
    """
    if not name.strip() or name.startswith(RESERVED):
        raise ConfigurationError(f"{name!r} is not a valid study name: it must not be empty or start with {RESERVED}.")


def own_identity(study: str, space: Space, num_layers: int, model: str) -> dict[str, Any]:
    """What the commands read of a study; the program itself is not part of it."""
    return {
        "model": model,
        "weights": "",
        "sequences": [[study]],
        "data": [[]],
        "space": space.to_dict(),
        "goal": {"mode": OWN},
        "seeds": [0],
        "limit": None,
        "settings": {},
        "num_layers": num_layers,
    }
