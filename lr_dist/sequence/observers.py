"""Observers: what looks at a task sequence while it is learned, with the live model at hand.

The runner calls each observer at every moment of a run. The accuracy matrix is filled by one of them, too: by
`TestAfterStages` (all tasks before the first stage and after each, for evidence) or by `TestAfterEpochs` (the tasks
that have begun, after every epoch, for searching).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from lr_dist._lightning import isolate_rng
from lr_dist.methods import Needs
from lr_dist.runs.machine import training_device
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.evaluate import evaluate
from lr_dist.sequence.fast.view import View
from lr_dist.sequence.stage import Stage

Scores = dict[str, float]


@dataclass(frozen=True)
class SequenceState:
    """A run that is going on.

    Attributes:
        bench: model, tasks and tokens.
        view: what of them the module computes with.
        module: the live model. Whoever changes its weights changes the run.
        seed: of the run.
        stages: all of them, in order.
    """

    bench: Bench
    view: View
    module: SequenceClassifier
    seed: int
    stages: tuple[Stage, ...]

    def test(self, index: int) -> Scores:
        """Every metric of task `index` with the weights as they are; no random number of the run is drawn."""
        stage = self.stages[index]
        # Lightning hands the module back on the processor, where the precision of a GPU may be a slow one.
        self.module.to(training_device())
        with isolate_rng():
            split = getattr(stage.tokens, self.bench.settings.evaluate_on)
            return evaluate(self.module, stage.task, split, self.view.pad_token_id)


class Observer:
    """Override what is needed. To end a run early, raise.

    Attributes:
        needs: of the model.
    """

    needs: Needs = Needs()

    def sequence_started(self, run: SequenceState) -> None:
        """With the pre-trained weights, before the first stage."""

    def stage_started(self, run: SequenceState, stage: Stage) -> None:
        """Before the first step of a stage."""

    def step_ended(self, run: SequenceState, stage: Stage) -> None:
        """After a batch was learned. Keep it short: it is called for every batch."""

    def epoch_ended(self, run: SequenceState, stage: Stage, epoch: int) -> None:
        """After an epoch of a stage, counted from 0."""

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        """After the last step of a stage."""


@dataclass(frozen=True)
class Progress:
    """Where a run is: `phase` is "train" or "test", `task` a task's name, `steps` training steps just done."""

    phase: str
    task: str
    steps: int


class ReportProgress(Observer):
    """Calls `report` after every step."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report

    def step_ended(self, run: SequenceState, stage: Stage) -> None:
        self._report(Progress("train", stage.task.name, 1))


class AccuracyMatrix(Observer):
    """Fills the accuracy matrix: one row before the first stage and one for each stage.

    Args:
        report: is called before each test.

    Attributes:
        rows: N + 1 rows of N entries: every metric of task j after stage i, None for what was not tested.
        seconds: wall time spent testing.
    """

    def __init__(self, report: Callable[[Progress], None] = lambda progress: None) -> None:
        self.rows: list[list[Scores | None]] = []
        self.seconds = 0.0
        self._report = report

    def test(self, run: SequenceState, count: int) -> list[Scores | None]:
        """Scores of the first `count` tasks; None for the others."""
        began = time.perf_counter()
        row: list[Scores | None] = [None] * len(run.stages)
        for stage in run.stages[:count]:
            self._report(Progress("test", stage.task.name, 0))
            row[stage.index] = run.test(stage.index)
        self.seconds += time.perf_counter() - began
        return row


class TestAfterStages(AccuracyMatrix):
    """Tests all tasks before the first stage and after each."""

    __test__ = False  # no test of pytest's

    def sequence_started(self, run: SequenceState) -> None:
        self.rows = [self.test(run, len(run.stages))]

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        self.rows.append(self.test(run, len(run.stages)))


@dataclass(frozen=True)
class EpochEnd:
    """What is known after an epoch: `scores[j]` is the primary score on task j, for the tasks begun so far."""

    task: int
    epoch: int
    scores: list[float]


class TestAfterEpochs(AccuracyMatrix):
    """Tests the tasks that have begun after every epoch, and passes the scores on: all that a search needs.

    Args:
        epoch_tested: receives the scores, and may end the run by raising.
        report: is called before each test.
    """

    __test__ = False

    def __init__(
        self,
        epoch_tested: Callable[[EpochEnd], None] = lambda end: None,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        super().__init__(report)
        self.epoch_tested = epoch_tested
        self._last: list[Scores | None] = []

    def sequence_started(self, run: SequenceState) -> None:
        self.rows = [[None] * len(run.stages)]

    def epoch_ended(self, run: SequenceState, stage: Stage, epoch: int) -> None:
        self._last = self.test(run, stage.index + 1)
        scores = [entry[s.task.primary] for entry, s in zip(self._last, run.stages, strict=True) if entry]
        self.epoch_tested(EpochEnd(stage.index, epoch, scores))

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        # The last epoch's test is the stage's.
        self.rows.append(self._last)
