"""Learn tasks one after the other with one arm and one seed: the runner that comparisons and searches share."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lr_dist.errors import ConfigurationError
from lr_dist.methods import Method, Needs
from lr_dist.rate_plan import RatePlan
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.fast.view import View
from lr_dist.sequence.interrupts import interrupts_held_back
from lr_dist.sequence.learn_stage import Learned, learn_stage
from lr_dist.sequence.observers import AccuracyMatrix, KnownScores, Observer, SequenceState
from lr_dist.sequence.seeds import set_seed
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.sequence.stage import Stage
from lr_dist.sequence.stage_key import bench_key, stage_keys
from lr_dist.sequence.stage_store import StageStore
from lr_dist.tasks import TokenizedTask


@dataclass(frozen=True)
class SequenceRun:
    """The outcome of one run.

    Attributes:
        matrix: N + 1 rows of N primary scores, see `lr_dist.sequence.metrics`; None if it was not tested.
        scores: every metric behind each entry of the matrix, in the same places.
        seconds: wall time.
        train_seconds: time in training and in methods, as if every stage had been trained for this run.
        taken_over_seconds: the part of it that other runs have spent, on stages that were taken over from them.
        taken_over: numbers of these stages.
        held_bytes: what methods kept from one stage to the next, at most.
        held_examples: examples of earlier tasks among it.
        train_steps: number of training steps, of all stages; a start has none.
        tokens: tokens trained on, padding not counted.
        methods: for each stage, name -> what the method chose or measured.
    """

    matrix: list[list[float | None]]
    scores: list[list[dict[str, float] | None]]
    seconds: float
    train_seconds: float
    train_steps: int
    tokens: int
    taken_over_seconds: float = 0.0
    taken_over: tuple[int, ...] = ()
    methods: list[dict[str, Any]] = field(default_factory=list)
    held_bytes: int = 0
    held_examples: int = 0

    def full_matrix(self) -> list[list[float]]:
        """`matrix` of a run that tested every task after every stage.

        Raises:
            ValueError: something was not tested.
        """
        full = [[score for score in row if score is not None] for row in self.matrix]
        if full != self.matrix:
            raise ValueError("This run tested only the tasks that had begun; its matrix has gaps.")
        return full


def count_steps(
    tasks: Sequence[TokenizedTask], settings: SequenceSettings, *, jointly: bool = False, given: int = 0
) -> int:
    """Number of training steps in one run; in joint training, each stage learns all tasks so far.

    Args:
        tasks: of the sequence.
        settings: of the run.
        jointly: whether it trains jointly.
        given: how many of the first stages are not trained, because a start has learned their tasks.
    """
    each = [settings.epochs * -(-len(task.train) // settings.batch_size) for task in tasks]
    return _summed(each, jointly=jointly, given=given)


def _summed(each: Sequence[int], *, jointly: bool, given: int) -> int:
    """The sum over the stages that are trained, of what each task takes."""
    return sum((list(itertools.accumulate(each)) if jointly else each)[given:])


def learns_jointly(arm: Arm) -> bool:
    """Whether the arm's later stages learn all tasks so far."""
    return any(method.learns_jointly for method in arm.build_methods())


def check_methods_of_start(bench: Bench, methods: Sequence[Method]) -> None:
    """Check that the methods can learn what a start knows.

    Raises:
        ConfigurationError: a method learns of a task only while it is trained, which a start has behind it.
    """
    for method in methods:
        if bench.start is not None and method.records_training:
            raise ConfigurationError(
                f"{method} measures what counts for a task while it is trained, and {bench.tasks[0].name} was learned "
                "before: it would not be protected. Use a method that learns at the end of a task, such as ewc or mas, "
                "or learn all tasks in one sequence, without a start."
            )


def needs_of(arm: Arm, observers: Sequence[Observer] = ()) -> Needs:
    """The parts of the model that a run needs."""
    needs = [*(observer.needs for observer in observers), *(method.needs for method in arm.build_methods())]
    return functools.reduce(operator.or_, needs, Needs())


def new_module(bench: Bench, view: View) -> SequenceClassifier:
    """A copy of the bench's model with a new head for each task, or the head that a start has learned."""
    return SequenceClassifier(
        copy.deepcopy(view.backbone),
        {task.head: task.num_outputs for task in bench.tasks},
        reads_first_token=view.reads_first_token,
        first_position=view.first_position,
        settings=bench.settings,
        given_heads={} if bench.start is None else {bench.tasks[0].head: copy.deepcopy(bench.start.head)},
    )


def stages_of(bench: Bench, tokens: Sequence[TokenizedTask], plan: RatePlan) -> tuple[Stage, ...]:
    """The stage of each task, with its tokens and its rates."""
    pairs = enumerate(zip(bench.tasks, tokens, strict=True))
    return tuple(Stage(index, task, each, plan.stage(index)) for index, (task, each) in pairs)


def run_sequence(
    bench: Bench,
    arm: Arm,
    seed: int,
    matrix: AccuracyMatrix,
    observers: Sequence[Observer] = (),
    *,
    store: StageStore | None = None,
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
        store: where trained stages are kept and taken over from, with the same results. It is not used if an observer
            needs to be there in the training.

    Raises:
        DivergedError: a loss became NaN or infinite.
        ConfigurationError: an encoder-decoder, an invalid method, or one that cannot go on from a start.
    """
    start = time.perf_counter()
    _collect_earlier_runs()
    watching: tuple[Observer, ...] = (matrix, *observers)
    methods = arm.build_methods()
    check_methods_of_start(bench, methods)
    if store is not None and any(observer.needs_training for observer in watching):
        store = None
    needs = needs_of(arm, watching) | (store.needs if store is not None else Needs())
    view = bench.view(needs)
    keys = None if store is None else stage_keys(bench_key(bench, needs), bench, arm, seed)
    # After the view: making one, which the first run does, draws random numbers.
    set_seed(seed, "heads")
    module = new_module(bench, view)
    stages = stages_of(bench, view.tokens, arm.plan)
    known = KnownScores(store.scores if store is not None else None)
    jointly = learns_jointly(arm)
    initial = copy.deepcopy(module.state_dict()) if jointly else None
    run = SequenceState(bench, view, module, seed, stages, known, initial)
    known.weights = None if keys is None else keys[0].start
    for observer in watching:
        observer.sequence_started(run)
    learned: list[Learned] = []
    outcomes: list[dict[str, Any]] = []
    held: list[tuple[int, int]] = []
    for stage in stages:
        for observer in watching:
            observer.stage_started(run, stage)
        learned.append(learn_stage(run, stage, methods, watching, store, keys[stage.index] if keys else None))
        outcomes.append({method.name: outcome for method in methods if (outcome := method.outcome())})
        if stage.index < len(stages) - 1:
            each = [method.held() for method in methods]
            held.append((sum(size for size, _ in each), sum(count for _, count in each)))
        for observer in watching:
            observer.stage_ended(run, stage)
    lengths = [int(split.train.lengths.sum()) for split in bench.tokens]
    return SequenceRun(
        matrix=[
            [entry[task.primary] if entry else None for entry, task in zip(row, bench.tasks, strict=True)]
            for row in matrix.rows
        ],
        scores=matrix.rows,
        methods=outcomes,
        seconds=time.perf_counter() - start,
        train_seconds=sum(each.seconds for each in learned),
        held_bytes=max((size for size, _ in held), default=0),
        held_examples=max((count for _, count in held), default=0),
        taken_over_seconds=sum(each.taken_over for each in learned),
        taken_over=tuple(index for index, each in enumerate(learned) if each.taken_over),
        train_steps=count_steps(bench.tokens, bench.settings, jointly=jointly, given=bench.first_trained),
        tokens=bench.settings.epochs * _summed(lengths, jointly=jointly, given=bench.first_trained),
    )


def _collect_earlier_runs() -> None:
    """Free the models of earlier runs: Trainer and module refer to each other, so only the collector frees them."""
    # An exception that is raised in a destructor is lost, Ctrl-C's too.
    with interrupts_held_back():
        gc.collect()
