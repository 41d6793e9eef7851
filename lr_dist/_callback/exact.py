"""Stop anywhere, resume, and end bit for bit where the unbroken run ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from lr_dist._callback import data_position, logged
from lr_dist._callback.gradients import restore_gradients, waiting_gradients
from lr_dist._callback.loops import Loops, quiet_about_position, rewrite_progress
from lr_dist._callback.random_state import RandomState, loader_generators
from lr_dist.errors import InexactResumeWarning


@dataclass(frozen=True)
class Moment:
    """What passes from one batch to the next: random numbers, and what was logged in this epoch so far."""

    random: RandomState
    logged: logged.Snapshot


@dataclass(frozen=True)
class Place:
    """A point of the run from which it can go on.

    Attributes:
        epochs: epochs that are done.
        batches: batches of the running epoch that are done, None between two epochs.
        moment: what was there at that point.
        pending: what the loops have yet to do before the next batch or epoch: "nothing", "batch_end" (validation and
            schedulers that watch a metric), "schedulers" (the latter only), "epoch_end" (schedulers that watch a
            metric of the epoch).
        gradients: those that wait for the rest of their window, if they are not the parameters' present ones.
        interrupted: whether a batch was under way; other processes may be elsewhere.
        doubts: why the run cannot go on exactly, if it cannot.
    """

    epochs: int
    batches: int | None
    moment: Moment
    pending: str = "nothing"
    gradients: dict[str, torch.Tensor] | None = None
    interrupted: bool = False
    doubts: tuple[str, ...] = ()


@dataclass
class Resumed:
    """What was read from a checkpoint, for this process."""

    epochs: int
    batches: int | None
    pending: str
    reloaded: int
    window: int
    random: dict[str, RandomState] = field(default_factory=dict)
    logged: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)


class ExactResume:
    """Saves what Lightning leaves out of a checkpoint, and brings it back when a run is resumed.

    That is: random states of every process; gradients within an accumulation window; the position in the data; what
    the training step logged for the epoch's averages, and the metrics that callbacks and schedulers watch; and what
    follows the hook in which the checkpoint was written (validation, a step of ReduceLROnPlateau).

    An unbroken run is left alone: nothing here draws a random number or changes what Lightning does. While a fit runs,
    methods of its loops are wrapped, because no hook is called at the moments that matter: just before the data
    loader's iterator is made, and just before a batch is read.
    """

    KEY = "exact_resume"

    def __init__(self) -> None:
        self._loops: Loops | None = None
        self._resumed: Resumed | None = None
        # The random states from which the loaders, this epoch's iterator and its first batch were made.
        self._started: RandomState | None = None
        self._epoch_start: RandomState | None = None
        self._first_batch: RandomState | None = None
        # The last moment between two batches, and the last one at which no gradient waited.
        self._boundary: Moment | None = None
        self._window: tuple[int, Moment, dict[str, torch.Tensor]] | None = None
        self._phase = "start"  # then: opening, batches, batch, batch_end, and epoch_end or again batches
        self._validated = self._forced = self._alone = self._open = False
        self._stepped: set[int] = set()

    # Hooks of the callback -------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer) -> None:
        """Keep the random state from which data loaders and the first epoch's iterator are made, or bring it back."""
        self._started = _random(trainer)
        self._restore_start(trainer)

    def load(self, trainer: L.Trainer, checkpoint: dict[str, Any], state: dict[str, Any] | None) -> None:
        """Take over this process's part of a checkpoint; Lightning's counters in it are changed."""
        # A finder of Lightning saves and loads within a run that goes on.
        if state is None or self._loops is not None:
            return
        ranks = state["ranks"]
        doubts = list(state["doubts"])
        if len(ranks) != trainer.world_size:
            doubts.append(f"it was written by {len(ranks)} processes, and this run has {trainer.world_size}")
        elif ranks[trainer.global_rank] is None:
            doubts.append("it was written by one process while an exception went up, without the others' random states")
        if doubts:
            rank_zero_warn(
                f"The run cannot be resumed exactly from this checkpoint: {'; '.join(doubts)}. It goes on from the "
                "same weights, optimizer state and schedule.",
                category=InexactResumeWarning,
            )
        own = (ranks[trainer.global_rank] if len(ranks) == trainer.world_size else None) or {}
        self._resumed = Resumed(
            **{name: state[name] for name in ("epochs", "batches", "pending", "reloaded", "window")},
            **{name: own[name] for name in ("logged", "metrics", "gradients") if own},
            random={name: RandomState.from_plain(data) for name, data in own.get("random", {}).items()},
        )
        rewrite_progress(checkpoint["loops"], state["epochs"], state["batches"], stateful=state["stateful"])
        if self._started is not None:
            # Some strategies load after `on_fit_start`.
            self._restore_start(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to the loops, and resume where no epoch was running."""
        loops = Loops(trainer)
        if loops.missing:
            rank_zero_warn(
                f"Lightning {L.__version__} lacks {', '.join(loops.missing)}, so a run that is stopped and resumed "
                "will not end exactly where the unbroken run ends. Use a version that lr-dist was tested with, or "
                "silence this with exact_resume=False.",
                category=InexactResumeWarning,
            )
            return
        self._loops = loops
        loops.wrap(loops.fit, "on_advance_start", self._begin_epoch)
        loops.wrap(loops.fit, "on_advance_end", self._end_epoch)
        loops.wrap(loops.epoch, "reset", self._reset)
        loops.wrap(loops.epoch, "on_run_start", self._open_data)
        loops.wrap(loops.epoch, "advance", self._run_batch)
        loops.wrap(loops.epoch, "on_advance_end", self._end_batch)
        if self._resumed is not None:
            loops.fit._last_train_dl_reload_epoch = self._resumed.reloaded
            self._end_epoch_before(self._resumed, loops)
            if self._resumed.batches is None:
                loops.begin_epoch()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """The gradients of this optimizer's parameters are used up."""
        self._stepped.update(id(p) for group in optimizer.param_groups for p in group["params"])

    def on_validation_end(self) -> None:
        """What is saved from now on need not be validated again."""
        self._validated = True

    def on_exception(self) -> None:
        """Another process may not have been interrupted; waiting for it would keep this one from saving."""
        self._alone = True

    def close(self) -> None:
        """Give Lightning's loops their methods back."""
        if self._loops is not None:
            self._loops.unwrap()

    def teardown(self, trainer: L.Trainer) -> None:
        """End as the unbroken run does, if the checkpoint was of its last epoch's end; then no training started."""
        self.close()
        loops = Loops(trainer)
        if self._resumed is not None and not loops.missing:
            self._loops = loops
            self._end_epoch_before(self._resumed, loops)
            self._restore(self._resumed.random.get("now"))
            self._resumed = None

    def state(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any] | None:
        """What a checkpoint needs, as plain data and tensors; the same call in every process.

        None before the training has begun.
        """
        if self._loops is None:
            return None
        place = self._place(trainer)
        alone = self._alone or place.interrupted
        return {
            "epochs": place.epochs,
            "batches": place.batches,
            "pending": place.pending,
            "doubts": list(place.doubts),
            "reloaded": self._loops.fit._last_train_dl_reload_epoch,
            "window": trainer.accumulate_grad_batches,
            "stateful": data_position.is_stateful(self._loops.loaders[0]),
            "ranks": _gathered(self._rank_state(pl_module, place, alone=alone), alone=alone),
        }

    # While saving ----------------------------------------------------------------------------------------

    def _rank_state(self, pl_module: L.LightningModule, place: Place, *, alone: bool) -> dict[str, Any]:
        assert self._loops is not None
        logger = self._loops.logged
        # Asking the Trainer for its metrics may reduce them over all processes.
        metrics = logger._callback_metrics if alone else self._loops.trainer.callback_metrics
        random = {
            "started": self._started,
            "epoch_start": self._epoch_start,
            "first_batch": self._first_batch,
            "now": place.moment.random,
        }
        gradients = place.gradients
        return {
            "random": {name: state.plain() for name, state in random.items() if state is not None},
            "logged": logged.plain(place.moment.logged) if place.batches else [],
            "metrics": {name: torch.as_tensor(value).detach().cpu().clone() for name, value in metrics.items()},
            "gradients": waiting_gradients(pl_module, self._stepped) if gradients is None else gradients,
        }

    def _place(self, trainer: L.Trainer) -> Place:
        """Where the run is; Lightning's counters move on at each of its hooks."""
        assert self._loops is not None
        epochs, batches = self._loops.epochs, self._loops.batches
        now = self._now()
        last = self._boundary or now
        if epochs.processed < epochs.started:
            done = epochs.processed
            if batches.processed < batches.ready:
                return self._interrupted(trainer, Place(done, batches.completed, last))
            if batches.completed < batches.ready:
                return Place(done, batches.ready, now, "batch_end")
            if self._phase != "batch_end":
                return Place(done, batches.ready, last)
            if trainer.validating and not self._validated:
                return Place(done, batches.ready, last, "batch_end")
            return Place(done, batches.ready, last if self._forced else now, "schedulers")
        if epochs.started < epochs.ready:
            return Place(epochs.completed, None, last)
        if self._loops.cut_short:
            # As if the Trainer had not been told to stop: the epoch goes on.
            return Place(epochs.processed - 1, batches.ready, last)
        if epochs.completed < epochs.processed:
            return Place(epochs.processed, None, now, "epoch_end")
        return Place(epochs.completed, None, last if self._phase == "epoch_end" else now)

    def _interrupted(self, trainer: L.Trainer, place: Place) -> Place:
        """Within a batch: it is done again, and with it the earlier ones of its accumulation window."""
        assert self._loops is not None
        batches, moment, gradients, doubts = place.batches, place.moment, dict[str, torch.Tensor](), []
        if self._stepped:
            doubts.append("it was written while the optimizer took a step")
        if data_position.is_stateful(self._loops.loaders[0]):
            doubts.append("it was written within a batch, which the data loader's own state counts as used")
        if trainer.lightning_module.automatic_optimization:
            if self._window is not None:
                batches, moment, gradients = self._window
        elif self._open:
            doubts.append("it was written within a batch, before an optimizer had used the gradients of earlier ones")
        return Place(
            place.epochs, batches, moment, gradients=gradients, interrupted=True, doubts=tuple(doubts)
        )

    def _now(self) -> Moment:
        assert self._loops is not None
        return Moment(_random(self._loops.trainer, self._loops), logged.snapshot(self._loops.epoch._results))

    # Around the loops' methods ---------------------------------------------------------------------------

    def _begin_epoch(self, original: Callable[[], None]) -> None:
        assert self._loops is not None
        if self._resumed is not None and self._resumed.batches is None:
            # Not earlier: other hooks may draw numbers when the training starts.
            self._restore(self._resumed.random.get("now"))
            self._resumed = None
        self._boundary = self._now()
        if self._loops.fit._should_reload_train_dl:
            self._started = self._boundary.random
        original()

    def _reset(self, original: Callable[[], None]) -> None:
        with quiet_about_position():
            original()

    def _open_data(self, original: Callable[[Any], None], fetcher: Any) -> None:
        assert self._loops is not None
        if self._resumed is not None:
            resumed, self._resumed = self._resumed, None
            self._continue_epoch(resumed, original, fetcher)
            return
        self._phase, self._boundary, self._first_batch = "opening", self._now(), None
        # The iterator of the first epoch was made before the training began.
        self._epoch_start = self._boundary.random if self._loops.trainer.current_epoch else None
        original(fetcher)
        self._phase, self._boundary = "batches", self._now()
        self._first_batch = self._boundary.random

    def _run_batch(self, original: Callable[[Any], None], fetcher: Any) -> None:
        assert self._loops is not None
        self._phase, self._boundary = "batch", self._now()
        done = self._loops.batches.ready
        if done % self._loops.trainer.accumulate_grad_batches == 0:
            self._window = done, self._boundary, {}
        self._open = bool(done) and not self._stepped
        self._stepped.clear()
        original(fetcher)

    def _end_batch(self, original: Callable[[Any], None], fetcher: Any) -> None:
        assert self._loops is not None
        due = self._loops.validation_due(fetcher)
        # A Trainer that was told to stop validates once more; the run that is not stopped does not.
        self._forced = self._loops.trainer.should_stop and not due
        self._phase, self._validated = "batch_end", False
        if due or self._forced:
            self._boundary = self._now()
        try:
            original(fetcher)
        except SIGTERMException:
            # Raised when all is done.
            self._after_batch()
            raise
        self._after_batch()

    def _after_batch(self) -> None:
        self._phase = "batches"
        if not self._forced:
            self._boundary = self._now()

    def _end_epoch(self, original: Callable[[], None]) -> None:
        assert self._loops is not None
        cut_short = self._loops.cut_short
        original()
        if not cut_short:
            self._phase, self._boundary = "epoch_end", self._now()

    # While resuming --------------------------------------------------------------------------------------

    def _restore_start(self, trainer: L.Trainer) -> None:
        if self._resumed is not None and (started := self._resumed.random.get("started")) is not None:
            self._started = started
            started.restore(trainer.strategy.root_device)

    def _end_epoch_before(self, resumed: Resumed, loops: Loops) -> None:
        """Bring the metrics back, and let the schedulers see them whose turn it was when the checkpoint was written."""
        device = loops.trainer.strategy.root_device
        loops.trainer.callback_metrics.update({name: value.to(device) for name, value in resumed.metrics.items()})
        if resumed.pending == "epoch_end":
            loops.step_epoch_plateaus()

    def _continue_epoch(self, resumed: Resumed, original: Callable[[Any], None], fetcher: Any) -> None:
        """Begin within an epoch: with the data where it was, and with what was left to do after the last batch."""
        assert self._loops is not None and resumed.batches is not None
        loops, trainer, random = self._loops, self._loops.trainer, resumed.random
        module = trainer.lightning_module
        self._epoch_start, self._first_batch = random.get("epoch_start"), random.get("first_batch")
        if not loops.last_batch_reached and not data_position.is_stateful(loops.loaders[0]):
            data_position.move_to(
                fetcher,
                resumed.batches,
                at_epoch_start=(lambda: self._restore(self._epoch_start)) if trainer.current_epoch else None,
                at_first_batch=lambda: self._restore(self._first_batch),
            )
        loops.continue_epoch()
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
            # It sets the window when an epoch starts.
            trainer.accumulate_grad_batches = resumed.window
        original(fetcher)
        logged.restore(loops.epoch._results, resumed.logged, module, trainer.strategy.reduce)
        restore_gradients(module, resumed.gradients)
        if self._first_batch is not None:
            # Else it was interrupted while the data was opened, which has just been done again.
            self._restore(random.get("now"))
        self._phase, self._boundary = "batches", self._now()
        self._window = resumed.batches, self._boundary, resumed.gradients
        if resumed.pending in ("batch_end", "schedulers"):
            loops.end_batch(fetcher, validated=resumed.pending == "schedulers")

    def _restore(self, state: RandomState | None) -> None:
        assert self._loops is not None
        if state is not None:
            trainer = self._loops.trainer
            state.restore(trainer.strategy.root_device, _generators(self._loops))


def _random(trainer: L.Trainer, loops: Loops | None = None) -> RandomState:
    return RandomState.now(trainer.strategy.root_device, _generators(loops) if loops is not None else ())


def _generators(loops: Loops) -> list[torch.Generator]:
    train, validation = loops.loaders
    return loader_generators([*train, *validation])


def _gathered(own: dict[str, Any], *, alone: bool) -> list[Any]:
    """`own` of every process, in the one that writes the checkpoint."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [own]
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    ranks: list[Any] = [None] * size
    if alone:
        ranks[rank] = own
    else:
        torch.distributed.gather_object(own, ranks if rank == 0 else None, dst=0)
    return ranks
