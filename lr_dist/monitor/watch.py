"""What the monitor does, whichever Trainer it runs in: measure, judge, keep the best, save and load."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lr_dist.errors import ConfigurationError, NothingKeptWarning, ResumeMismatchError
from lr_dist.monitor.host import Host
from lr_dist.monitor.measurement import Measurement
from lr_dist.monitor.movement import Movement
from lr_dist.monitor.old_tasks import OldTask
from lr_dist.monitor.scores import check_tasks, score_tasks
from lr_dist.monitor.snapshot import Snapshot
from lr_dist.monitor.trade_off import TradeOff, read_metrics, values_of
from lr_dist.monitor.undisturbed import reshard


@dataclass(frozen=True)
class Best:
    """The measurement whose weights are kept.

    Attributes:
        step: its step.
        worth: what it was chosen by; see `TradeOff.worth`.
    """

    step: int
    worth: float


class Watch:
    """One fit under observation.

    Args:
        tasks: the old tasks.
        trade_off: what is kept, and what stops the fit.
        movement: measures the layers' movement; None leaves it out.
    """

    def __init__(self, tasks: tuple[OldTask, ...], trade_off: TradeOff, movement: Movement | None) -> None:
        self.tasks = tasks
        self.trade_off = trade_off
        self.movement = movement
        self.history: list[Measurement] = []
        self.start_step = 0
        self.best: Best | None = None
        self.stopping = False
        self._kept: Snapshot | None = None
        self._in_a_row = 0
        self._pending = False
        self._judged = False

    # Measuring -------------------------------------------------------------------------------------------

    def begin(self, module: nn.Module, host: Host, step: int, epoch: int) -> Measurement | None:
        """Score the old tasks before the first step; None in a fit that is resumed, which has done so.

        Raises:
            LRDistError: a task that cannot be scored, or layers that cannot be found.
        """
        check_tasks(module, self.tasks, host)
        reshard(module)
        if self.movement is not None:
            self.movement.hold(module)
        if self._kept is not None:
            self._kept.adopt(module)
        if self.history:
            return None
        self.start_step = step
        row = self.measure(module, host, step, epoch)
        # The start is within every bound, and has learned nothing: it is no candidate.
        self._pending = False
        return row

    def hold_new(self, module: nn.Module) -> None:
        """Copy the weights of layers that have just been made trainable."""
        if self.movement is not None:
            reshard(module)
            self.movement.hold(module)

    def measured(self, step: int) -> bool:
        """Whether there is a measurement of this step."""
        return bool(self.history) and self.history[-1].step >= step

    def measure(self, module: nn.Module, host: Host, step: int, epoch: int) -> Measurement:
        """Score the old tasks and measure the movement. Every process has to call it.

        Raises:
            DivergedError, ScoringError: see `score_tasks`.
        """
        began = time.perf_counter()
        old = score_tasks(module, self.tasks, host, step)
        moved = {} if self.movement is None else self.movement.by_layer(module)
        start = self.start_scores or old
        forgotten = {task.name: task.sign * (start[task.name] - old[task.name]) for task in self.tasks}
        row = Measurement(step, epoch, old, forgotten, moved, time.perf_counter() - began)
        self.history.append(row)
        self._pending = True
        return row

    @property
    def start_scores(self) -> dict[str, float]:
        """Task -> its score when the fit began."""
        return dict(self.history[0].old) if self.history else {}

    # Judging ---------------------------------------------------------------------------------------------

    def judge(self, module: nn.Module, host: Host, lookup: Callable[[str], Any]) -> None:
        """Keep the weights if the last measurement is the best so far, and find out whether to stop.

        Called before the weights change again; it does nothing if that measurement was judged. A measurement that
        needs a metric which is not logged yet is no candidate.

        Args:
            module: with the weights that were measured.
            host: of the Trainer.
            lookup: name -> metric of the new task, or None.

        Raises:
            ScoringError: see `values_of`.
        """
        if not self._pending:
            return
        self._pending = False
        needed = self.trade_off.metrics
        # A metric that each process has for itself may differ between them, and all have to decide alike.
        metrics = host.share(read_metrics(needed, lookup)) if needed else {}
        if metrics is None:
            return
        self._judged = True
        self.history[-1] = replace(self.history[-1], new=metrics)
        rules = [rule for rule in (self.trade_off.keep, self.trade_off.stop_when) if rule is not None]
        names = [name for rule in rules for name in rule.names]
        values = {**values_of(self.history[-1], self.start_scores, names), **metrics}
        worth = self.trade_off.worth(values, self.best.worth if self.best else None)
        if worth is not None:
            reshard(module)
            self.best = Best(self.history[-1].step, worth)
            self._kept = Snapshot.of(module)
        self._in_a_row = self._in_a_row + 1 if self.trade_off.stops(values) else 0
        self.stopping = self._in_a_row >= self.trade_off.patience

    def why_stopping(self) -> str:
        """What stops the fit, with the scores."""
        rule, row = self.trade_off.stop_when, self.history[-1]
        scores = ", ".join(
            f"{name} {value:.4g}" for name, value in row.logged().items() if not name.startswith("moved")
        )
        times = f" in {self._in_a_row} measurements in a row" if self.trade_off.patience > 1 else ""
        return f"{rule.text if rule else ''}{times} ({scores})"

    def waits_for_metrics(self) -> bool:
        """Whether the judgement of the last measurement needs metrics that others log."""
        return self._pending and bool(self.trade_off.metrics)

    def check_metrics(self, lookup: Callable[[str], Any], known: list[str]) -> None:
        """Refuse to go on with a rule that can never be judged.

        Raises:
            ConfigurationError: a metric that nobody has logged in a whole epoch.
        """
        if self._judged:
            return
        missing = [name for name in self.trade_off.metrics if lookup(name) is None]
        if missing:
            raise ConfigurationError(
                f"keep, monitor or stop_when reads {', '.join(missing)}, which was not logged in the first epoch. "
                f"Logged are: {', '.join(known) or 'no metrics'}. Of the monitor itself: old, old/TASK, forgotten, "
                "forgotten/TASK."
            )

    # The end ---------------------------------------------------------------------------------------------

    def restore(self, module: nn.Module) -> bool:
        """Put the kept weights back, if they are not those that the model has.

        Returns:
            whether the weights were changed.
        """
        if self.trade_off.keep is None:
            return False
        if self.best is None or self._kept is None:
            warnings.warn(
                f"No measurement fulfilled keep={self.trade_off.keep.text!r}, so the weights are those of the last "
                "step. Measure more often (every_n_steps), lower the rates, or loosen the bound.",
                NothingKeptWarning,
                stacklevel=2,
            )
            return False
        if self.history and self.best.step == self.history[-1].step:
            return False
        reshard(module)
        self._kept.restore(module)
        return True

    def best_weights(self) -> dict[str, Tensor] | None:
        """Whole tensors on the CPU by name; under FSDP2 every process has to call it."""
        return None if self._kept is None else self._kept.state_dict()

    # Checkpoints -----------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What a checkpoint has to agree with."""
        return {
            "tasks": [task.name for task in self.tasks],
            "movement": self.movement is not None,
            **self.trade_off.settings(),
        }

    def plain_state(self) -> dict[str, Any]:
        """All but the weights, as plain data."""
        return {
            "settings": self.settings(),
            "history": [row.to_dict() for row in self.history],
            "start_step": self.start_step,
            "best": None if self.best is None else {"step": self.best.step, "worth": self.best.worth},
            "in_a_row": self._in_a_row,
            "pending": self._pending,
            "judged": self._judged,
        }

    def weights_state(self) -> dict[str, dict[str, Tensor]]:
        """The weights at the start and the best ones. Under FSDP2 every process has to call it."""
        start = {} if self.movement is None else self.movement.state_dict()
        return {"start": start, "kept": self.best_weights() or {}}

    def load(self, plain: dict[str, Any], weights: dict[str, dict[str, Tensor]]) -> None:
        """Continue a fit.

        Raises:
            ResumeMismatchError: the state was written with other settings.
        """
        self.check_settings(plain["settings"])
        self.history = [Measurement.from_dict(row) for row in plain["history"]]
        self.start_step = plain["start_step"]
        self.best = None if plain["best"] is None else Best(**plain["best"])
        self._in_a_row, self._pending, self._judged = plain["in_a_row"], plain["pending"], plain["judged"]
        if self.movement is not None:
            self.movement.load_state_dict(weights["start"])
        self._kept = Snapshot.from_state_dict(weights["kept"]) if weights["kept"] else None

    def check_settings(self, written: dict[str, Any]) -> None:
        """Refuse a checkpoint of other settings.

        Raises:
            ResumeMismatchError: see above.
        """
        if written != self.settings():
            raise ResumeMismatchError(
                f"The checkpoint was written with a ForgettingMonitor of {written}, and this one has "
                f"{self.settings()}, so its scores would not continue those. Use the same settings, or start a new run "
                "from the checkpoint's weights alone."
            )
