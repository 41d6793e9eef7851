"""Exact resume of one fit: the work that `ExactResume` and `LayerwiseLR` hand over in their hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from lr_dist._callback import data_position
from lr_dist._callback.gradients import restore_gradients, waiting_gradients
from lr_dist._callback.internals import (
    Loops,
    plain_logged,
    quiet_about_position,
    restore_logged,
    rewrite_progress,
)
from lr_dist._callback.machine import differences, machine
from lr_dist._callback.random_state import RandomState
from lr_dist._callback.tracker import Place, Tracker, generators
from lr_dist._lightning import GradientAccumulationScheduler, L, package_of, rank_zero_warn
from lr_dist.errors import InexactResumeWarning

# The state's key among a checkpoint's `callbacks` (`ExactResume`), and its key within LayerwiseLR's state.
STATE_KEY = "ExactResume"
_HOST, HOST_KEY = "LayerwiseLR", "exact_resume"


def saved_state(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The exact-resume state in a checkpoint, from either callback; None if it has none."""
    callbacks = checkpoint.get("callbacks") or {}
    state: dict[str, Any] | None = callbacks.get(STATE_KEY)
    return state if state is not None else (callbacks.get(_HOST) or {}).get(HOST_KEY)


class ExactFit:
    """Saves what Lightning leaves out of a checkpoint, and restores it when a run is resumed.

    That is: the random states of every process; gradients within an accumulation window; the position in the data;
    what the training step logged for the epoch's averages, and the metrics that callbacks and schedulers watch; and the
    work that follows the hook in which the checkpoint was written (validation, a step of ReduceLROnPlateau).

    An unbroken run is not changed: nothing here draws a random number or changes what Lightning does. During a fit,
    methods of its loops are wrapped, because Lightning calls no hook just before the data loader's iterator is made,
    nor just before a batch is read.

    One object serves one fit; the callback's hooks call its methods. A copy or an unpickled object starts empty.
    """

    # Format of what `state` returns. A state without a number has format 1; format 2 added `format` and `machine`.
    FORMAT = 2

    def __init__(self) -> None:
        self._tracker: Tracker | None = None
        self._resumed: _Resumed | None = None
        self._started: RandomState | None = None
        self._alone = False

    def __reduce__(self) -> tuple[type[ExactFit], tuple[()]]:
        return type(self), ()

    def on_fit_start(self, trainer: L.Trainer) -> None:
        """Save, or restore, the random state in which data loaders and the first epoch's iterator are made."""
        self._started = RandomState.now(trainer.strategy.root_device)
        self._restore_start(trainer)

    def load(self, trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
        """Read this process's part of a checkpoint, and rewrite Lightning's counters in it."""
        # Lightning's tuners save and load a checkpoint while a run goes on.
        if self._tracker is not None or Loops(trainer).missing:
            return
        if (state := saved_state(checkpoint)) is None:
            _warn("it was written without exact_resume (or ExactResume), so it holds no random states")
            return
        if (version := state.get("format", 1)) not in range(1, self.FORMAT + 1):
            _warn(f"a later version of lr-dist wrote it (format {version}, and this version reads up to {self.FORMAT})")
            return
        try:
            ranks, doubts, rank_state = state["ranks"], list(state["doubts"]), None
            if len(ranks) != trainer.world_size:
                doubts.append(f"it was written by {len(ranks)} processes, and this run has {trainer.world_size}")
            elif (rank_state := ranks[trainer.global_rank]) is None:
                doubts.append("it was written by one process during an exception, without the states of the others")
            else:
                doubts += differences(rank_state.get("machine", {}), machine(trainer.strategy.root_device))
            self._resumed = _Resumed.of(state, rank_state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            _warn(f"its exact-resume state was not written by lr-dist, or was changed ({error!r})")
            return
        if doubts:
            _warn("; ".join(doubts))
        rewrite_progress(checkpoint["loops"], state["epochs"], state["batches"], stateful=state["stateful"])
        if self._started is not None:
            # Some strategies load after `on_fit_start`.
            self._restore_start(trainer)

    def on_train_start(self, trainer: L.Trainer) -> None:
        """Wrap the loops' methods, and resume if the checkpoint was written between two epochs."""
        loops = Loops(trainer)
        if loops.missing or self._started is None:
            rank_zero_warn(
                f"Lightning {package_of(trainer).__version__} lacks {', '.join(loops.missing)}, so a run that is "
                "stopped and resumed will not end exactly where the unbroken run ends. Use a version that lr-dist was "
                "tested with, or leave this out: LayerwiseLR(..., exact_resume=False), and no ExactResume.",
                category=InexactResumeWarning,
            )
            return
        self._tracker = Tracker(loops, self._started)
        if self._resumed is not None:
            loops.wrap("fit", "on_advance_start", self._resume_between_epochs)
            loops.wrap("epoch", "reset", self._reset_quietly)
            loops.wrap("epoch", "on_run_start", self._resume_within_epoch)
            loops.reloaded = self._resumed.reloaded
            self._end_epoch_before(self._resumed, loops)
            if self._resumed.batches is None:
                loops.begin_epoch()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Record that the gradients of this optimizer's parameters were used."""
        if self._tracker is not None:
            self._tracker.on_before_optimizer_step(optimizer)

    def on_validation_end(self) -> None:
        """Record that validation is done: a run resumed from a later checkpoint must not repeat it."""
        if self._tracker is not None:
            self._tracker.on_validation_end()

    def on_exception(self) -> None:
        """From now on save without the other processes, which may not have been interrupted."""
        self._alone = True

    def close(self) -> None:
        """Unwrap the methods of Lightning's loops."""
        if self._tracker is not None:
            self._tracker.loops.unwrap()

    def teardown(self, trainer: L.Trainer) -> None:
        """End as the unbroken run does, even if the checkpoint was the run's last, so that no training started."""
        self.close()
        loops = Loops(trainer)
        if self._resumed is not None and not loops.missing:
            self._end_epoch_before(self._resumed, loops)
            _restore(self._resumed.random.get("now"), loops)
            self._resumed = None

    # Saving ----------------------------------------------------------------------------------------------

    def state(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any] | None:
        """The state for a checkpoint, as plain data and tensors; every process must call this.

        None before training has started.
        """
        if self._tracker is None:
            return None
        loops = self._tracker.loops
        place = self._tracker.place()
        alone = self._alone or place.interrupted
        return {
            "format": self.FORMAT,
            "epochs": place.epochs,
            "batches": place.batches,
            "pending": place.pending,
            "doubts": list(place.doubts),
            "reloaded": loops.reloaded,
            "window": trainer.accumulate_grad_batches,
            "stateful": data_position.is_stateful(loops.loaders[0]),
            "ranks": _gathered(_rank_state(pl_module, self._tracker, place, alone=alone), alone=alone),
        }

    # Resuming --------------------------------------------------------------------------------------------

    def _restore_start(self, trainer: L.Trainer) -> None:
        if self._resumed is not None and (started := self._resumed.random.get("started")) is not None:
            self._started = started
            started.restore(trainer.strategy.root_device)

    def _end_epoch_before(self, resumed: _Resumed, loops: Loops) -> None:
        """Restore the metrics, and step the schedulers that were due when the checkpoint was written."""
        device = loops.trainer.strategy.root_device
        loops.trainer.callback_metrics.update({name: value.to(device) for name, value in resumed.metrics.items()})
        if resumed.pending == "epoch_end":
            loops.step_epoch_plateaus()

    def _resume_between_epochs(self, original: Callable[[], None]) -> None:
        if self._tracker is not None and self._resumed is not None and self._resumed.batches is None:
            # Not earlier: other callbacks may draw random numbers in their hooks at the start of training.
            _restore(self._resumed.random.get("now"), self._tracker.loops)
            self._resumed = None
        original()

    def _reset_quietly(self, original: Callable[[], None]) -> None:
        with quiet_about_position():
            original()

    def _resume_within_epoch(self, original: Callable[[Any], None], fetcher: Any) -> None:
        """Continue an epoch at its position in the data, and do what was left to do after the last batch."""
        resumed, self._resumed = self._resumed, None
        if self._tracker is None or resumed is None or resumed.batches is None:
            original(fetcher)
            return
        loops: Loops = self._tracker.loops
        trainer: Any = loops.trainer
        epoch_start, first_batch = resumed.random.get("epoch_start"), resumed.random.get("first_batch")
        if not loops.last_batch_reached and not data_position.is_stateful(loops.loaders[0]):
            data_position.move_to(
                fetcher,
                resumed.batches,
                at_epoch_start=(lambda: _restore(epoch_start, loops)) if trainer.current_epoch else None,
                at_first_batch=lambda: _restore(first_batch, loops),
            )
        loops.continue_epoch()
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
            # GradientAccumulationScheduler sets the window when an epoch starts.
            trainer.accumulate_grad_batches = resumed.window
        original(fetcher)
        restore_logged(loops.results, resumed.logged, trainer.lightning_module, trainer.strategy.reduce)
        restore_gradients(trainer.lightning_module, resumed.gradients)
        if first_batch is not None:
            # If there is none, the run was interrupted while it opened its data, which has just been repeated.
            _restore(resumed.random.get("now"), loops)
        self._tracker.go_on(epoch_start, first_batch, resumed.gradients)
        if resumed.pending in ("batch_end", "schedulers"):
            loops.end_batch(fetcher, validated=resumed.pending == "schedulers")


@dataclass
class _Resumed:
    """The state read from a checkpoint, for this process."""

    epochs: int
    batches: int | None
    pending: str
    reloaded: int
    window: int
    random: dict[str, RandomState] = field(default_factory=dict)
    logged: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, state: dict[str, Any], rank_state: dict[str, Any] | None) -> _Resumed:
        common = {name: state[name] for name in ("epochs", "batches", "pending", "reloaded", "window")}
        if rank_state is None:
            return cls(**common)
        random = {name: RandomState.from_plain(data) for name, data in rank_state["random"].items()}
        return cls(**common, random=random, **{name: rank_state[name] for name in ("logged", "metrics", "gradients")})


def _rank_state(pl_module: L.LightningModule, tracker: Tracker, place: Place, *, alone: bool) -> dict[str, Any]:
    """The part of the state that differs between the processes."""
    random = {
        "started": tracker.started,
        "epoch_start": tracker.epoch_start,
        "first_batch": tracker.first_batch,
        "now": place.moment.random,
    }
    # Reading the Trainer's metrics may reduce them over all processes.
    metrics = tracker.loops.local_metrics if alone else tracker.loops.trainer.callback_metrics
    gradients = place.gradients
    return {
        "machine": machine(tracker.loops.trainer.strategy.root_device),
        "random": {name: state.plain() for name, state in random.items() if state is not None},
        "logged": plain_logged(place.moment.logged) if place.batches else [],
        "metrics": {name: torch.as_tensor(value).detach().cpu().clone() for name, value in metrics.items()},
        "gradients": waiting_gradients(pl_module, tracker.stepped) if gradients is None else gradients,
    }


def _restore(state: RandomState | None, loops: Loops) -> None:
    if state is not None:
        state.restore(loops.trainer.strategy.root_device, generators(loops))


def _gathered(state: dict[str, Any], *, alone: bool) -> list[Any]:
    """The states of all processes, in the process that writes the checkpoint."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [state]
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    ranks: list[Any] = [None] * size
    if alone:
        ranks[rank] = state
    else:
        torch.distributed.gather_object(state, ranks if rank == 0 else None, dst=0)
    return ranks


def _warn(reason: str) -> None:
    rank_zero_warn(
        f"The run cannot be resumed exactly from this checkpoint: {reason}. It continues with the checkpoint's "
        "weights, optimizer state and schedule.",
        category=InexactResumeWarning,
    )
