"""Learn tasks one after the other with one arm and one seed: the runner that comparisons and searches share."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import operator
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader
from typing_extensions import override

from lr_dist._lightning import Callback, L
from lr_dist.callback import LayerwiseLR
from lr_dist.errors import RateRangeWarning, StuckLayersWarning
from lr_dist.methods import Method, StageContext
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.evaluate import evaluate
from lr_dist.sequence.interrupts import interrupts_held_back
from lr_dist.sequence.observers import AccuracyMatrix, Observer, SequenceState
from lr_dist.sequence.seeds import derive_seed, set_seed
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.sequence.stage import Stage
from lr_dist.tasks import TokenizedTask, train_loader


@dataclass(frozen=True)
class SequenceRun:
    """The outcome of one run.

    Attributes:
        matrix: N + 1 rows of N primary scores, see `lr_dist.sequence.metrics`; None if it was not tested.
        scores: every metric behind each entry of the matrix, in the same places.
        seconds: wall time.
        train_seconds: the part of it spent in training.
        train_steps: number of training steps.
        tokens: tokens trained on, padding not counted.
    """

    matrix: list[list[float | None]]
    scores: list[list[dict[str, float] | None]]
    seconds: float
    train_seconds: float
    train_steps: int
    tokens: int

    def full_matrix(self) -> list[list[float]]:
        """`matrix` of a run that tested every task after every stage.

        Raises:
            ValueError: something was not tested.
        """
        full = [[score for score in row if score is not None] for row in self.matrix]
        if full != self.matrix:
            raise ValueError("This run tested only the tasks that had begun; its matrix has gaps.")
        return full


def count_steps(tasks: Sequence[TokenizedTask], settings: SequenceSettings) -> int:
    """Number of training steps in one run."""
    return sum(settings.epochs * -(-len(task.train) // settings.batch_size) for task in tasks)


def run_sequence(
    bench: Bench, arm: Arm, seed: int, matrix: AccuracyMatrix, observers: Sequence[Observer] = ()
) -> SequenceRun:
    """Learn the tasks of `bench` in their order, each with a fresh optimizer and schedule.

    The weights in `bench` are copied, never changed. Every part of the run (heads, each task's order and dropout)
    has its own seed, derived from `seed`.

    Args:
        bench: model and tasks.
        arm: rates and methods.
        seed: seed of the run.
        matrix: the observer that tests; it decides which tasks are tested when.
        observers: further observers, called in this order, after `matrix`.

    Raises:
        DivergedError: a loss became NaN or infinite.
        ConfigurationError: an encoder-decoder, or an invalid method.
    """
    start = time.perf_counter()
    _collect_earlier_runs()
    watching: tuple[Observer, ...] = (matrix, *observers)
    methods = arm.build_methods()
    needs = [*(observer.needs for observer in watching), *(method.needs for method in methods)]
    view = bench.view(functools.reduce(operator.or_, needs))
    # After the view: making one, which the first run does, draws random numbers.
    set_seed(seed, "heads")
    module = SequenceClassifier(
        copy.deepcopy(view.backbone),
        {task.head: task.num_outputs for task in bench.tasks},
        reads_first_token=view.reads_first_token,
        first_position=view.first_position,
        settings=bench.settings,
    )
    pairs = enumerate(zip(bench.tasks, view.tokens, strict=True))
    stages = tuple(Stage(index, task, tokens, arm.plan.stage(index)) for index, (task, tokens) in pairs)
    run = SequenceState(bench, view, module, seed, stages)
    for observer in watching:
        observer.sequence_started(run)
    train_seconds = 0.0
    for stage in stages:
        for observer in watching:
            observer.stage_started(run, stage)
        train_seconds += _fit(run, stage, methods, watching)
        for observer in watching:
            observer.stage_ended(run, stage)
    return SequenceRun(
        matrix=[
            [entry[task.primary] if entry else None for entry, task in zip(row, bench.tasks, strict=True)]
            for row in matrix.rows
        ],
        scores=matrix.rows,
        seconds=time.perf_counter() - start,
        train_seconds=train_seconds,
        train_steps=count_steps(bench.tokens, bench.settings),
        tokens=bench.settings.epochs * sum(int(split.train.lengths.sum()) for split in bench.tokens),
    )


def _collect_earlier_runs() -> None:
    """Free the models of earlier runs: Trainer and module refer to each other, so only the collector frees them."""
    # An exception that is raised in a destructor is lost, Ctrl-C's too.
    with interrupts_held_back():
        gc.collect()


def _fit(run: SequenceState, stage: Stage, methods: Sequence[Method], observers: Sequence[Observer]) -> float:
    """Learn one task, and return the seconds spent in training."""
    settings, pad = run.bench.settings, run.view.pad_token_id
    set_seed(run.seed, "task", stage.index)
    order = derive_seed(run.seed, "order", stage.index)
    loader = train_loader(stage.tokens.train, settings.batch_size, order, pad)
    regression = stage.task.kind == "regression"
    run.module.start_task(
        stage.task.head,
        regression=regression,
        total_steps=settings.epochs * len(loader),
        trained_too=[s.task.head for s in run.stages[: stage.index] if any(m.trains_earlier_heads for m in methods)],
    )
    context = stage_context(run, stage, held_out=any(method.needs.held_out for method in methods))
    for method in methods:
        method.enter(context)
    relay = _Relay(run, stage, observers)
    began = time.perf_counter()
    with _quiet():
        trainer = L.Trainer(
            max_epochs=settings.epochs,
            accelerator="auto",
            devices=1,
            precision=settings.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            # Stages are run whole and never saved within one.
            callbacks=[LayerwiseLR(stage.distribution, verbose=False, exact_resume=False), *methods, relay],
        )
        _fit_or_interrupt(trainer, run.module, loader)
    run.module.train()
    return time.perf_counter() - began - relay.seconds


def stage_context(run: SequenceState, stage: Stage, *, held_out: bool) -> StageContext:
    """The stage as methods see it.

    Args:
        run: the run.
        stage: the stage that begins.
        held_out: whether a method asks for scores on held-out examples: those of dev, which no run trains on. In
            results that are scored on dev, they are of the same split.
    """
    seen = run.stages[: stage.index + 1] if held_out else ()
    return StageContext(
        index=stage.index,
        task=stage.task.name,
        head=stage.task.head,
        seed=derive_seed(run.seed, "methods"),
        held_out={each.task.name: functools.partial(_held_out, run, each) for each in seen},
    )


def _held_out(run: SequenceState, stage: Stage, module: L.LightningModule, *, part: int | None = None) -> float:
    dev = stage.tokens.dev
    split = dev if part is None else dev.rows_at(range(part, len(dev), 2))
    return evaluate(run.module, stage.task, split, run.view.pad_token_id)[stage.task.primary]


def _fit_or_interrupt(trainer: L.Trainer, module: SequenceClassifier, loader: DataLoader[Any]) -> None:
    """Fit; on Ctrl-C raise KeyboardInterrupt, where Lightning calls sys.exit(1) and leaves the signal ignored."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, loader)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


class _Relay(Callback):
    """Passes the Trainer's events on to the observers; `seconds` is the time they took after epochs."""

    def __init__(self, run: SequenceState, stage: Stage, observers: Sequence[Observer]) -> None:
        self._run = run
        self._stage = stage
        self._observers = observers
        self.seconds = 0.0

    @override
    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        for observer in self._observers:
            observer.step_ended(self._run, self._stage)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        began = time.perf_counter()
        for observer in self._observers:
            observer.epoch_ended(self._run, self._stage, trainer.current_epoch)
        self.seconds += time.perf_counter() - began


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's start-up lines and its advice on loaders and loggers, which would repeat for every task."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            # Given once for all runs, before the first.
            for category in (RateRangeWarning, StuckLayersWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
