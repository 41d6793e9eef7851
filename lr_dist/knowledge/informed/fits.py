"""The fits of a run: the first stage, and the task from what was carried over."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from typing_extensions import override

from lr_dist._lightning import isolate_rng
from lr_dist.knowledge.informed.config import MIXED
from lr_dist.knowledge.informed.material import NEEDS, Material
from lr_dist.knowledge.informed.transfer import transfer
from lr_dist.runs.machine import training_device
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.evaluate import evaluate
from lr_dist.sequence.observers import AccuracyMatrix, Observer, SequenceState
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.stage import Stage
from lr_dist.tasks import TokenizedTask, TokenSplit

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class FirstStage:
    """What a first stage left.

    Attributes:
        weights: name -> tensor of the whole module.
        zero_shot: score on the task without an example of it; None if the stage has another head.
        seconds: of the fit.
    """

    weights: Weights
    zero_shot: float | None
    seconds: float


def first_stage(material: Material, arm: str, rates: str, seed: int) -> FirstStage:
    """Learn the prototypes (or what stands for them) from the pre-trained weights."""
    tokens = material.stage_tokens(arm, seed)
    test = _Tests(material, splits={})
    seconds = _fit(material, tokens, rates, seed, material.config.stage_epochs, test, [])
    return FirstStage(test.weights, test.zero_shot, seconds)


def learn_task(
    material: Material, arm: str, limit: int, rates: str, seed: int, start: Weights | None, part: str, *, tuning: bool
) -> dict[str, Any]:
    """Learn the drawn examples, and test.

    Args:
        material: of the experiment.
        arm: only `mixed` has another training set.
        limit, seed: of the draw.
        rates: learning rates.
        start: weights of the first stage; None for the pre-trained ones.
        part: which of them are carried over.
        tuning: score on dev only.

    Returns:
        `score`, or also `noise` and `curve`; `steps`, `seconds`.
    """
    mixed = arm == MIXED
    tokens = material.mixed_tokens(limit, seed) if mixed else material.task_tokens(limit, seed)
    steps = material.steps(limit, seed) + (material.stage_steps("informed") if mixed else 0)
    dev, official = material.tokens.dev, getattr(material.tokens, material.bench.settings.evaluate_on)
    splits: dict[str, TokenSplit] = {"score": dev if tuning else official}
    if not tuning:
        on = material.bench.settings.evaluate_on
        splits |= {name: getattr(material.noisy(name), on) for name in material.noises}
    test = _Tests(material, splits)
    observers: list[Observer] = [] if start is None else [_CarryOver(start, part)]
    points = 0 if tuning else material.config.curve_points
    if points:
        observers.append(curve := _Curve(material, dev, steps, points))
    seconds = _fit(material, tokens, rates, seed, 1 if mixed else material.epochs(limit, seed), test, observers)
    scores = test.scores
    outcome: dict[str, Any] = {"score": scores["score"], "steps": steps, "seconds": round(seconds, 3)}
    if not tuning:
        outcome["noise"] = {name: scores[name] for name in material.noises}
    if points:
        outcome["curve"] = curve.points
    return outcome


def _fit(
    material: Material,
    tokens: TokenizedTask,
    rates: str,
    seed: int,
    epochs: int,
    test: _Tests,
    observers: list[Observer],
) -> float:
    """One stage through the runner of task sequences; returns its seconds of training."""
    bench = material.bench
    view = replace(bench.view(NEEDS), tokens=(tokens,))
    alone = replace(bench, tasks=[tokens.task], tokens=[tokens], baseline=[0.0], _views={})
    alone = replace(alone, settings=replace(bench.settings, epochs=epochs)).with_view(view, NEEDS)
    began = time.perf_counter()
    run_sequence(alone, Arm.parse(rates), seed, test, observers)
    return time.perf_counter() - began - test.seconds - sum(getattr(each, "seconds", 0.0) for each in observers)


def _score(run: SequenceState, material: Material, split: TokenSplit) -> float:
    run.module.to(training_device())
    with isolate_rng():
        return evaluate(run.module, material.task, split, run.view.pad_token_id)[material.task.primary]


class _Tests(AccuracyMatrix):
    """Tests once, at the end.

    Args:
        material: of the experiment.
        splits: name -> split to score; without any, the module's weights are kept instead.
    """

    needs = NEEDS
    needs_training = True

    def __init__(self, material: Material, splits: Mapping[str, TokenSplit]) -> None:
        super().__init__()
        self._material = material
        self._splits = splits
        self.scores: dict[str, float] = {}
        self.weights: Weights = {}
        self.zero_shot: float | None = None

    @override
    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        began = time.perf_counter()
        self.scores = {name: _score(run, self._material, split) for name, split in self._splits.items()}
        if not self._splits:
            self.weights = {name: weight.detach().cpu().clone() for name, weight in run.module.state_dict().items()}
            if stage.task.head == self._material.task.head:
                on = self._material.bench.settings.evaluate_on
                self.zero_shot = _score(run, self._material, getattr(self._material.tokens, on))
        self.rows = [[None], [None]]
        self.seconds += time.perf_counter() - began


class _CarryOver(Observer):
    """Puts the weights of an earlier stage into the module before its first step."""

    needs = NEEDS

    def __init__(self, weights: Weights, part: str) -> None:
        self._weights = weights
        self._part = part

    @override
    def stage_started(self, run: SequenceState, stage: Stage) -> None:
        transfer(run.module, self._weights, self._part)


class _Curve(Observer):
    """Scores some dev examples before the first step and at equal distances until the last.

    Args:
        material: of the experiment.
        dev: the split.
        steps: of the stage.
        count: tests after the first step.
    """

    needs = NEEDS

    def __init__(self, material: Material, dev: TokenSplit, steps: int, count: int) -> None:
        self._material = material
        self._split = dev.rows_at(range(min(material.config.curve_rows, len(dev))))
        self._at = {round(steps * number / count) for number in range(1, count + 1)}
        self._step = 0
        self.points: list[tuple[int, float]] = []
        self.seconds = 0.0

    @override
    def stage_started(self, run: SequenceState, stage: Stage) -> None:
        self._test(run)

    @override
    def step_ended(self, run: SequenceState, stage: Stage) -> None:
        self._step += 1
        if self._step in self._at:
            self._test(run)

    def _test(self, run: SequenceState) -> None:
        began = time.perf_counter()
        self.points.append((self._step, _score(run, self._material, self._split)))
        self.seconds += time.perf_counter() - began
