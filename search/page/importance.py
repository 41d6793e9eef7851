"""The importance of each searched parameter for a trial's value."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from lr_dist.search.trials.summary import feasible

# PED-ANOVA compares the distribution of the best trials with that of all; Optuna advises at least five best trials.
LEAST_TRIALS, LEAST_BEST, SHARE = 15, 5, 0.1
# For two objectives the best tenth is chosen by hypervolume, which is quadratic in the number of trials.
MOST_TRIALS = 2000


@dataclass(frozen=True)
class Importances:
    """The importance of each searched parameter.

    Attributes:
        values: parameter -> its share, in the order of depth; the shares sum to 1. Empty if they cannot be computed.
        note: how they were computed, or why they cannot be.
    """

    values: dict[str, float]
    note: str


def importances(complete: Sequence[FrozenTrial], names: Sequence[str]) -> Importances:
    """PED-ANOVA (Watanabe et al., arXiv 2304.10255) for being among the best tenth (at least five) of the trials.

    Infeasible trials rank below all feasible ones, ordered by their violation.

    Args:
        complete: complete trials, sorted by number.
        names: the searched parameters, in the order of depth.
    """
    if len(names) < 2:
        return Importances({}, "Only one parameter is searched.")
    if len(complete) < LEAST_TRIALS:
        return Importances({}, f"Needs at least {LEAST_TRIALS} complete trials; there are {len(complete)}.")
    recent = complete[-MOST_TRIALS:]
    values = [_target(trial) for trial in recent]
    if len(set(values)) == 1:
        return Importances({}, "All complete trials have the same value, so no parameter decides it.")
    share = max(SHARE, LEAST_BEST / len(recent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=["maximize"] * len(values[0]))
        study.add_trials(
            [
                optuna.create_trial(params=dict(t.params), distributions=dict(t.distributions), values=list(v))
                for t, v in zip(recent, values, strict=True)
            ]
        )
        shares = get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(target_quantile=share), params=list(names)
        )
    limited = f" the last {len(recent):,} of" if len(recent) < len(complete) else ""
    best = f"the {share:.0%} nearest to the Pareto front" if len(values[0]) > 1 else f"the best {share:.0%}"
    note = f"PED-ANOVA over{limited} {len(complete):,} complete trials: how much each parameter decides "
    note += f"whether a trial is among {best}."
    return Importances({name: shares[name] for name in names}, note)


def _target(trial: FrozenTrial) -> tuple[float, ...]:
    if feasible(trial):
        return tuple(trial.values)
    # Only the order matters; every feasible value is higher than this.
    return (-1e6 - sum(max(0.0, excess) for excess in trial.constraints.values()),)
