"""`ExactResume`: the Lightning callback that resumes a stopped run exactly."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from typing_extensions import override

from lr_dist._callback.exact import STATE_KEY, ExactFit
from lr_dist._callback.finder import resumes_a_fit
from lr_dist._callback.other_callbacks import callbacks_of, check_trainer
from lr_dist._lightning import Callback, L, give_back, kept
from lr_dist.errors import UnsupportedCallbackError


class ExactResume(Callback):
    """Makes a run that is stopped anywhere and resumed end bit for bit where the unbroken run ends.

    Works in any Trainer and for any model: weights, optimizer states, schedulers, logged averages and random numbers at
    the end are those of the unbroken run. To every full checkpoint it adds what Lightning leaves out: the random states
    of every process, the position in the data, the gradients of an unfinished window of `accumulate_grad_batches`, the
    values logged in the epoch so far, and the work that was still due when the checkpoint was written. It needs no
    special data loader and no seed, and does not change an unbroken run. docs/callback.md lists what was tested, and
    where a resumed run cannot be exact.

        trainer = L.Trainer(callbacks=[ExactResume(), ModelCheckpoint(every_n_train_steps=100)])
        trainer.fit(module, data, ckpt_path="last")

    `LayerwiseLR` does the same by itself, unless it has `exact_resume=False`. In a Trainer with both callbacks, this
    one does the work. Each of the two reads the checkpoints of the other.

    It is always on, because `trainer.save_checkpoint` may be called at any time, even with
    `enable_checkpointing=False`. It costs a few copies of random states a batch (about 0.3 ms on one core). Leave it
    out of a Trainer that never saves.

    Raises:
        LRDistError: in `setup`, a second ExactResume, or another library's Trainer. A checkpoint from which a run
            cannot be resumed exactly is resumed as Lightning does, with an `InexactResumeWarning` that says why.
    """

    def __init__(self) -> None:
        self._fit = ExactFit()

    def __getstate__(self) -> dict[str, Any]:
        """Without the running fit: a copy, or the callback in a spawned process, serves another fit."""
        return {**kept(self), "_fit": ExactFit()}

    @property
    @override
    def state_key(self) -> str:
        return STATE_KEY

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start with an empty state for each fit.

        Raises:
            UnsupportedCallbackError: the Trainer has another ExactResume.
        """
        if stage != "fit":
            return
        check_trainer(trainer)
        if sum(isinstance(callback, ExactResume) for callback in callbacks_of(trainer)) > 1:
            raise UnsupportedCallbackError(
                "The Trainer has more than one ExactResume callback, and each would restore the run again. Keep one "
                "(look also at `configure_callbacks` of the LightningModule)."
            )
        self._fit.close()
        self._fit = ExactFit()

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fit.on_fit_start(trainer)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fit.on_train_start(trainer)

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        self._fit.on_before_optimizer_step(optimizer)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fit.on_validation_end()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        give_back(self)
        self._fit.on_exception()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        give_back(self)
        self._fit.teardown(trainer)

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read this process's part of a checkpoint that a fit resumes from."""
        if resumes_a_fit(trainer):
            self._fit.load(trainer, checkpoint)

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the exact-resume state, as plain data and tensors; Lightning calls this in every process."""
        if (state := self._fit.state(trainer, pl_module)) is not None:
            checkpoint["callbacks"][STATE_KEY] = state
