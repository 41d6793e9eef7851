"""Which of the searched rates decide how good a trial is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from lr_dist.search.trials.summary import feasible

# PED-ANOVA compares where the best trials lie with where all lie; Optuna advises at least five of the best.
LEAST_TRIALS, LEAST_BEST, SHARE = 15, 5, 0.1
# For two objectives the best tenth is chosen by hypervolume, whose cost grows with the square of the trials.
MOST_TRIALS = 2000


@dataclass(frozen=True)
class Importances:
    """How much each searched parameter matters.

    Attributes:
        values: parameter -> its share, in the order of depth; they sum to 1. Empty where there is a reason.
        note: what they were computed from, or why there are none.
    """

    values: dict[str, float]
    note: str


def importances(complete: Sequence[FrozenTrial], names: Sequence[str]) -> Importances:
    """PED-ANOVA (Watanabe et al., arXiv 2304.10255) of being among the best tenth, at least five, of the trials.

    Trials that break a constraint count as worse than all that keep it, by as much as they break it.

    Args:
        complete: complete trials, in the order of their numbers.
        names: the searched parameters in the order of depth.
    """
    if len(names) < 2:
        return Importances({}, "Only one parameter is searched, so all depends on it.")
    if len(complete) < LEAST_TRIALS:
        return Importances({}, f"Needs at least {LEAST_TRIALS} complete trials; there are {len(complete)}.")
    taken = complete[-MOST_TRIALS:]
    values = [_target(trial) for trial in taken]
    if len(set(values)) == 1:
        return Importances({}, "All complete trials have the same value, so no parameter decides it.")
    share = max(SHARE, LEAST_BEST / len(taken))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=["maximize"] * len(values[0]))
        study.add_trials(
            [
                optuna.create_trial(params=dict(t.params), distributions=dict(t.distributions), values=list(v))
                for t, v in zip(taken, values, strict=True)
            ]
        )
        found = get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(target_quantile=share), params=list(names)
        )
    limited = f" the last {len(taken):,} of" if len(taken) < len(complete) else ""
    best = f"the {share:.0%} nearest to the Pareto front" if len(values[0]) > 1 else f"the best {share:.0%}"
    note = f"PED-ANOVA over{limited} {len(complete):,} complete trials: what being among {best} depends on."
    return Importances({name: found[name] for name in names}, note)


def _target(trial: FrozenTrial) -> tuple[float, ...]:
    if feasible(trial):
        return tuple(trial.values)
    # Only the order counts, and no value is as low as this.
    return (-1e6 - sum(max(0.0, excess) for excess in trial.constraints.values()),)
