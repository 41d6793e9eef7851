"""`ForgettingMonitorCallback`: the monitor for the Trainers of transformers and their subclasses."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lr_dist.extras import require_libraries

require_libraries("huggingface", "transformers", "accelerate")

from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from lr_dist.errors import ConfigurationError, InexactResumeWarning, UnsupportedStrategyError
from lr_dist.monitor.base import Monitor
from lr_dist.monitor.files import read_state, save_state
from lr_dist.monitor.host import Host
from lr_dist.monitor.measurement import Measurement

logger = logging.get_logger(__name__)

# In every checkpoint folder, beside the Trainer's own files.
FILE = "forgetting_monitor.safetensors"


class ForgettingMonitorCallback(TrainerCallback, Monitor):
    """Scores old tasks while a `transformers.Trainer` learns a new one; see `ForgettingMonitor` for all that it does.

        monitor = ForgettingMonitorCallback({"sst2": old_loader}, metric=MulticlassAccuracy(2), keep="old >= 0.98")
        trainer = Trainer(model=model, args=args, train_dataset=data)
        monitor.attach(trainer)

    `attach` adds it to the Trainer, and logs through it (`report_to`). In `callbacks=[monitor]` it works too, and logs
    to `trainer.state.log_history` only, because the Trainer gives its callbacks no way to log.

    `monitor`, and the metrics in rules, are those of the Trainer's evaluation (`eval_accuracy`); a measurement is
    judged with the evaluation of the same step. Each checkpoint folder gets a file with the scores so far, the start
    weights and the best weights. A run that is resumed from `output_dir/checkpoint-STEP` continues them.

    Args:
        old: name -> DataLoader of an old task, or names of `lr_dist.tasks`.
        score: (model, batch) -> (outputs, targets); without it the model's `logits` and the batch's `labels`.
        metric: torchmetrics Metric, one for all tasks or name -> Metric.
        tokenizer: the model's, for tasks by name.
        max_length: of an input in tokens, for tasks by name.
        examples: how many dev examples of each task by name.
        every_n_steps: measure after so many steps of the optimizer.
        every_n_epochs: measure after so many epochs; 1 if neither is given.
        keep: which weights to keep: bounds, or a weighted sum to maximise.
        monitor: a metric of the evaluation, to choose by within the bounds; without it, the latest.
        mode: "max" or "min", of `monitor`.
        restore: whether the kept weights are put into the model when the training ends.
        stop_when: bounds that stop the training.
        patience: after how many measurements in a row within them.
        movement: whether to measure how far layers move; it costs a copy of the trained weights.
        overrides: regex -> group name for parameters that `assign_layers` cannot place.
        stacks: submodules that each have a depth of their own.

    Raises:
        UnsupportedStrategyError: FSDP, DeepSpeed, or another strategy that does not keep whole parameters.
        LRDistError: as `ForgettingMonitor`.
    """

    _trainer: Trainer | None = None
    _metrics: Mapping[str, Any] = MappingProxyType({})
    _fresh: frozenset[str] = frozenset()  # metrics since the last measurement

    def attach(self, trainer: Trainer) -> ForgettingMonitorCallback:
        """Add this callback to `trainer`, and log through it."""
        self._trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        return self

    # What the Trainer calls ------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the old tasks before the first step."""
        self._refuse_unsupported(args)
        model, host = kwargs["model"], _host(args)
        self._watch, self._metrics = self._options.watch(), {}
        self._interval.start(state.global_step)
        if self._watch.movement is not None:
            self._watch.movement.place(model)
        if state.global_step > 0:
            self._resume(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        row = self._watch.begin(model, host, state.global_step, round(state.epoch or 0))
        if row is not None:
            self._log(state, row)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Judge what was measured, before the weights change."""
        self._judge(args, control, kwargs["model"], final=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure every so many steps."""
        if self._interval.after_step(state.global_step):
            self._measure(args, state, control, kwargs["model"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notice layers that were unfrozen for this epoch."""
        self._watch.hold_new(kwargs["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure every so many epochs; the Trainer evaluates the same weights next."""
        if self._interval.after_epoch(round(state.epoch)):
            self._measure(args, state, control, kwargs["model"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The metrics of the new task are those of the weights that were measured."""
        metrics = kwargs.get("metrics") or {}
        self._metrics, self._fresh = {**self._metrics, **metrics}, self._fresh.union(metrics)
        # Several evaluation sets make a call each.
        if self._watch.measured(state.global_step) and self._fresh.issuperset(self._watch.trade_off.metrics):
            self._judge(args, control, kwargs["model"], final=True)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state into the checkpoint's folder."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            save_state(folder / FILE, self._watch.plain_state(), self._watch.weights_state())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where the training ends, and put the kept weights into the model."""
        model = kwargs["model"]
        # Otherwise the Trainer has exchanged the weights already.
        if not args.load_best_model_at_end:
            self._measure(args, state, control, model)
            self._judge(args, control, model, final=True)
        if self._watch.trade_off.metrics:
            self._watch.check_metrics(self._metrics.get, list(self._metrics))
        if self.restore and self._watch.restore(model):
            logger.info(f"ForgettingMonitorCallback: the model has the weights of step {self.best_step}.")

    # Helpers ---------------------------------------------------------------------------------------------

    def _measure(self, args: Any, state: Any, control: Any, model: Any) -> None:
        if self._watch.measured(state.global_step):
            return
        row = self._watch.measure(model, _host(args), state.global_step, round(state.epoch or 0))
        self._fresh = frozenset()
        self._log(state, row)
        self._judge(args, control, model)

    def _judge(self, args: Any, control: Any, model: Any, *, final: bool = False) -> None:
        """Judge the last measurement; one that needs metrics waits for the evaluation, unless it is `final`."""
        if self._watch.trade_off.metrics and not final:
            return
        self._watch.judge(model, _host(args), self._metrics.get)
        if self._watch.stopping and not control.should_training_stop:
            control.should_training_stop = True
            logger.warning(f"ForgettingMonitorCallback stops the training: {self._watch.why_stopping()}.")

    def _log(self, state: Any, row: Measurement) -> None:
        if self._trainer is not None:
            self._trainer.log(row.logged())
        else:
            state.log_history.append({**row.logged(), "epoch": state.epoch, "step": row.step})

    def _resume(self, folder: Path) -> None:
        found = read_state(folder / FILE)
        if found is None:
            warnings.warn(
                f"{folder} has no {FILE}, so `forgotten` and `moved` count from the step at which this run resumes. "
                "Resume from the folder in output_dir in which the run with the monitor saved its checkpoint.",
                InexactResumeWarning,
                stacklevel=2,
            )
        else:
            self._watch.load(*found)

    def _refuse_unsupported(self, args: Any) -> None:
        if args.deepspeed or args.fsdp:
            raise UnsupportedStrategyError(
                "ForgettingMonitorCallback needs whole parameters by their names, and was not tested under "
                f"{'DeepSpeed' if args.deepspeed else 'FSDP'} of transformers' Trainer. Use DDP, or Lightning's "
                "Trainer with ModelParallelStrategy (FSDP2) and ForgettingMonitor."
            )
        if args.load_best_model_at_end and self.restore and self._watch.trade_off.keep is not None:
            raise ConfigurationError(
                "load_best_model_at_end=True and keep=... each put weights into the model at the end. Leave one out, "
                "or give restore=False and take monitor.best_weights."
            )


def _host(args: Any) -> Host:
    distributed = args.world_size > 1
    return Host(args.device, args.world_size if distributed else 1, args.process_index if distributed else 0)
