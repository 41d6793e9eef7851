"""`RetentionMonitorCallback`: the monitor of retention for the Trainers of transformers and their subclasses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from lr_dist.extras import require_libraries

require_libraries("huggingface", "transformers", "accelerate")

from transformers import Trainer, TrainerCallback

from lr_dist.errors import InexactResumeWarning, UnsupportedStrategyError
from lr_dist.monitor.files import read_state, save_state
from lr_dist.monitor.host import Host
from lr_dist.retention.options import Monitor
from lr_dist.retention.watch import LayerChanges

# In every checkpoint folder, beside the Trainer's own files.
FILE = "retention_monitor.safetensors"


class RetentionMonitorCallback(TrainerCallback, Monitor):
    """Measures how each layer leaves its earlier state in a `transformers.Trainer`; see `RetentionMonitor`.

        monitor = RetentionMonitorCallback(sentences, tokenizer=tokenizer, every_n_steps=100)
        trainer = Trainer(model=model, args=args, train_dataset=data)
        monitor.attach(trainer)

    `attach` adds it to the Trainer, and logs through it (`report_to`). In `callbacks=[monitor]` it works too, and logs
    to `trainer.state.log_history` only. Each checkpoint folder gets a file with the measurements so far and what they
    compare with. A run that is resumed from `output_dir/checkpoint-STEP` continues them. Hidden states are computed in
    the precision of the weights, without autocast.

    Args:
        texts: plain texts (with `tokenizer`), or batches; without any, drift alone is measured.
        tokenizer: the model's, for plain texts.
        max_length: of a plain text in tokens.
        every_n_steps: measure after so many steps of the optimizer.
        every_n_epochs: measure after so many epochs; 1 if neither is given.
        reference: a model or state dict to compare with; by default the weights when the training begins.
        pool: `mean`, `first` or `tokens`.
        run: (model, batch) computes a batch of another form.
        overrides: regex -> group name for parameters that `assign_layers` cannot place.
        stacks: submodules that each have a depth of their own.

    Raises:
        UnsupportedStrategyError: FSDP or DeepSpeed.
        LRDistError: as `RetentionMonitor`.
    """

    _trainer: Trainer | None = None

    def attach(self, trainer: Trainer) -> RetentionMonitorCallback:
        """Add this callback to `trainer`, and log through it."""
        self._trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the reference, and measure before the first step."""
        if args.deepspeed or args.fsdp:
            raise UnsupportedStrategyError(
                "RetentionMonitorCallback needs whole parameters by their names, and was not tested under "
                f"{'DeepSpeed' if args.deepspeed else 'FSDP'} of transformers' Trainer. Use DDP, or Lightning's "
                "Trainer with ModelParallelStrategy (FSDP2) and RetentionMonitor."
            )
        model = kwargs["model"]
        self._watch = self._new_watch()
        self._interval.start(state.global_step)
        self._watch.place(model)
        if state.global_step > 0:
            self._resume(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        row = self._watch.begin(model, Host(args.device), state.global_step, round(state.epoch or 0))
        if row is not None:
            self._log(state, row)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure every so many steps."""
        if self._interval.after_step(state.global_step):
            self._measure(args, state, kwargs["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure every so many epochs."""
        if self._interval.after_epoch(round(state.epoch)):
            self._measure(args, state, kwargs["model"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state into the checkpoint's folder."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            save_state(folder / FILE, self._watch.plain_state(), self._watch.weights_state())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where the training ends, unless the Trainer has put other weights into the model already."""
        if not args.load_best_model_at_end:
            self._measure(args, state, kwargs["model"])

    def _measure(self, args: Any, state: Any, model: torch.nn.Module) -> None:
        if not self._watch.measured(state.global_step):
            row = self._watch.measure(model, Host(args.device), state.global_step, round(state.epoch or 0))
            self._log(state, row)

    def _log(self, state: Any, row: LayerChanges) -> None:
        if self._trainer is not None:
            self._trainer.log(row.logged())
        else:
            state.log_history.append({**row.logged(), "epoch": state.epoch, "step": row.step})

    def _resume(self, folder: Path) -> None:
        kept = read_state(folder / FILE)
        if kept is not None:
            self._watch.load(*kept)
        elif self._reference is None:
            warnings.warn(
                f"{folder} has no {FILE}, so `drift` and `cka` count from the step at which this run resumes. Resume "
                "from the folder in output_dir in which the run with the monitor saved its checkpoint.",
                InexactResumeWarning,
                stacklevel=2,
            )
