"""Tracks the position of a run, and the random states from which it can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from lr_dist._callback.data_position import is_stateful
from lr_dist._callback.internals import LoggedSnapshot, Loops, snapshot_logged
from lr_dist._callback.random_state import RandomState, loader_generators
from lr_dist._lightning import L, SIGTERMException


@dataclass(frozen=True)
class Moment:
    """The state that one batch hands to the next: random states, and the values logged in this epoch so far."""

    random: RandomState
    logged: LoggedSnapshot


@dataclass(frozen=True)
class Place:
    """A point from which the run can be resumed.

    Attributes:
        epochs: number of completed epochs.
        batches: number of completed batches in the running epoch; None between two epochs.
        moment: the state at that point.
        pending: the work that is due before the next batch or epoch: "nothing", "batch_end" (validation and
            schedulers that watch a metric), "schedulers" (the latter only), "epoch_end" (schedulers that watch a
            metric of the epoch).
        gradients: the gradients of an unfinished accumulation window; None if they are the parameters' current ones.
        interrupted: whether a batch was in progress; other processes may then be at another point.
        doubts: reasons why a run resumed here would not be exact.
    """

    epochs: int
    batches: int | None
    moment: Moment
    pending: str = "nothing"
    gradients: dict[str, torch.Tensor] | None = None
    interrupted: bool = False
    doubts: tuple[str, ...] = ()


class Tracker:
    """Wraps the loops of one fit to follow its position; it draws no random number.

    Attributes:
        loops: the wrapped loops.
        started: the random state in which the data loaders were made.
        epoch_start: the random state in which this epoch's iterator was made; None if it was made with the loaders.
        first_batch: the random state in which this epoch's first batch was read; None before the iterator is made.
        stepped: `id` of the parameters whose gradients were used in this batch.
    """

    def __init__(self, loops: Loops, started: RandomState) -> None:
        self.loops = loops
        self.started = started
        self.epoch_start: RandomState | None = None
        self.first_batch: RandomState | None = None
        self.stepped: set[int] = set()
        # The last moment between two batches; and the start of the accumulation window, with its waiting gradients.
        self._boundary = self.now()
        self._window: tuple[int, Moment, dict[str, torch.Tensor]] | None = None
        self._phase = "start"  # then: opening, batches, batch, batch_end, batches, ..., epoch_end
        self._validated = self._forced = self._open = False
        loops.wrap("fit", "on_advance_start", self._begin_epoch)
        loops.wrap("epoch", "on_run_start", self._open_data)
        loops.wrap("epoch", "advance", self._run_batch)
        loops.wrap("epoch", "on_advance_end", self._end_batch)
        loops.wrap("fit", "on_advance_end", self._end_epoch)

    def now(self) -> Moment:
        """The current state."""
        loops = self.loops
        random = RandomState.now(loops.trainer.strategy.root_device, generators(loops))
        return Moment(random, snapshot_logged(loops.results))

    def place(self) -> Place:
        """The point from which a run would resume now, read from Lightning's counters."""
        trainer, epochs, batches = self.loops.trainer, self.loops.epochs, self.loops.batches
        if epochs.processed < epochs.started:
            done = epochs.processed
            if batches.processed < batches.ready:
                return self._interrupted(trainer, done, batches.completed)
            if batches.completed < batches.ready:
                return Place(done, batches.ready, self.now(), "batch_end")
            if self._phase != "batch_end":
                return Place(done, batches.ready, self._boundary)
            if trainer.validating and not self._validated:
                return Place(done, batches.ready, self._boundary, "batch_end")
            return Place(done, batches.ready, self._boundary if self._forced else self.now(), "schedulers")
        if epochs.started < epochs.ready:
            return Place(epochs.completed, None, self._boundary)
        if self.loops.cut_short:
            # A resumed run continues the epoch, as if the Trainer had not been told to stop.
            return Place(epochs.processed - 1, batches.ready, self._boundary)
        if epochs.completed < epochs.processed:
            return Place(epochs.processed, None, self.now(), "epoch_end")
        return Place(epochs.completed, None, self._boundary if self._phase == "epoch_end" else self.now())

    def go_on(
        self, epoch_start: RandomState | None, first_batch: RandomState | None, gradients: dict[str, torch.Tensor]
    ) -> None:
        """Start tracking within a resumed epoch."""
        self.epoch_start, self.first_batch = epoch_start, first_batch
        self._phase, self._boundary = "batches", self.now()
        self._window = self.loops.batches.ready, self._boundary, gradients

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Record that the gradients of this optimizer's parameters were used."""
        self.stepped.update(id(p) for group in optimizer.param_groups for p in group["params"])

    def on_validation_end(self) -> None:
        """Record that validation is done: a run resumed from a later checkpoint must not repeat it."""
        self._validated = True

    def _interrupted(self, trainer: L.Trainer, epochs: int, batches: int) -> Place:
        """A point before the interrupted batch and the earlier batches of its accumulation window."""
        doubts = []
        if self.stepped:
            doubts.append("it was written while the optimizer took a step")
        if is_stateful(self.loops.loaders[0]):
            doubts.append("it was written within a batch, which the data loader's own state counts as used")
        moment, gradients = self._boundary, dict[str, torch.Tensor]()
        if not trainer.lightning_module.automatic_optimization:
            if self._open:
                doubts.append("it was written within a batch, and the gradients of earlier batches were not used yet")
        elif self._window is not None:
            batches, moment, gradients = self._window
        return Place(epochs, batches, moment, gradients=gradients, interrupted=True, doubts=tuple(doubts))

    # Around the loops' methods ---------------------------------------------------------------------------

    def _begin_epoch(self, original: Callable[[], None]) -> None:
        self._boundary = self.now()
        if self.loops.reloads_data:
            self.started = self._boundary.random
        original()

    def _open_data(self, original: Callable[[Any], None], fetcher: Any) -> None:
        self._phase, self._boundary, self.first_batch = "opening", self.now(), None
        self.epoch_start = self._boundary.random if self.loops.trainer.current_epoch else None
        original(fetcher)
        self._phase, self._boundary = "batches", self.now()
        self.first_batch = self._boundary.random

    def _run_batch(self, original: Callable[[Any], None], fetcher: Any) -> None:
        self._phase, self._boundary = "batch", self.now()
        done = self.loops.batches.ready
        if done % self.loops.trainer.accumulate_grad_batches == 0:
            self._window = done, self._boundary, {}
        self._open = bool(done) and not self.stepped
        self.stepped.clear()
        original(fetcher)

    def _end_batch(self, original: Callable[[Any], None], fetcher: Any) -> None:
        due = self.loops.validation_due(fetcher)
        # A Trainer that was told to stop validates once more; an unbroken run does not.
        self._forced = self.loops.trainer.should_stop and not due
        self._phase, self._validated = "batch_end", False
        if due or self._forced:
            self._boundary = self.now()
        try:
            original(fetcher)
        except SIGTERMException:
            # Lightning raises it after the work of the batch is done.
            self._after_batch()
            raise
        self._after_batch()

    def _after_batch(self) -> None:
        self._phase = "batches"
        if not self._forced:
            self._boundary = self.now()

    def _end_epoch(self, original: Callable[[], None]) -> None:
        cut_short = self.loops.cut_short
        original()
        if not cut_short:
            self._phase, self._boundary = "epoch_end", self.now()


def generators(loops: Loops) -> list[torch.Generator]:
    """The generators of the data loaders."""
    train, validation = loops.loaders
    return loader_generators([*train, *validation])
