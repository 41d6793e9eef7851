"""Learn one stage of a run: by training, or by taking over the weights that a start or another run has trained."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader
from typing_extensions import override

from lr_dist._lightning import Callback, L
from lr_dist.callback import LayerwiseLR
from lr_dist.errors import DivergedError
from lr_dist.groups import freeze_layers
from lr_dist.layers import assign_layers
from lr_dist.methods import Method, Order, StageContext
from lr_dist.rate_plan import highest
from lr_dist.runs.machine import training_device
from lr_dist.sequence.evaluate import evaluate
from lr_dist.sequence.fitting import fit_or_interrupt, quiet_lightning
from lr_dist.sequence.joint_loader import JointLoader
from lr_dist.sequence.observers import Observer, SequenceState
from lr_dist.sequence.seeds import derive_seed, set_seed
from lr_dist.sequence.stage import Stage
from lr_dist.sequence.stage_key import StageKeys, context_of
from lr_dist.sequence.stage_store import KeptStage, StageStore
from lr_dist.tasks import train_loader


@dataclass(frozen=True)
class Learned:
    """What learning a stage took.

    Attributes:
        seconds: time in training and in methods, as if the stage had been trained for this run.
        taken_over: the part of it that another run has spent.
    """

    seconds: float
    taken_over: float = 0.0


def learn_stage(
    run: SequenceState,
    stage: Stage,
    methods: Sequence[Method],
    observers: Sequence[Observer],
    store: StageStore | None = None,
    keys: StageKeys | None = None,
) -> Learned:
    """Learn one task with a new optimizer and schedule; one that a start has learned is only shown to the methods.

    Args:
        run: the run; its module is changed.
        stage: the stage.
        methods: in the order in which they act at the stage's end.
        observers: called in training.
        store: where stages that several runs share are kept; None to train in any case.
        keys: of the stage; needed with a store.
    """
    settings = run.bench.settings
    set_seed(run.seed, "task", stage.index)
    jointly = stage.index > 0 and run.initial is not None
    loader: Any = _joint_loader(run, stage) if jointly else _loader(run, stage)
    if jointly:
        run.module.load_state_dict(run.initial or {})
    context = stage_context(run, stage, held_out=any(method.needs.held_out for method in methods))
    training = [method for method in methods if method.trains_in(context)]
    run.module.start_task(
        stage.task.head,
        regression=stage.task.kind == "regression",
        total_steps=settings.epochs * len(loader),
        trained_too=[s.task.head for s in run.stages[: stage.index] if any(m.trains_earlier_heads for m in training)],
    )
    for method in methods:
        method.enter(context)
    # Of these the weights at the end of the training are part.
    finishing = [method for method in training if method.order is Order.FINISH]
    others = [method for method in methods if method not in finishing]
    changing = any(method.changes_weights_in(context) for method in others)
    given = stage.index < run.bench.first_trained
    kept = None if store is None or keys is None or given else store.load(keys.trained, run.module.state_dict())
    run.known.weights = None
    if given:
        learned = _take_as_given(run, stage, finishing, others, loader)
    elif kept is None:
        keep = None
        if store is not None and keys is not None and store.wants(keys.trained):
            keep = _Keep(store, keys.trained, training)
        learned = _train(run, stage, [*finishing, *([keep] if keep else []), *others], keep, observers, loader)
    else:
        learned = _take_over(run, stage, kept, finishing, others, training, observers, loader, keys)
    if changing or (finishing and kept is None and not given):
        for observer in observers:
            observer.weights_changed(run, stage)
    if keys is not None:
        run.known.weights = keys.end
    return learned


def stage_context(run: SequenceState, stage: Stage, *, held_out: bool) -> StageContext:
    """The stage as methods see it.

    Args:
        run: the run.
        stage: the stage that begins.
        held_out: whether a method asks for scores on held-out examples: those of dev, which no run trains on. In
            results that are scored on dev, they are of the same split.
    """
    seen = run.stages[: stage.index + 1] if held_out else ()
    scores = {each.task.name: functools.partial(_held_out, run, each) for each in seen}
    return context_of(run.bench, run.seed, stage.index, scores)


def _loader(run: SequenceState, stage: Stage) -> DataLoader[Any]:
    order = derive_seed(run.seed, "order", stage.index)
    return train_loader(stage.tokens.train, run.bench.settings.batch_size, order, run.view.pad_token_id)


def _joint_loader(run: SequenceState, stage: Stage) -> JointLoader:
    """All tasks so far."""
    stages = run.stages[: stage.index + 1]
    loaders, heads = [_loader(run, each) for each in stages], [each.task.head for each in stages]
    return JointLoader(loaders, heads, derive_seed(run.seed, "joint", stage.index))


def _held_out(run: SequenceState, stage: Stage, module: L.LightningModule, *, part: int | None = None) -> float:
    dev = stage.tokens.dev
    split = dev if part is None else dev.rows_at(range(part, len(dev), 2))
    return evaluate(run.module, stage.task, split, run.view.pad_token_id)[stage.task.primary]


def _train(
    run: SequenceState,
    stage: Stage,
    callbacks: Sequence[Callback],
    keep: _Keep | None,
    observers: Sequence[Observer],
    loader: Any,
) -> Learned:
    settings = run.bench.settings
    relay = _Relay(run, stage, observers)
    began = time.perf_counter()
    if keep is not None:
        keep.start(began, relay)
    with quiet_lightning():
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
            callbacks=[LayerwiseLR(stage.rates, verbose=False, exact_resume=False), *callbacks, relay],
        )
        try:
            fit_or_interrupt(trainer, run.module, loader)
        except DivergedError as error:
            names = [str(callback) for callback in callbacks if isinstance(callback, Method)]
            if not names:
                raise
            raise DivergedError(
                f"{error} A method with too much strength can be the cause, too: {' + '.join(names)}."
            ) from error
    run.module.train()
    return Learned(time.perf_counter() - began - relay.seconds - (keep.seconds if keep is not None else 0.0))


def _take_as_given(
    run: SequenceState,
    stage: Stage,
    finishing: Sequence[Method],
    others: Sequence[Method],
    loader: DataLoader[Any],
) -> Learned:
    """What a fit does before its first step and after its last one: the weights are there already."""
    module = run.module
    _prepare(run, stage)
    began = time.perf_counter()
    for method in others:
        method.stage_started(module)
    for method in finishing:
        method.take_over_stage(method.state())
    _end_stage(run, others, loader)
    return Learned(time.perf_counter() - began)


def _prepare(run: SequenceState, stage: Stage) -> None:
    """Device, frozen layers and mode as in a fit."""
    module = run.module
    module.to(training_device())
    layers = assign_layers(module)
    freeze_layers(module, layers, layers.rates(highest(stage.rates).rates))
    module.train()


def _end_stage(run: SequenceState, methods: Sequence[Method], loader: DataLoader[Any]) -> None:
    # As after the last epoch: a method that reads the loader gets the next one.
    loader.batch_sampler.set_epoch(run.bench.settings.epochs)  # type: ignore[union-attr]
    for method in methods:
        method.end_stage(run.module, loader)
    run.module.train()


def _take_over(
    run: SequenceState,
    stage: Stage,
    kept: KeptStage,
    finishing: Sequence[Method],
    others: Sequence[Method],
    training: Sequence[Method],
    observers: Sequence[Observer],
    loader: Any,
    keys: StageKeys | None,
) -> Learned:
    """What a fit does, in its order, with the trained weights in place of the training."""
    module = run.module
    _prepare(run, stage)
    # As when a fit resumes: first the state, then the start with the earlier weights.
    for method in others:
        if method in training:
            method.load_state(kept.states[method.name])
    began = time.perf_counter()
    for method in others:
        method.stage_started(module)
    seconds = time.perf_counter() - began
    module.load_state_dict(kept.weights)
    for method in finishing:
        method.take_over_stage(kept.states[method.name])
    if keys is not None:
        run.known.weights = keys.trained
    for observer in observers:
        observer.stage_taken_over(run, stage, run.bench.settings.epochs * len(loader))
    run.known.weights = None
    began = time.perf_counter()
    _end_stage(run, others, loader)
    return Learned(kept.seconds + seconds + time.perf_counter() - began, kept.seconds)


class _Keep(Callback):
    """Keeps the trained weights: listed after the methods that finish the training, before all others.

    Args:
        store: where.
        key: of the stage's training.
        training: the methods that train in the stage, whose states are kept, too.
    """

    def __init__(self, store: StageStore, key: str, training: Sequence[Method]) -> None:
        self._store = store
        self._key = key
        self._training = training
        self.seconds = 0.0

    def start(self, began: float, relay: _Relay) -> None:
        """The training begins; `relay` knows the time that is not its own."""
        self._began = began
        self._relay = relay

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now = time.perf_counter()
        states = {method.name: copy.deepcopy(method.state()) for method in self._training}
        self._store.keep(self._key, KeptStage(pl_module.state_dict(), states, now - self._began - self._relay.seconds))
        self.seconds = time.perf_counter() - now


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
