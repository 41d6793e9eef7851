"""Learn tasks one after the other with one distribution and one seed, and fill the accuracy matrix."""

from __future__ import annotations

import copy
import gc
import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from lr_dist._lightning import L, isolate_rng
from lr_dist.callback import LayerwiseLR
from lr_dist.distribution import LRDistribution
from lr_dist.errors import RateRangeWarning, StuckLayersWarning
from lr_dist.runs.machine import training_device
from lr_dist.runs.precision import AUTO, choose_precision
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.interrupts import interrupts_held_back
from lr_dist.sequence.methods import build_method
from lr_dist.sequence.seeds import derive_seed, set_seed
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.tasks import Scorer, Task, TokenizedTask, TokenSplit, eval_loader, train_loader

EVAL_BATCH_SIZE = 128


@dataclass(frozen=True)
class Model:
    """Pre-trained weights that every run starts from, and what reading tokens for them needs.

    Attributes:
        backbone: the weights.
        pad_token_id: fills up the shorter texts of a batch.
        reads_first_token: whether the first token carries a text's vector, else the last one.
        first_position: for batches without padding, see `lr_dist.sequence.fast.packing`; None where they are padded.
    """

    backbone: nn.Module
    pad_token_id: int
    reads_first_token: bool
    first_position: int | None = None


@dataclass(frozen=True)
class Progress:
    """Where a run is: `phase` is "train" or "test", `task` a task's name, `steps` training steps just done."""

    phase: str
    task: str
    steps: int


@dataclass(frozen=True)
class EpochEnd:
    """What is known after an epoch: `scores[j]` is the primary score on task j, for the tasks begun so far."""

    task: int
    epoch: int
    scores: list[float]


@dataclass(frozen=True)
class SequenceRun:
    """The outcome of one run.

    Attributes:
        matrix: N + 1 rows of N primary scores, see `lr_dist.sequence.metrics`; None for what was not tested.
        scores: every metric behind each entry of the matrix, in the same places.
        seconds: wall time, and the part of it spent in training steps.
        tokens: tokens trained on, padding not counted.
    """

    matrix: list[list[float | None]]
    scores: list[list[dict[str, float] | None]]
    seconds: float
    train_seconds: float
    train_steps: int
    tokens: int

    def full_matrix(self) -> list[list[float]]:
        """`matrix`, of a run that tested every task at every time.

        Raises:
            ValueError: something was not tested.
        """
        full = [[score for score in row if score is not None] for row in self.matrix]
        if full != self.matrix:
            raise ValueError("This run tested only the tasks that had begun; its matrix has gaps.")
        return full


def count_steps(tasks: Sequence[TokenizedTask], settings: SequenceSettings) -> int:
    """Training steps of one run."""
    return sum(settings.epochs * -(-len(task.train) // settings.batch_size) for task in tasks)


def run_sequence(
    model: Model,
    tasks: Sequence[Task],
    tokens: Sequence[TokenizedTask],
    distribution: LRDistribution,
    seed: int,
    settings: SequenceSettings,
    report: Callable[[Progress], None] = lambda progress: None,
    after_epoch: Callable[[EpochEnd], None] | None = None,
) -> SequenceRun:
    """Learn `tasks` in their order, each with a fresh optimizer and schedule, testing all of them after each.

    The weights in `model` are copied, never changed. Every step of the run (heads, each task's order and dropout)
    draws from a seed of its own, derived from `seed`.

    Args:
        model, tasks, tokens: see `lr_dist.sequence.bench.Bench`.
        distribution: the rates.
        seed: of the run.
        settings: how each task is trained.
        report: hears of every step.
        after_epoch: hears the scores of the tasks begun so far after every epoch, and may end the run by raising. Then
            tasks are tested only once they have begun, which is all that a search needs.

    Raises:
        DivergedError: a loss became NaN or infinite.
        ConfigurationError: an encoder-decoder, or a bad method.
    """
    start = time.perf_counter()
    if settings.precision == AUTO:
        settings = replace(settings, precision=choose_precision(AUTO).chosen)
    _forget_earlier_runs()
    set_seed(seed, "heads")
    heads = {task.head: task.num_outputs for task in tasks}
    module = SequenceClassifier(
        copy.deepcopy(model.backbone),
        heads,
        reads_first_token=model.reads_first_token,
        first_position=model.first_position,
        settings=settings,
        method=build_method(settings.method),
    )
    module.method.before_sequence(module)

    def test(count: int) -> list[dict[str, float] | None]:
        row: list[dict[str, float] | None] = [None] * len(tasks)
        # Lightning hands the module back on the processor, where the precision of a GPU may be a slow one.
        module.to(training_device())
        for j, (task, split) in enumerate(zip(tasks[:count], tokens, strict=False)):
            report(Progress("test", task.name, 0))
            row[j] = evaluate(module, task, getattr(split, settings.evaluate_on), model.pad_token_id)
        return row

    scores = [test(len(tasks) if after_epoch is None else 0)]
    train_seconds = 0.0
    for index, (task, split) in enumerate(zip(tasks, tokens, strict=True)):
        module.method.before_task(module, index, split.train)
        watcher = None if after_epoch is None else _EpochWatcher(index, tasks, partial(test, index + 1), after_epoch)
        began = time.perf_counter()
        _fit(module, task, split.train, index, distribution, seed, model.pad_token_id, report, watcher)
        train_seconds += time.perf_counter() - began - (watcher.seconds if watcher else 0.0)
        module.method.after_task(module, index, split.train)
        # The last epoch's test is this task's test.
        scores.append(watcher.last if watcher else test(len(tasks)))
    return SequenceRun(
        matrix=[
            [entry[task.primary] if entry else None for entry, task in zip(row, tasks, strict=True)] for row in scores
        ],
        scores=scores,
        seconds=time.perf_counter() - start,
        train_seconds=train_seconds,
        train_steps=count_steps(tokens, settings),
        tokens=settings.epochs * sum(int(split.train.lengths.sum()) for split in tokens),
    )


def _forget_earlier_runs() -> None:
    """Trainer and module hold each other, so a run's models lie about until the collector happens to come."""
    # An exception that is raised in a destructor is lost, Ctrl-C's too.
    with interrupts_held_back():
        gc.collect()


def evaluate(module: SequenceClassifier, task: Task, split: TokenSplit, pad_token_id: int) -> dict[str, float]:
    """Every metric of `task` on a split, without gradients, in large batches of similar length."""
    was_training = module.training
    module.eval()
    scorer = Scorer(task)
    bf16 = module.settings.precision == "bf16-mixed"
    with torch.inference_mode(), torch.autocast(module.device.type, torch.bfloat16, enabled=bf16):
        for batch in eval_loader(split, EVAL_BATCH_SIZE, pad_token_id):
            moved = {key: value.to(module.device) for key, value in batch.items()}
            scorer.update(module(moved, task.head).cpu(), batch["labels"])
    module.train(was_training)
    return scorer.compute()


def _fit(
    module: SequenceClassifier,
    task: Task,
    train: TokenSplit,
    index: int,
    distribution: LRDistribution,
    seed: int,
    pad_token_id: int,
    report: Callable[[Progress], None],
    watcher: _EpochWatcher | None,
) -> None:
    settings = module.settings
    set_seed(seed, "task", index)
    loader = train_loader(train, settings.batch_size, derive_seed(seed, "order", index), pad_token_id)
    module.start_task(task.head, regression=task.kind == "regression", total_steps=settings.epochs * len(loader))
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
            callbacks=[
                LayerwiseLR(distribution, verbose=False),
                _Reporter(task.name, report),
                *([watcher] if watcher else []),
            ],
        )
        _fit_or_interrupt(trainer, module, loader)
    module.train()


def _fit_or_interrupt(trainer: L.Trainer, module: SequenceClassifier, loader: DataLoader[Any]) -> None:
    """Lightning turns Ctrl-C into sys.exit(1) and leaves the signal ignored; give the interrupt back instead."""
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


class _Reporter(L.Callback):
    def __init__(self, task: str, report: Callable[[Progress], None]) -> None:
        self._task = task
        self._report = report

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        self._report(Progress("train", self._task, 1))


class _EpochWatcher(L.Callback):
    """Tests after every epoch of one task, and passes the scores on."""

    def __init__(
        self,
        index: int,
        tasks: Sequence[Task],
        test: Callable[[], list[dict[str, float] | None]],
        heard: Callable[[EpochEnd], None],
    ) -> None:
        self._index = index
        self._tasks = tasks
        self._test = test
        self._heard = heard
        self.last: list[dict[str, float] | None] = []
        self.seconds = 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        began = time.perf_counter()
        # A run that is watched draws the same numbers as one that is not.
        with isolate_rng():
            self.last = self._test()
        self.seconds += time.perf_counter() - began
        scores = [entry[task.primary] for entry, task in zip(self.last, self._tasks, strict=True) if entry]
        self._heard(EpochEnd(self._index, trainer.current_epoch, scores))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's start-up lines and its advice on loaders and loggers, which would repeat every task."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            # Told once for all runs, before the first.
            for category in (RateRangeWarning, StuckLayersWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
