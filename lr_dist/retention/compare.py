"""Retention as measures of `compare`: each layer's drift in every stage, and which layer did the forgetting."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist._lightning import isolate_rng
from lr_dist.layers import clean_name
from lr_dist.retention.cka import LEAST_ROWS, cka_by_layer
from lr_dist.retention.config import RetentionCompareConfig
from lr_dist.retention.drift import drift
from lr_dist.retention.hidden_states import hidden_states
from lr_dist.retention.layer_probe import layer_probe
from lr_dist.runs.machine import training_device
from lr_dist.sequence.evaluate import BATCH_SIZE, evaluate
from lr_dist.sequence.measures import MakeMeasure, Measure
from lr_dist.sequence.observers import SequenceState
from lr_dist.sequence.stage import Stage
from lr_dist.tasks import eval_loader

# Of each earlier task: two passes over them for each stage.
CKA_TEXTS = 300


class DriftMeasure(Measure):
    """Measures the drift of every layer in every stage of a comparison: `compare(..., measures=[DriftMeasure])`.

    In the result each run has `measures["drift"]`, a list with a mapping for each stage:

    - `task`;
    - `drift`: layer -> relative L2 distance that the stage went (see `lr_dist.retention.drift`);
    - `since_start`: the same from the weights before the first stage;
    - from the second stage on `cka`: layer -> unbiased linear CKA of the hidden states that texts of the earlier tasks
      (up to 300 of each) have before and after the stage, at the token that the head reads; for models whose heads read
      the last token, of the mean over tokens. A layer whose states do not vary is left out;
    - with `probe`, from the second stage on `probe`: `p_o`, the mean score on the earlier tasks, `put_back`, layer ->
      what it gains if this layer alone returns to where the stage found it, and `all_put_back`, the same for all.

    The word embeddings are those of the tokens that the tasks use, as the run trains them. Neither the training nor a
    score depends on it. Memory: two copies of the weights.

    Args:
        probe: with the layer probe; it scores the earlier tasks once more for each layer.
    """

    name = "drift"

    def __init__(self, probe: bool = False) -> None:
        self._probe = probe
        self._start: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._states: dict[str, Tensor] = {}
        self._stages: list[dict[str, Any]] = []

    def identity(self) -> Any:
        return {"probe": self._probe, "cka_texts": CKA_TEXTS}

    def sequence_started(self, run: SequenceState) -> None:
        self._start = _copy(run.module)

    def stage_started(self, run: SequenceState, stage: Stage) -> None:
        self._before = self._start if stage.index == 0 else _copy(run.module)
        self._states = _states(run, stage.index)

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        self._stages.append(
            {
                "task": stage.task.name,
                "drift": drift(self._before, run.module),
                "since_start": drift(self._start, run.module),
                **({"cka": _cka(self._states, _states(run, stage.index))} if self._states else {}),
                **({"probe": self._probed(run, stage)} if self._probe and stage.index > 0 else {}),
            }
        )

    def result(self) -> list[dict[str, Any]]:
        return self._stages

    def _probed(self, run: SequenceState, stage: Stage) -> dict[str, Any]:
        def p_o(module: nn.Module) -> float:
            scores = [_score(run, each) for each in run.stages[: stage.index]]
            return sum(scores) / len(scores)

        # After a fit, Lightning moves the module to the CPU, where the GPU's precision may be slow.
        run.module.to(training_device())
        with isolate_rng():
            probe = layer_probe(run.module, self._before, p_o)
        return {"p_o": probe.score, "put_back": probe.gain, "all_put_back": probe.all_exchanged - probe.score}


def measures_of(config: RetentionCompareConfig) -> tuple[MakeMeasure, ...]:
    """The measures that a configuration asks for."""
    asked = config.drift or config.layer_probe
    return (functools.partial(DriftMeasure, config.layer_probe),) if asked else ()


def _score(run: SequenceState, stage: Stage) -> float:
    """The primary score on a stage's task; `run.test` would take it for that of the run's own weights."""
    split = getattr(stage.tokens, run.bench.settings.evaluate_on)
    return evaluate(run.module, stage.task, split, run.view.pad_token_id)[stage.task.primary]


def _states(run: SequenceState, learned: int) -> dict[str, Tensor]:
    """The hidden states of the first `learned` tasks' texts; empty if these are too few."""
    # What the head reads; of a model that it reads at the end (a decoder), the mean.
    pool = "first" if run.view.reads_first_token else "mean"
    run.module.to(training_device())
    found: dict[str, list[Tensor]] = {}
    for stage in run.stages[:learned]:
        split = getattr(stage.tokens, run.bench.settings.evaluate_on)
        texts = split.rows_at(range(min(len(split), CKA_TEXTS)))
        batches = list(eval_loader(texts, BATCH_SIZE, run.view.pad_token_id))
        compute = functools.partial(_compute, head=stage.task.head)
        for layer, rows in hidden_states(run.module, batches, pool=pool, run=compute).items():
            found.setdefault(layer, []).append(rows)
    states = {layer: torch.cat(each) for layer, each in found.items()}
    return states if all(len(each) >= LEAST_ROWS for each in states.values()) else {}


def _compute(module: Any, batch: Any, head: str) -> None:
    module.task_outputs(batch, head)


def _cka(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Without layers whose states do not vary, which have none."""
    return {layer: value for layer, value in cka_by_layer(before, after).items() if not math.isnan(value)}


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {clean_name(name): parameter.detach().clone() for name, parameter in module.named_parameters()}
