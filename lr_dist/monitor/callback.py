"""`ForgettingMonitor`: the Lightning callback that scores old tasks while a new one is learned."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import override

from lr_dist._callback.finder import resumes_a_fit
from lr_dist._callback.other_callbacks import check_trainer, check_whole_parameters
from lr_dist._lightning import (
    Callback,
    L,
    give_back,
    kept,
    rank_zero_info,
    rank_zero_warn,
)
from lr_dist.errors import ConfigurationError, InexactResumeWarning, shown
from lr_dist.monitor.base import Monitor
from lr_dist.monitor.host import Host
from lr_dist.monitor.measurement import Measurement


class ForgettingMonitor(Callback, Monitor):
    """Scores old tasks while a new one is learned, and keeps the weights of the best trade-off.

        monitor = ForgettingMonitor({"sst2": old_loader}, metric=MulticlassAccuracy(2), keep="old >= 0.98")
        trainer = L.Trainer(callbacks=[monitor])

    Before the first step, then every few steps or epochs, and at the end of the fit, it logs

    - `old/sst2`: the score of an old task;
    - `forgotten/sst2`: what it has lost since the fit began (negative if it has become better);
    - `moved/layers.3`, for every layer: |theta - theta_0| / |theta_0|, theta_0 its weights when the fit began.

    Loggers receive them at the number of steps taken; `old/` and `forgotten/` are metrics that ModelCheckpoint,
    EarlyStopping and ReduceLROnPlateau can watch, too. The training does not notice: random states, the mode of every
    submodule and the position of the training's loader are as without it, bit for bit. With several processes (DDP,
    FSDP2) the batches of an old task are divided among them, each example counts once, and all have the same score.
    Checkpoints hold the scores so far, the start weights and the best weights; a fit that is resumed continues them.

    Rules (`keep`, `stop_when`) read `old/TASK`, `forgotten/TASK`, `moved/LAYER`; `forgotten`: the largest loss of all
    tasks; `old`: the smallest share that a task has left of its score when the fit began, so that `old >= 0.98` allows
    a loss of 2 percent of it; and every metric that the module logs.

    Args:
        old: name -> DataLoader of an old task (or another iterable of batches); or names of `lr_dist.tasks`, whose
            dev examples are scored.
        score: (module, batch) -> (outputs, targets), one function for all tasks or name -> function. Without it the
            module's own forward gives the logits, and `labels` in the batch (or the second of a pair) are the targets.
        metric: torchmetrics Metric, one for all tasks or name -> Metric. A lower score is better if the metric says so
            (`higher_is_better=False`).
        tokenizer: the model's, for tasks by name.
        max_length: of an input in tokens, for tasks by name.
        examples: how many dev examples of each task by name.
        every_n_steps: measure after so many steps of the optimizer.
        every_n_epochs: measure after so many epochs; 1 if neither is given.
        keep: which weights to keep: bounds, 'old >= 0.98 and forgotten/qqp <= 0.01', or a weighted sum to maximise,
            '0.5*old + 0.5*val_acc'. Among the measurements within the bounds, `monitor` chooses.
        monitor: a metric of the new task, as in ModelCheckpoint; without it, the latest measurement is kept. It is read
            when the validation that follows the measurement is over.
        mode: "max" or "min", of `monitor`.
        restore: whether the kept weights are put into the model at the end of the fit. They are in `best_weights`
            anyhow, also after an interrupted fit, and those of the last step are in the Trainer's checkpoints.
        stop_when: bounds that stop the fit, such as 'forgotten > 0.05'.
        patience: after how many measurements in a row within them.
        movement: whether to measure how far layers move; it costs a copy of the trained weights.
        overrides: regex -> group name for parameters that `assign_layers` cannot place.
        stacks: submodules that each have a depth of their own.

    Raises:
        ConfigurationError: invalid options, an empty loader, or a metric to choose by that is never logged.
        ScoringError: when the fit starts, before any step: no labels, shapes that do not fit the metric, an undefined
            score. Later on: a score that has become undefined.
        DivergedError: the model's outputs have become NaN.
        UnsupportedStrategyError: FSDP1 or DeepSpeed.
        ResumeMismatchError: a checkpoint of other old tasks or rules.
        LRDistError: layers that cannot be found (see `assign_layers`).
    """

    _validated_step: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what Lightning lends a callback for its fit."""
        return kept(self)

    # The fit ---------------------------------------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        """Without the settings, so that a checkpoint of other settings is recognised."""
        return "lr_dist.forgetting_monitor"

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start anew for each fit.

        Raises:
            UnsupportedStrategyError: FSDP1 or DeepSpeed.
        """
        if stage != "fit":
            return
        check_trainer(trainer)
        check_whole_parameters(trainer, "ForgettingMonitor")
        self._watch = self._options.watch()

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the layers, before anything is scored."""
        if self._watch.movement is not None:
            self._watch.movement.place(pl_module)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the old tasks before the first step."""
        self._refuse_the_training_loader(trainer)
        self._interval.start(trainer.global_step)
        self._validated_step = None
        row = self._watch.begin(pl_module, _host(trainer), trainer.global_step, trainer.current_epoch)
        if row is not None:
            self._log(trainer, row)
        elif self._overdue(trainer):
            # The checkpoint was written at a step that is measured, before it was.
            self._measure(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Judge what was measured, before the weights change; notice layers that were unfrozen for this epoch."""
        self._judge(trainer, pl_module)
        if batch_idx == 0:
            self._watch.hold_new(pl_module)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure every so many steps."""
        if self._interval.after_step(trainer.global_step):
            row = self._measure(trainer, pl_module)
            if row is not None:
                self._as_metrics(pl_module, row, on_step=True)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The metrics of the new task are those of the weights that were measured."""
        if trainer.sanity_checking:
            return
        self._validated_step = trainer.global_step
        if self._watch.measured(trainer.global_step):
            self._judge(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure every so many epochs; validation is over by now."""
        if self._interval.after_epoch(trainer.current_epoch + 1):
            row = self._measure(trainer, pl_module, epoch=trainer.current_epoch + 1)
            if row is not None:
                self._as_metrics(pl_module, row, on_step=False)
        # Lightning calls the module's own hook after this one; without validation the metric may come from there.
        if self._validated_step == trainer.global_step:
            self._judge(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What the module logs at the end of an epoch is known only now."""
        self._judge(trainer, pl_module)
        if trainer.current_epoch > 0 and self._watch.trade_off.metrics:
            self._watch.check_metrics(trainer.callback_metrics.get, list(trainer.callback_metrics))

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure where the fit ends."""
        self._measure(trainer, pl_module)
        self._judge(trainer, pl_module)
        if self._watch.trade_off.metrics:
            self._watch.check_metrics(trainer.callback_metrics.get, list(trainer.callback_metrics))

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the kept weights into the model; all checkpoints of the fit have been written."""
        if self.restore and self._watch.restore(pl_module):
            rank_zero_info(
                f"ForgettingMonitor: the model has the weights of step {self.best_step} of {trainer.global_step} "
                f"(keep={self._watch.settings()['keep']!r})."
            )

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        give_back(self)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        give_back(self)

    # Checkpoints -----------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**self._watch.plain_state(), "weights": self._watch.weights_state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._watch.load(state_dict, state_dict["weights"])

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say that a checkpoint without the monitor does not tell the scores when its fit began.

        Raises:
            ResumeMismatchError: a checkpoint of other old tasks or rules.
        """
        if not resumes_a_fit(trainer):
            return
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is not None:
            self._watch.check_settings(state["settings"])
        else:
            rank_zero_warn(
                "The checkpoint was written without ForgettingMonitor, so `forgotten` and `moved` count from the step "
                "at which this run resumes.",
                category=InexactResumeWarning,
            )

    # Helpers ---------------------------------------------------------------------------------------------

    def _overdue(self, trainer: L.Trainer) -> bool:
        """Whether the measurement of the step or the epoch that was the last is missing."""
        last = self._watch.history[-1]
        return self._interval.missed(
            trainer.global_step, trainer.current_epoch, last_step=last.step, last_epoch=last.epoch
        )

    def _measure(
        self, trainer: L.Trainer, pl_module: L.LightningModule, epoch: int | None = None
    ) -> Measurement | None:
        """Measure, unless this step has been."""
        if self._watch.measured(trainer.global_step):
            return None
        epoch = trainer.current_epoch if epoch is None else epoch
        row = self._watch.measure(pl_module, _host(trainer), trainer.global_step, epoch)
        self._log(trainer, row)
        self._judge_unless_waiting(trainer, pl_module)
        return row

    def _judge_unless_waiting(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._watch.waits_for_metrics():
            self._judge(trainer, pl_module)

    def _judge(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._watch.judge(pl_module, _host(trainer), trainer.callback_metrics.get)
        if self._watch.stopping and not trainer.should_stop:
            trainer.should_stop = True
            rank_zero_info(
                f"ForgettingMonitor stops the fit at step {trainer.global_step}: {self._watch.why_stopping()}."
            )

    def _log(self, trainer: L.Trainer, row: Measurement) -> None:
        """To the loggers, at the number of steps that were taken."""
        for logger in trainer.loggers:
            logger.log_metrics(row.logged(), step=row.step)

    def _as_metrics(self, pl_module: L.LightningModule, row: Measurement, *, on_step: bool) -> None:
        """For callbacks and schedulers that watch a metric; the loggers have it already."""
        values = {name: value for name, value in row.logged().items() if not name.startswith("moved/")}
        pl_module.log_dict(values, logger=False, on_step=on_step, on_epoch=not on_step, batch_size=1)

    def _refuse_the_training_loader(self, trainer: L.Trainer) -> None:
        for task in self._options.tasks:
            if task.loader is trainer.train_dataloader:
                raise ConfigurationError(
                    f"The loader of the old task {shown(task.name)} is the training's own, whose position would be "
                    "lost. Make another DataLoader of the same data set."
                )


def _host(trainer: L.Trainer) -> Host:
    strategy: Any = trainer.strategy
    sampler = getattr(strategy, "distributed_sampler_kwargs", None) or {}
    # Under tensor parallelism the processes of a group see the same batch; then each scores all.
    divides = trainer.world_size > 1 and sampler.get("num_replicas") == trainer.world_size
    return Host(
        device=torch.device(strategy.root_device),
        replicas=trainer.world_size if divides else 1,
        rank=sampler["rank"] if divides else 0,
        precision=strategy.precision_plugin.forward_context,
        share=strategy.broadcast,
    )
