"""Observers: they measure a task sequence while it is learned, and have access to the live model.

The runner calls every observer before and after each stage, after epochs and after steps. One of them fills the
accuracy matrix: `TestAfterStages` (all tasks before the first stage and after each stage, for reported results) or
`TestAfterEpochs` (the tasks that have begun, after every epoch, for searching).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lr_dist._lightning import isolate_rng
from lr_dist.methods import Needs
from lr_dist.runs.machine import training_device
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.evaluate import evaluate
from lr_dist.sequence.fast.view import View
from lr_dist.sequence.stage import Stage

Scores = dict[str, float]


class KnownScores:
    """Scores by weights: weights that several runs reach are tested once.

    Args:
        scores: (key of the weights, what was tested) -> every metric.

    Attributes:
        weights: key of the run's present weights, see `lr_dist.sequence.stage_key`; None in training.
    """

    def __init__(self, scores: dict[tuple[str, Hashable], Scores] | None = None) -> None:
        self.weights: str | None = None
        self._scores = {} if scores is None else scores

    def get(self, what: Hashable, test: Callable[[], Scores]) -> Scores:
        """The scores of the present weights, tested if they are not known; `what` is the number of the task."""
        if self.weights is None:
            return test()
        key = self.weights, what
        if key not in self._scores:
            self._scores[key] = test()
        return dict(self._scores[key])


@dataclass(frozen=True)
class SequenceState:
    """The state of a run in progress.

    Attributes:
        bench: model, tasks and tokens.
        view: the form of model and tokens that the module computes with.
        module: the live model. Changing its weights changes the run.
        seed: seed of the run.
        stages: all stages, in order.
        known: scores of weights that other runs have reached, too.
        initial: the weights before the first stage, for joint training; None if no method needs them.
    """

    bench: Bench
    view: View
    module: SequenceClassifier
    seed: int
    stages: tuple[Stage, ...]
    known: KnownScores = field(default_factory=KnownScores, repr=False)
    initial: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def test(self, index: int) -> Scores:
        """Every metric of task `index` with the current weights; draws no random numbers of the run."""
        return self.known.get(index, lambda: self._test(index))

    def _test(self, index: int) -> Scores:
        stage = self.stages[index]
        # After a fit, Lightning moves the module to the CPU, where the GPU's precision may be slow.
        self.module.to(training_device())
        with isolate_rng():
            split = getattr(stage.tokens, self.bench.settings.evaluate_on)
            return evaluate(self.module, stage.task, split, self.view.pad_token_id)


class Observer:
    """Base class of observers. Override the methods that you need; raise an exception to end a run early.

    Attributes:
        needs: parts of the model that the observer needs.
        needs_training: whether it has to be there in the training, or changes the weights. If not, a stage that
            another run has trained can be taken over, see `lr_dist.sequence.stage_store`.
    """

    needs: Needs = Needs()
    needs_training: bool = True

    def sequence_started(self, run: SequenceState) -> None:
        """Called before the first stage, with the pre-trained weights."""

    def stage_started(self, run: SequenceState, stage: Stage) -> None:
        """Called before the first step of a stage."""

    def step_ended(self, run: SequenceState, stage: Stage) -> None:
        """Called after every training batch, so it should be fast."""

    def epoch_ended(self, run: SequenceState, stage: Stage, epoch: int) -> None:
        """Called after each epoch of a stage; epochs count from 0."""

    def stage_taken_over(self, run: SequenceState, stage: Stage, steps: int) -> None:
        """Called instead of `step_ended` and `epoch_ended` for a stage that another run trained, in `steps` steps."""

    def weights_changed(self, run: SequenceState, stage: Stage) -> None:
        """Called before `stage_ended` if a method may have changed the weights after the last epoch."""

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        """Called after the last step of a stage."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        phase: "train", "take over" (what another run has trained) or "test".
        task: the task's name.
        steps: training steps just done, or taken over.
    """

    phase: str
    task: str
    steps: int


class ReportProgress(Observer):
    """Calls `report` after every step."""

    needs_training = False

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report

    def step_ended(self, run: SequenceState, stage: Stage) -> None:
        self._report(Progress("train", stage.task.name, 1))

    def stage_taken_over(self, run: SequenceState, stage: Stage, steps: int) -> None:
        self._report(Progress("take over", stage.task.name, steps))


class AccuracyMatrix(Observer):
    """Fills the accuracy matrix: one row before the first stage and one for each stage.

    Args:
        report: called before each test.

    Attributes:
        rows: N + 1 rows of N entries: every metric of task j after stage i, None if it was not tested.
        seconds: wall time spent testing.
    """

    needs_training = False

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
    """Tests all tasks before the first stage and after each; a start's first stage has the scores before it."""

    __test__ = False  # no test of pytest's

    def __init__(self, report: Callable[[Progress], None] = lambda progress: None) -> None:
        super().__init__(report)
        self._changed = True

    def sequence_started(self, run: SequenceState) -> None:
        self.rows = [self.test(run, len(run.stages))]

    def stage_started(self, run: SequenceState, stage: Stage) -> None:
        self._changed = stage.index >= run.bench.first_trained

    def weights_changed(self, run: SequenceState, stage: Stage) -> None:
        self._changed = True

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        self.rows.append(self.test(run, len(run.stages)) if self._changed else list(self.rows[-1]))


@dataclass(frozen=True)
class EpochEnd:
    """Scores after an epoch: `scores[j]` is the primary score on task j, for the tasks that have begun."""

    task: int
    epoch: int
    scores: list[float]


class TestAfterEpochs(AccuracyMatrix):
    """After every epoch, tests the tasks that have begun and passes the scores on, as a search needs.

    Of a stage that another run has trained, only the last epoch is tested.

    Args:
        epoch_tested: receives the scores; it may raise to end the run.
        report: called before each test.
    """

    __test__ = False

    def __init__(
        self,
        epoch_tested: Callable[[EpochEnd], None] = lambda end: None,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        super().__init__(report)
        self.epoch_tested = epoch_tested
        self._last: list[Scores | None] | None = None

    def sequence_started(self, run: SequenceState) -> None:
        self.rows = [[None] * len(run.stages)]

    def stage_started(self, run: SequenceState, stage: Stage) -> None:
        self._last = None

    def epoch_ended(self, run: SequenceState, stage: Stage, epoch: int) -> None:
        self._last = self.test(run, stage.index + 1)
        scores = [entry[s.task.primary] for entry, s in zip(self._last, run.stages, strict=True) if entry]
        self.epoch_tested(EpochEnd(stage.index, epoch, scores))

    def stage_taken_over(self, run: SequenceState, stage: Stage, steps: int) -> None:
        self.epoch_ended(run, stage, run.bench.settings.epochs - 1)

    def weights_changed(self, run: SequenceState, stage: Stage) -> None:
        self._last = None

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        # The test after the last epoch is the one after the stage, unless the weights have changed since.
        self.rows.append(self._last or self.test(run, stage.index + 1))
