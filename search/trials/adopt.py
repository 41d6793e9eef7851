"""`adopt`: make a study of another program, such as transformers' `hyperparameter_search`, one of `lr-dist search`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from lr_dist.checks import is_number
from lr_dist.errors import ConfigurationError, InvalidTrialsError, StudyMismatchError, listed
from lr_dist.search.engine.slots import REASON, SLOT, SLOTS
from lr_dist.search.engine.storage import open_storage, storage_errors, study_errors
from lr_dist.search.space import Space
from lr_dist.search.trials.own import check_study_name, own_identity
from lr_dist.search.trials.study import IDENTITY, name_metrics

if TYPE_CHECKING:
    from optuna import Study


def adopt(
    study: Study,
    space: Space,
    *,
    name: str,
    storage: str | None = None,
    num_layers: int = 12,
    model: str = "not stated",
) -> Study:
    """Copy a finished study whose trials got their rates from `space`, so that lr-dist's commands can read it.

    `hyperparameter_search` of transformers makes a study of its own, and so does any program that calls
    `optuna.create_study` and `space.suggest(trial)`:

        trainer.hyperparameter_search(..., study_name="rates", storage="sqlite:///study.db")
        adopt(optuna.load_study(study_name="rates", storage="sqlite:///study.db"), space,
              name="rates-report", storage="sqlite:///study.db")

    `lr-dist search status`, `report` and `export`, `combine` and `dashboard` then work on the copy, as on a study of
    `optimize`. The copy holds every finished trial with its rates, value, intermediate values, constraints and times;
    other parameters of the trials, such as a batch size, stay in the original alone. If the study minimises, the score
    is minus its objective, and the report says so. The versions and machine of the trials are not known. The original
    is only read, and the copy does not follow it: to see later trials, adopt it again under another name.

    Args:
        study: of a single objective, in any state; trials that are waiting or running are left out.
        space: what `space.suggest(trial)` sampled from.
        name: of the copy.
        storage: URL for the copy, see `lr-dist search --storage`; None for one in memory.
        num_layers: of the model, for the figures over depth.
        model: its name, for the report and the provenance of presets.

    Returns:
        The copy.

    Raises:
        ConfigurationError: several objectives, or an invalid name.
        InvalidTrialsError: no trial has finished, or a complete one has no parameters of this space.
        StudyMismatchError: the storage has a study of this name.
        StorageError: a storage cannot be used.
    """
    check_study_name(name)
    with study_errors(study):
        if len(study.directions) > 1:
            raise ConfigurationError(
                f"The study {study.study_name!r} has {len(study.directions)} objectives; only one of a single "
                "objective can be adopted."
            )
        minimised = study.direction == StudyDirection.MINIMIZE
        finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    if not finished:
        raise InvalidTrialsError(f"No trial of the study {study.study_name!r} has finished; there is nothing to adopt.")
    copies = [_copied(trial, slot, space, study.study_name, minimised) for slot, trial in enumerate(finished)]
    identity = own_identity(name, space, num_layers, model) | ({"minimised": True} if minimised else {})
    opened = None if storage is None else open_storage(storage)
    if opened is None:
        return _stored(None, name, identity, copies)
    with storage_errors(opened):
        return _stored(opened, name, identity, copies)


def _stored(storage: Any, name: str, identity: dict[str, Any], trials: list[FrozenTrial]) -> Study:
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    except optuna.exceptions.DuplicatedStudyError:
        raise StudyMismatchError(
            f"The storage has a study {name!r} already. Nothing was changed; give another name=...."
        ) from None
    name_metrics(study, ["score"])
    study.set_user_attr(IDENTITY, identity)
    study.set_user_attr(SLOTS, len(trials))
    study.add_trials(trials)
    return study


def _copied(trial: FrozenTrial, slot: int, space: Space, study: str, minimised: bool) -> FrozenTrial:
    """A finished trial, with what one of `optimize` records."""
    sign = -1.0 if minimised else 1.0
    rates = {name: trial.params[name] for name in space.searched if name in trial.params}
    whole = len(rates) == len(space.searched)
    if trial.state == TrialState.COMPLETE and not (whole and all(map(is_number, rates.values()))):
        raise InvalidTrialsError(
            f"Trial {trial.number} of the study {study!r} has the parameters {listed(trial.params)}, and the space "
            f"{space.family} has {', '.join(space.searched)}: it did not get its rates from this space. Give the one "
            "whose suggest() the program calls."
        )
    attributes: dict[str, Any] = {SLOT: slot}
    if whole:
        plan = space.plan(rates)
        attributes["distribution"] = plan.stages[0].to_dict()
        if len(plan.stages) > 1:
            attributes["plan"] = plan.to_dict()
    if trial.state == TrialState.COMPLETE:
        attributes["value_sd"] = [None]
    elif trial.state == TrialState.FAIL:
        attributes[REASON] = "The program failed in this trial; its own study or log may say why."
    copy = create_trial(
        state=trial.state,
        value=sign * trial.values[0] if trial.state == TrialState.COMPLETE else None,
        params=rates,
        distributions={name: trial.distributions[name] for name in rates},
        user_attrs=attributes,
        intermediate_values={
            step: sign * value for step, value in trial.intermediate_values.items() if math.isfinite(value)
        },
        constraints=trial.constraints or None,
    )
    copy.datetime_start, copy.datetime_complete = trial.datetime_start, trial.datetime_complete
    return copy
