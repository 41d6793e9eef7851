"""Flat references: the best flat rate for each task or sequence, found in separate studies of the same storage.

A reference depends on model, data, settings and seeds, not on a study, so the studies of one storage share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from lr_dist.errors import TrialError
from lr_dist.search.engine.worker import drain
from lr_dist.search.trials.config import Goal, SearchConfig
from lr_dist.search.trials.objective import Reference, p_s
from lr_dist.search.trials.record import TrialRecord
from lr_dist.search.trials.trial import ReferenceObjective
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.runner import count_steps
from lr_dist.sequence.stage_store import StageStore

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

PREFIX = "reference/"


def reference_benches(goal: Goal, bench: Bench, *, sequences: int = 1) -> list[Bench]:
    """The tasks or sequences to learn at flat rates before the trials on this sequence can be scored.

    Args:
        goal: of the search.
        bench: the sequence.
        sequences: how many sequences the search has. A single task alone needs no common scale, so no reference.
    """
    if sequences == 1 and len(bench.tasks) == 1:
        return []
    if goal.rescales:
        return [bench.only([index]) for index in range(len(bench.tasks))]
    return [bench] if goal.mode == "constrained" else []


def reference_plan(goal: Goal, bench: Bench) -> list[dict[str, Any]]:
    """The slots of a reference study: one flat rate each. What a start has learned has one score, whatever the rate."""
    rates = goal.reference_rates if bench.trained_tokens else goal.reference_rates[:1]
    return [{"params": {"lr": rate}, "attrs": {"label": f"flat {rate:g}"}} for rate in rates]


def run_references(
    storage: BaseStorage,
    config: SearchConfig,
    benches: Sequence[Bench],
    *,
    store: StageStore | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Reference] | None:
    """Run the missing reference trials, together with the other workers; None if `stopped` returned True.

    Raises:
        TrialError: every flat rate diverged on a task.
    """
    references = []
    for bench in benches:
        best = []
        for part in reference_benches(config.goal, bench, sequences=len(benches)):
            study = open_reference(storage, part, config)
            # Tasks that are learned alone have no first stage in common with the trials.
            objective = ReferenceObjective(part, config, store if len(part.tasks) > 1 else None)
            drain(study, objective, reference_plan(config.goal, part), stopped=stopped)
            if stopped():
                return None
            best.append(_best(study, part))
        references.append(_reference(config.goal, bench, best))
    return references


def open_reference(storage: BaseStorage, bench: Bench, config: SearchConfig) -> Study:
    """The reference study of a bench."""
    name = reference_name(bench, config)
    return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)


def reference_name(bench: Bench, config: SearchConfig) -> str:
    """The name of a reference study: a hash of everything that the scores depend on."""
    content: dict[str, Any] = {
        "weights": bench.model_info["fingerprint"],
        "tasks": [[task.name, task.fingerprint] for task in bench.tasks],
        "settings": bench.settings.identity(config.methods),
        "seeds": list(config.seeds),
        "rates": list(config.goal.reference_rates),
    }
    if bench.start is not None:
        content["start"] = bench.start.fingerprint
    first = config.first_rates
    if first is not None and len(bench.tasks) > 1:
        content["first"] = str(first)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return f"{PREFIX}{'>'.join(task.name for task in bench.tasks)}/{digest}"


def trial_steps(config: SearchConfig, benches: Sequence[Bench]) -> int:
    """Training steps of one trial; a first stage that all trials share does not count."""
    shared = config.first is not None and config.keep_stages
    tasks = [tokens for bench in benches for tokens in bench.tokens[1 if shared else 0 :]]
    return len(config.seeds) * count_steps(tasks, config.settings)


def reference_work(config: SearchConfig, benches: Sequence[Bench]) -> dict[str, tuple[int, int]]:
    """Name of each reference study -> its number of trials, and the training steps of one."""
    parts = [part for bench in benches for part in reference_benches(config.goal, bench)]
    slots, seeds = len(config.goal.reference_rates), len(config.seeds)
    return {reference_name(part, config): (slots, seeds * count_steps(part.tokens, config.settings)) for part in parts}


def _best(study: Study, bench: Bench) -> list[float]:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        names = " > ".join(task.name for task in bench.tasks)
        raise TrialError(
            f"Every flat reference rate diverged on {names}, so there is no reference score for the trials. Give lower "
            "--reference-rates, or a longer --warmup."
        )
    return list(TrialRecord.of(max(complete, key=lambda trial: trial.value or 0.0)).final)


def _reference(goal: Goal, bench: Bench, best: Sequence[Sequence[float]]) -> Reference:
    baseline = tuple(bench.baseline)
    if goal.rescales and best:
        return Reference(baseline, alone=tuple(final[0] for final in best))
    if goal.mode == "constrained":
        return Reference(baseline, flat_p_s=p_s(best[0]))
    return Reference(baseline)
