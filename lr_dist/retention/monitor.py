"""`RetentionMonitor`: the Lightning callback that measures how each layer leaves its earlier state."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import override

from lr_dist._callback.finder import resumes_a_fit
from lr_dist._callback.other_callbacks import check_trainer, check_whole_parameters
from lr_dist._lightning import Callback, L, give_back, kept, rank_zero_warn
from lr_dist.errors import ConfigurationError, InexactResumeWarning
from lr_dist.monitor.host import Host
from lr_dist.retention.options import Monitor
from lr_dist.retention.watch import LayerChanges


class RetentionMonitor(Callback, Monitor):
    """Measures, layer by layer, how far the model has left the weights from which it started.

        monitor = RetentionMonitor(sentences, tokenizer=tokenizer, every_n_steps=100)
        trainer = L.Trainer(callbacks=[LayerwiseLR("decay:lr=4e-4,factor=0.7"), monitor])

    Before the first step, then every few steps or epochs, and at the end of the fit, it logs

    - `drift/layers.3`: |theta - theta_0| / |theta_0| over all parameters of the layer (see `drift`);
    - `cka/layers.3`: unbiased linear CKA between the layer's hidden states with theta_0 and now, for the given texts:
      1 if what it computes is only rotated, shifted and scaled, 0 if nothing of it is left (see `LinearCKA`).

    Drift says how far the weights went, CKA whether it mattered for what the layer computes. The loggers receive them
    at the number of steps taken; `history` holds them, too. The training does not notice: random states, the mode of
    every submodule and the gradients are as without it, bit for bit. Under DDP and FSDP2 every process reads all texts,
    and all have the same numbers. Checkpoints hold the start weights and the hidden states to compare with (of a given
    reference only its fingerprint), and a fit that is resumed continues the history.

    Memory: a copy of the weights, and of the hidden states one row a text (or token). Time: one pass over the texts.

    Args:
        texts: a list of plain texts (with `tokenizer`), or a DataLoader or list of batches: mappings with the model's
            keywords, pairs (inputs, targets), or tensors. At least 4 texts; 100 to 500 are a good number. Without any,
            drift alone is measured.
        tokenizer: the model's, for plain texts.
        max_length: of a plain text in tokens.
        every_n_steps: measure after so many steps of the optimizer.
        every_n_epochs: measure after so many epochs; 1 if neither is given.
        reference: theta_0: a model of the same architecture or its state dict; by default the weights when the fit
            starts. The names may lack what stands before them in the module, such as `model.`.
        pool: a row of the hidden states is the `mean` of a text's tokens, its `first` token, or each of its `tokens`.
        run: (module, batch) computes a batch of another form; what it returns is not used.
        overrides: regex -> group name for parameters that `assign_layers` cannot place.
        stacks: submodules that each have a depth of their own.

    Raises:
        ConfigurationError: invalid options, no or too few texts, or batches of unknown form; before any step.
        ModelMismatchError: when the fit starts, a reference of another architecture.
        UnsupportedStrategyError: FSDP1 or DeepSpeed.
        ResumeMismatchError: a checkpoint with another reference, other texts or another `pool`.
        DivergedError: hidden states that are NaN or infinite.
        LRDistError: layers that cannot be found (see `assign_layers`).
    """

    def __getstate__(self) -> dict[str, Any]:
        """Without what Lightning lends a callback for its fit."""
        return kept(self)

    @property
    @override
    def state_key(self) -> str:
        """Without the settings, so that a checkpoint of other settings is recognised."""
        return "lr_dist.retention_monitor"

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start anew for each fit.

        Raises:
            UnsupportedStrategyError: FSDP1 or DeepSpeed.
        """
        if stage != "fit":
            return
        check_trainer(trainer)
        check_whole_parameters(trainer, "RetentionMonitor")
        self._watch = self._new_watch()

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the layers and check the reference, before anything is computed."""
        self._watch.place(pl_module)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the reference, and measure before the first step."""
        if self._batches is not None and self._batches is trainer.train_dataloader:
            raise ConfigurationError(
                "The texts are the training's own loader, whose position would be lost. Make another DataLoader."
            )
        self._interval.start(trainer.global_step)
        row = self._watch.begin(pl_module, _host(trainer), trainer.global_step, trainer.current_epoch)
        if row is not None:
            self._log(trainer, row)
        elif self._overdue(trainer):
            # The checkpoint was written at a step that is measured, before it was.
            self._measure(trainer, pl_module, trainer.current_epoch)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure every so many steps."""
        if self._interval.after_step(trainer.global_step):
            self._measure(trainer, pl_module, trainer.current_epoch)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure every so many epochs."""
        if self._interval.after_epoch(trainer.current_epoch + 1):
            self._measure(trainer, pl_module, trainer.current_epoch + 1)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure where the fit ends."""
        self._measure(trainer, pl_module, trainer.current_epoch)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        give_back(self)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        give_back(self)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**self._watch.plain_state(), "weights": self._watch.weights_state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._watch.load(state_dict, state_dict["weights"])

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say that a checkpoint without the monitor does not hold the weights when its fit began.

        Raises:
            ResumeMismatchError: a checkpoint of other settings.
        """
        if not resumes_a_fit(trainer):
            return
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is not None:
            self._watch.check_settings(state["settings"])
        elif self._reference is None:
            rank_zero_warn(
                "The checkpoint was written without RetentionMonitor, so `drift` and `cka` count from the step at "
                "which this run resumes. Give the weights at the start: reference=...",
                category=InexactResumeWarning,
            )

    def _overdue(self, trainer: L.Trainer) -> bool:
        """Whether the measurement of the step or the epoch that was the last is missing."""
        last = self._watch.history[-1]
        return self._interval.missed(
            trainer.global_step, trainer.current_epoch, last_step=last.step, last_epoch=last.epoch
        )

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, epoch: int) -> None:
        """Measure, unless this step has been."""
        if not self._watch.measured(trainer.global_step):
            self._log(trainer, self._watch.measure(pl_module, _host(trainer), trainer.global_step, epoch))

    def _log(self, trainer: L.Trainer, row: LayerChanges) -> None:
        """To the loggers, at the number of steps that were taken."""
        for logger in trainer.loggers:
            logger.log_metrics(row.logged(), step=row.step)


def _host(trainer: L.Trainer) -> Host:
    strategy: Any = trainer.strategy
    return Host(torch.device(strategy.root_device), precision=strategy.precision_plugin.forward_context)
