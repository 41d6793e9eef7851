"""Retention as measures of `compare`: each layer's drift in every stage, and which layer did the forgetting."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from lr_dist._lightning import isolate_rng
from lr_dist.layers import clean_name
from lr_dist.retention.config import RetentionCompareConfig
from lr_dist.retention.drift import drift
from lr_dist.retention.layer_probe import layer_probe
from lr_dist.runs.machine import training_device
from lr_dist.sequence.evaluate import evaluate
from lr_dist.sequence.measures import MakeMeasure, Measure
from lr_dist.sequence.observers import SequenceState
from lr_dist.sequence.stage import Stage


class DriftMeasure(Measure):
    """Measures the drift of every layer in every stage of a comparison: `compare(..., measures=[DriftMeasure])`.

    In the result each run has `measures["drift"]`, a list with a mapping for each stage: `task`; `drift`, layer ->
    relative L2 distance that the stage went (see `lr_dist.retention.drift`); `since_start`, the same from the weights
    before the first stage; and, with `probe`, from the second stage on `probe`: `p_o`, the mean score on the earlier
    tasks, `put_back`, layer -> what it gains if this layer alone returns to where the stage found it, and
    `all_put_back`, the same for all layers.

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
        self._stages: list[dict[str, Any]] = []

    def identity(self) -> Any:
        return {"probe": self._probe}

    def sequence_started(self, run: SequenceState) -> None:
        self._start = _copy(run.module)

    def stage_started(self, run: SequenceState, stage: Stage) -> None:
        self._before = self._start if stage.index == 0 else _copy(run.module)

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        self._stages.append(
            {
                "task": stage.task.name,
                "drift": drift(self._before, run.module),
                "since_start": drift(self._start, run.module),
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


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {clean_name(name): parameter.detach().clone() for name, parameter in module.named_parameters()}
