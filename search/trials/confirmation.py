"""Confirmation: the best trials of a study are run again with fresh seeds, beside the tuned flat rate.

The best of many noisy values is too high. Fresh seeds, which had no part in the choice, give values without that bias.
The runs are a study of their own in the same storage, named after the one that they confirm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lr_dist.distribution import LRDistribution
from lr_dist.search.engine.optuna_private import fixed_params, storage_of
from lr_dist.search.engine.slots import LABEL, by_slot
from lr_dist.search.space.space import is_flat
from lr_dist.search.trials.config import NO_PRUNER, SearchConfig
from lr_dist.search.trials.record import TrialRecord
from lr_dist.search.trials.summary import CONFIRMATION, complete_trials, feasible
from lr_dist.search.trials.workload import reference_names

if TYPE_CHECKING:
    from optuna import Study


def confirmation_name(study: str) -> str:
    """The name of the study that confirms a study."""
    return f"{CONFIRMATION}{study}"


def confirmation_config(config: SearchConfig) -> SearchConfig:
    """The configuration of the confirmation: the same with fresh seeds."""
    fresh = max(config.seeds) + 1
    seeds = tuple(range(fresh, fresh + config.confirm_seeds))
    return replace(config, seeds=seeds, pruner=NO_PRUNER, confirm=0, queued=())


def confirmation_of(study: Study) -> Study | None:
    """The study that confirms a study; None if there is none."""
    try:
        return optuna.load_study(study_name=confirmation_name(study.study_name), storage=storage_of(study))
    except KeyError:
        return None


def confirmation_plan(study: Study, config: SearchConfig, num_layers: int) -> list[dict[str, Any]]:
    """The slots of the confirmation: those that it has, the best trials, and the flat rates that may be the best.

    Args:
        study: a complete study with one objective.
        config: of the study.
        num_layers: of the model.
    """
    ranked = sorted((t for t in complete_trials(study) if feasible(t)), key=lambda t: (-t.values[0], t.number))
    wanted = [(f"trial {trial.number}", dict(trial.params)) for trial in ranked[: config.confirm]]
    for rate in flat_rates(study, ranked):
        params = config.space.project(LRDistribution.flat(rate), num_layers)
        # Where a part is fixed or bounds are narrow, no trial of the space is the flat rate.
        if params is not None and is_flat(config.space.distribution(params)):
            wanted.append((f"flat {rate:g}", params))
    confirming = confirmation_of(study)
    there = [] if confirming is None else list(by_slot(confirming.get_trials(deepcopy=False)).items())
    slots = [
        {"params": {**fixed_params(t), **t.params}, "attrs": {LABEL: TrialRecord.of(t).label or ""}}
        for _, t in sorted(there, key=lambda each: each[0])
    ]
    for label, params in wanted:
        if not any(same_parameters(params, slot["params"]) for slot in slots):
            slots.append({"params": params, "attrs": {LABEL: label}})
    return slots


def flat_rates(study: Study, ranked: Sequence[FrozenTrial]) -> list[float]:
    """The flat rates that may be the best for a study: its best flat trial, and the tuned references.

    References of `constrained` are tuned on the whole sequence. Those of `relative` are tuned on each task alone, so
    their rates are only candidates.

    Args:
        study: the study.
        ranked: its trials, best first.
    """
    rates = [
        next(iter(record.tried.rates(1).values()))
        for record in map(TrialRecord.of, ranked)
        if record.tried is not None and is_flat(record.tried) and is_flat_later(record)
    ][:1]
    for name in reference_names(study):
        try:
            reference = optuna.load_study(study_name=name, storage=storage_of(study))
        except KeyError:
            continue
        complete = reference.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if complete:
            rates.append(max(complete, key=lambda trial: trial.values[0]).params["lr"])
    distinct: list[float] = []
    for rate in rates:
        if not any(math.isclose(rate, other, rel_tol=1e-6) for other in distinct):
            distinct.append(rate)
    return distinct


def is_flat_later(record: TrialRecord) -> bool:
    """Whether the searched distribution holds to the last stage; in a staged space it need not."""
    return record.planned is not None and record.planned.stages[-1] == record.tried


def same_parameters(params: Mapping[str, float], others: Mapping[str, float]) -> bool:
    """Whether two trials have the same parameters, up to rounding."""
    return params.keys() == others.keys() and all(
        math.isclose(value, others[name], rel_tol=1e-6) for name, value in params.items()
    )
