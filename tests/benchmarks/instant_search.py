"""A search whose training takes no time: everything else is what `lr-dist search` runs.

Only `run_sequence` is replaced, by a formula that answers at once. Sampler, pruner, slots, heartbeats and the user
attributes of a trial are the real ones, so what is left to measure is the storage and the machinery around it.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from datetime import UTC
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from types import SimpleNamespace
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import insert, text

import lr_dist.search.trials.trial
from lr_dist.search.engine.slots import SLOT
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.worker import drain
from lr_dist.search.trials.config import SearchConfig
from lr_dist.search.trials.objective import Reference
from lr_dist.search.trials.study import open_study, plan
from lr_dist.search.trials.trial import SequenceObjective
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.observers import EpochEnd, TestAfterEpochs
from lr_dist.sequence.runner import SequenceRun

LAYERS = 6
TASKS = ("sst2", "qqp")
BASELINE, ALONE = (0.56, 0.66), (0.85, 0.78)
# The rate at which each layer learns best, and the rate from which it forgets.
LEARNS, FORGETS = 2e-4, 5e-5


def instant_run(
    bench: Any, arm: Arm, seed: int, tests: TestAfterEpochs, observers: Any = (), *, store: Any = None
) -> SequenceRun:
    """Scores of two tasks, as `run_sequence` gives them, from the rates alone and some noise."""
    rates = [max(rate, 1e-12) for rate in arm.plan.stage(0).rates(LAYERS).values()]
    rng = random.Random(f"{seed} {rates}")
    learned = sum(math.exp(-((math.log10(rate / LEARNS)) ** 2)) for rate in rates) / len(rates)
    kept = sum(1 / (1 + rate / FORGETS) for rate in rates) / len(rates)
    matrix: list[list[float | None]] = [list(BASELINE)]
    for task in range(len(bench.tasks)):
        for epoch in range(bench.settings.epochs):
            share = learned * (epoch + 1) / bench.settings.epochs
            scores = [
                BASELINE[j] + (ALONE[j] - BASELINE[j]) * (share if j == task else kept) + rng.gauss(0, 0.01)
                for j in range(task + 1)
            ]
            tests.epoch_tested(EpochEnd(task, epoch, scores))
        matrix.append([*scores, *BASELINE[task + 1 :]])
    metrics = [[{"accuracy": score, "f1": score} for score in row if score is not None] for row in matrix]
    return SequenceRun(matrix, metrics, seconds=0.0, train_seconds=0.0, train_steps=0, tokens=0)


def config(trials: int) -> SearchConfig:
    """The study: knots, relative objective, three epochs a task, as `lr-dist search` has them by default."""
    return SearchConfig(model="minilm", sequences=(TASKS,), trials=trials)


def open_instant(url: str, name: str, trials: int) -> tuple[Study, SequenceObjective]:
    """The study, created or continued as by `lr-dist search`, and its objective without training."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lr_dist.search.trials.trial.run_sequence = instant_run
    searched = config(trials)
    bench: Any = SimpleNamespace(
        settings=searched.settings,
        choices=dict,
        baseline=list(BASELINE),
        tasks=[SimpleNamespace(name=task, dev=range(500), validation=range(500)) for task in TASKS],
        tokens=[SimpleNamespace(train=range(500)) for _ in TASKS],
        start=None,
        first_trained=0,
    )
    study = open_study(open_storage(url), name, searched, searched.identity("instant", [["instant"] * 2]))
    return study, SequenceObjective(searched, [bench], [Reference(BASELINE, alone=ALONE)])


def work(url: str, name: str, trials: int, together: Barrier, spent: Queue[float]) -> None:
    """A worker process, which begins together with the others and tells its processor seconds at the end."""
    study, objective = open_instant(url, name, trials)
    together.wait(timeout=300)
    began = time.process_time()
    drain(study, objective, plan(config(trials), LAYERS))
    spent.put(time.process_time() - began)


def finished_like(example: FrozenTrial, slot: int) -> FrozenTrial:
    """A finished trial with rates of its own; its attributes are a real one's, so they weigh what those weigh."""
    rng = random.Random(slot)
    space = config(1).space
    params = {
        name: math.exp(rng.uniform(*(math.log(bound) for bound in space.bounds(name)))) for name in example.params
    }
    attrs = {**example.user_attrs, SLOT: slot, "distribution": space.distribution(params).to_dict()}
    attrs.pop("label", None)
    pruned = example.state == TrialState.PRUNED
    return create_trial(
        state=example.state,
        params=params,
        distributions=example.distributions,
        value=None if pruned else example.values[0] + rng.gauss(0, 0.05),
        user_attrs=attrs,
        intermediate_values=example.intermediate_values,
    )


def add_many(study: Study, trials: Sequence[FrozenTrial]) -> None:
    """`study.add_trials` in a hundredth of the time: the rows of Optuna's tables in one transaction.

    Only for a PostgreSQL storage to which nobody else writes.
    """
    engine = study._storage._backend.engine  # type: ignore[attr-defined]
    rows: dict[Any, list[dict[str, Any]]] = {}
    with engine.begin() as connection:
        trial_id = connection.execute(text("SELECT COALESCE(max(trial_id), 0) FROM trials")).scalar_one()
        number = connection.execute(
            text("SELECT count(*) FROM trials WHERE study_id = :study"), {"study": study._study_id}
        ).scalar_one()
        for trial in trials:
            trial_id += 1
            for model, row in _rows(trial):
                rows.setdefault(model, []).append({"trial_id": trial_id, **row})
            rows[models.TrialModel][-1] |= {"number": number, "study_id": study._study_id}
            number += 1
        for model, made in rows.items():
            connection.execute(insert(model.__table__), made)
        connection.execute(
            text("SELECT setval(pg_get_serial_sequence('trials', 'trial_id'), :last)"), {"last": trial_id}
        )


def _rows(trial: FrozenTrial) -> Iterator[tuple[Any, dict[str, Any]]]:
    begun, ended = (
        moment and moment.astimezone(UTC).replace(tzinfo=None)
        for moment in (trial.datetime_start, trial.datetime_complete)
    )
    yield models.TrialModel, {"state": trial.state, "datetime_start": begun, "datetime_complete": ended}
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        yield (
            models.TrialParamModel,
            {
                "param_name": name,
                "param_value": distribution.to_internal_repr(value),
                "distribution_json": distribution_to_json(distribution),
            },
        )
    for objective, value in enumerate(trial.values or ()):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        yield models.TrialValueModel, {"objective": objective, "value": stored, "value_type": kind}
    for step, value in trial.intermediate_values.items():
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        row = {"step": step, "intermediate_value": stored, "intermediate_value_type": kind}
        yield models.TrialIntermediateValueModel, row
    for model, attrs in (
        (models.TrialUserAttributeModel, trial.user_attrs),
        (models.TrialSystemAttributeModel, trial.system_attrs),
    ):
        for key, value in attrs.items():
            yield model, {"key": key, "value_json": json.dumps(value)}
