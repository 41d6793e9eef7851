"""However a run comes to its end, a checkpoint of that moment continues it exactly."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from exact import BASE, Case, Saver, assert_same, run
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim import lr_scheduler as sch

from lr_dist.errors import InexactResumeWarning

WINDOW = {"accumulate_grad_batches": 4, "max_epochs": 3}  # of 6 batches


def plateau(optimizer: Any, monitor: str, interval: str = "epoch", **options: Any) -> dict[str, Any]:
    """Reduces at nearly every look: a step too many or too few shows."""
    scheduler = sch.ReduceLROnPlateau(optimizer, factor=0.3, patience=0, threshold=0.9)
    return {"scheduler": scheduler, "interval": interval, "monitor": monitor, **options}


def cosine(optimizer: Any) -> dict[str, Any]:
    return {"scheduler": sch.CosineAnnealingLR(optimizer, 6, eta_min=BASE / 9), "interval": "step"}


class Stop(L.Callback):
    """Calls `how(trainer)` in a hook, once the run has begun `batches` batches."""

    def __init__(self, hook: str, batches: int, how: Callable[[L.Trainer], None]) -> None:
        self.batches, self.how = batches, how
        setattr(self, hook, self._stop)

    def _stop(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking and trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.batches:
            self.how(trainer)


def ask(trainer: L.Trainer) -> None:
    trainer.should_stop = True


def interrupt(_: L.Trainer) -> None:
    raise KeyboardInterrupt


def terminate(trainer: L.Trainer) -> None:
    trainer._signal_connector.received_sigterm = True


@pytest.fixture(autouse=True)
def _keep_the_signal_handler() -> Any:
    # Lightning ignores SIGINT for good once a KeyboardInterrupt was raised in a fit.
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def stopped_by(exception: type[BaseException], case: Case, folder: Path, *callbacks: Any, **options: Any) -> Path:
    """The checkpoint of a run that an exception ended."""
    with pytest.raises(exception):
        run(case, *callbacks, OnExceptionCheckpoint(str(folder)), enable_checkpointing=True, **options)
    return folder / "on_exception.ckpt"


def state_in(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)["callbacks"]["LayerwiseLR"]["exact_resume"]


CASE = Case(cosine, validation=partial(tiny.batches, 2), options={**WINDOW, "val_check_interval": 3})


@pytest.mark.parametrize(
    ("hook", "batches"),
    [
        ("on_train_batch_start", 5),  # the first of a window
        ("on_train_batch_start", 8),  # within one
        ("on_before_backward", 10),  # within one, in the batch of the step
        ("on_after_backward", 9),  # its gradients are in the sum by now
        ("on_train_batch_end", 9),
        ("on_validation_batch_start", 9),
        ("on_validation_end", 9),
        ("on_train_epoch_end", 12),
        ("on_train_epoch_start", 12),
    ],
)
def test_a_run_that_was_interrupted_resumes_exactly(hook: str, batches: int, tmp_path: Path) -> None:
    path = stopped_by(SystemExit, CASE, tmp_path, Stop(hook, batches, interrupt))
    assert_same(run(CASE, seed=2, ckpt=path, weights_only=True), run(CASE))


def test_a_run_that_was_interrupted_within_the_window_in_which_it_was_resumed(tmp_path: Path) -> None:
    saver = Saver(tmp_path, "on_train_batch_end")
    unbroken = run(CASE, saver)
    resumed = {"ckpt": saver.paths["on_train_batch_end", 8], "seed": 2}
    path = stopped_by(SystemExit, CASE, tmp_path, Stop("on_after_backward", 9, interrupt), **resumed)
    assert_same(run(CASE, seed=3, ckpt=path), unbroken)


def test_a_run_whose_data_fails_resumes_exactly(tmp_path: Path) -> None:
    class Failing(torch.utils.data.Dataset):
        """Fails at the twentieth example that is read."""

        def __init__(self, after: float) -> None:
            self.left, self.examples = after, tiny.batches(6).dataset

        def __len__(self) -> int:
            return len(self.examples)

        def __getitem__(self, index: int) -> Any:
            self.left -= 1
            if self.left < 0:
                raise OSError("the disk is gone")
            return self.examples[index]

    def case(after: float) -> Case:
        return Case(data=lambda: torch.utils.data.DataLoader(Failing(after), 4, shuffle=True), options=WINDOW)

    path = stopped_by(OSError, case(30), tmp_path)
    assert_same(run(case(float("inf")), seed=2, ckpt=path), run(case(float("inf"))))


def test_a_run_that_the_scheduler_of_a_cluster_ends_resumes_exactly(tmp_path: Path) -> None:
    path = stopped_by(SIGTERMException, CASE, tmp_path, Stop("on_train_batch_end", 9, terminate))
    assert state_in(path)["batches"] == 3
    assert_same(run(CASE, seed=2, ckpt=path), run(CASE))


def test_model_checkpoint_saves_an_interrupted_run_exactly(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, save_last=True, save_on_exception=True)
    with pytest.raises(SystemExit):
        run(CASE, Stop("on_before_backward", 9, interrupt), saver, enable_checkpointing=True)
    assert_same(run(CASE, seed=2, ckpt=tmp_path / "last.ckpt"), run(CASE))


@pytest.mark.parametrize("batches", [2, 4, 6, 9])
def test_a_run_that_was_told_to_stop_resumes_exactly(batches: int, tmp_path: Path) -> None:
    # Lightning ends the epoch there, and validates once more: the unbroken run does neither.
    saver = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=True)
    stopped = run(CASE, Stop("on_train_batch_end", batches, ask), saver, enable_checkpointing=True)
    assert len(stopped.module.seen) == batches
    assert_same(run(CASE, seed=2, ckpt=tmp_path / "last.ckpt"), run(CASE))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_that_ends_at_max_steps_is_continued_exactly(steps: int, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, save_last=True)
    stopped = run(CASE, saver, max_steps=steps, enable_checkpointing=True)
    assert stopped.trainer.global_step == steps
    assert_same(run(CASE, seed=2, ckpt=tmp_path / "last.ckpt"), run(CASE))


def test_a_run_by_steps_resumes_exactly(tmp_path: Path) -> None:
    # Lightning takes every resumed run with `max_steps` for one that stopped within an epoch.
    case = Case(cosine, validation=partial(tiny.batches, 2), options={"max_steps": 15, "max_epochs": -1})
    saver = Saver(tmp_path, "on_train_batch_end", "on_validation_end", "on_train_epoch_end")
    unbroken = run(case, saver)
    for hook, batches in (
        ("on_train_batch_end", 4),
        ("on_train_batch_end", 6),
        ("on_validation_end", 6),
        ("on_train_epoch_end", 6),
        ("on_train_epoch_end", 12),
    ):
        assert_same(run(case, seed=2, ckpt=saver.paths[hook, batches]), unbroken)


def test_a_finished_fit_is_continued_exactly(tmp_path: Path) -> None:
    case = Case(partial(plateau, monitor="train_loss"), validation=partial(tiny.batches, 2))
    run(case, max_epochs=2).trainer.save_checkpoint(tmp_path / "finished.ckpt")
    assert_same(run(case, seed=2, ckpt=tmp_path / "finished.ckpt", max_epochs=4), run(case, max_epochs=4))


def test_a_run_that_was_resumed_with_nothing_left_to_do_ends_as_it_did(tmp_path: Path) -> None:
    case = Case(partial(plateau, monitor="train_loss"))
    saver = Saver(tmp_path, "on_train_epoch_end")
    unbroken = run(case, saver)
    assert_same(run(case, seed=2, ckpt=saver.paths["on_train_epoch_end", 12]), unbroken)


def test_early_stopping_within_an_epoch_counts_on_where_it_was(tmp_path: Path) -> None:
    def stopping() -> list[Any]:
        return [EarlyStopping("val_loss", min_delta=10.0, patience=4)]

    case = Case(
        validation=partial(tiny.batches, 2), options={"val_check_interval": 2, "max_epochs": 5}, callbacks=stopping
    )
    saver = Saver(tmp_path, "on_train_batch_end", "on_validation_end")
    unbroken = run(case, saver)
    assert len(unbroken.module.seen) == 10  # the first validation is the best, and four more are no better
    for hook in ("on_train_batch_end", "on_validation_end"):
        assert_same(run(case, seed=2, ckpt=saver.paths[hook, 8]), unbroken)


# Schedulers that watch a metric --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "watched",
    [
        {"monitor": "train_loss"},  # the average over the epoch
        {"monitor": "val_loss"},
        {"monitor": "val_loss", "frequency": 2},
        {"monitor": "train_loss_step", "interval": "step", "frequency": 2},
        {"monitor": "val_loss", "interval": "step", "strict": False},
    ],
    ids=str,
)
def test_a_plateau_is_stepped_as_often_as_in_the_unbroken_run(watched: dict[str, Any], tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 2, "val_check_interval": 3, "max_epochs": 4}
    case = Case(partial(plateau, **watched), validation=partial(tiny.batches, 2), options=options)
    saver = Saver(tmp_path, "on_train_batch_end", "on_validation_end", "on_train_epoch_end")
    unbroken = run(case, saver)
    assert unbroken.trainer.optimizers[0].param_groups[-1]["lr"] < tiny.RATES["head"]
    for hook, batches in (
        ("on_train_batch_end", 4),
        ("on_train_batch_end", 6),
        ("on_train_batch_end", 9),
        ("on_validation_end", 9),
        ("on_validation_end", 12),
        ("on_train_epoch_end", 6),
        ("on_train_epoch_end", 12),
    ):
        assert_same(run(case, seed=2, ckpt=saver.paths[hook, batches]), unbroken)


class Measured(tiny.Unseeded):
    """Logs a torchmetrics object, and the largest loss of an epoch."""

    def __init__(self, configure: Any) -> None:
        super().__init__(configure)
        from torchmetrics.classification import BinaryAccuracy

        self.accuracy = BinaryAccuracy()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.accuracy(self.model(input_ids=batch[0]).logits[:, 1].sigmoid(), batch[1])
        self.log("accuracy", self.accuracy, on_epoch=True)
        self.log("largest", loss, reduce_fx="max", on_epoch=True, on_step=False)
        return loss


@pytest.mark.parametrize("monitor", ["accuracy", "largest"])
def test_a_plateau_may_watch_any_metric_of_the_epoch(monitor: str, tmp_path: Path) -> None:
    case = Case(partial(plateau, monitor=monitor), module=Measured)
    saver = Saver(tmp_path, "on_train_batch_end")
    unbroken = run(case, saver)
    for batches in (4, 6, 10):
        assert_same(run(case, seed=2, ckpt=saver.paths["on_train_batch_end", batches]), unbroken)


# Windows -------------------------------------------------------------------------------------------------


def test_a_window_that_changes_with_the_epoch(tmp_path: Path) -> None:
    case = Case(callbacks=lambda: [GradientAccumulationScheduler({0: 1, 1: 3})])
    saver = Saver(tmp_path, "on_train_batch_end")
    unbroken = run(case, saver)
    assert_same(run(case, seed=2, ckpt=saver.paths["on_train_batch_end", 8]), unbroken)


class TwoOptimizers(tiny.Unseeded):
    """Manual optimization: the encoder's optimizer steps in every third batch, the head's in every second."""

    def __init__(self, configure: Any) -> None:
        super().__init__(configure)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.AdamW(self.model.bert.parameters(), lr=BASE),
            torch.optim.SGD(self.model.classifier.parameters(), lr=0.1, momentum=0.9),
        ]

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer, every in zip(self.optimizers(), (3, 2), strict=True):
            if (batch_idx + 1) % every == 0:
                optimizer.step()
                optimizer.zero_grad()


def test_windows_of_manual_optimization_resume_exactly(tmp_path: Path) -> None:
    case = Case(module=TwoOptimizers)
    saver = Saver(tmp_path, "on_train_batch_end")
    unbroken = run(case, saver)
    for batches in (1, 2, 3, 9, 10):
        assert_same(run(case, seed=2, ckpt=saver.paths["on_train_batch_end", batches]), unbroken)


def test_only_a_checkpoint_within_a_window_holds_gradients(tmp_path: Path) -> None:
    saver = Saver(tmp_path, "on_train_batch_end")
    run(CASE, saver)
    held = {batches: len(state_in(path)["ranks"][0]["gradients"]) for (_, batches), path in saver.paths.items()}
    parameters = len(list(tiny.bert().parameters()))
    assert held == {n: 0 if n % 6 in (4, 0) else parameters for n in range(1, 19)}


# What cannot be exact ------------------------------------------------------------------------------------


def test_a_checkpoint_of_a_half_taken_step_says_so(tmp_path: Path) -> None:
    path = stopped_by(RuntimeError, CASE, tmp_path, HalfStep(4))
    with pytest.warns(InexactResumeWarning, match="while the optimizer took a step"):
        run(CASE, seed=2, ckpt=path)


class HalfStep(L.Callback):
    """Raises in the middle of the step of the n-th batch."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.batches:
            optimizer.register_step_post_hook(self._fail)

    def _fail(self, *_: Any) -> None:
        raise RuntimeError("the power is gone")


def test_a_checkpoint_without_random_states_says_so(tmp_path: Path) -> None:
    saver = Saver(tmp_path, "on_train_batch_end")
    unbroken = run(CASE, saver)
    path = saver.paths["on_train_batch_end", 3]
    checkpoint = torch.load(path, weights_only=True)
    states = checkpoint["callbacks"]["LayerwiseLR"]["exact_resume"]["ranks"]
    checkpoint["callbacks"]["LayerwiseLR"]["exact_resume"]["ranks"] = states * 2
    torch.save(checkpoint, path)
    with pytest.warns(InexactResumeWarning, match="written by 2 processes, and this run has 1"):
        resumed = run(CASE, seed=2, ckpt=path)
    assert resumed.trainer.global_step == unbroken.trainer.global_step
    assert resumed.random != unbroken.random


def rewritten(path: Path, rewrite: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the checkpoint with another state for the exact resume."""
    checkpoint = torch.load(path, weights_only=True)
    rewrite(checkpoint["callbacks"]["LayerwiseLR"]["exact_resume"])
    torch.save(checkpoint, path.with_suffix(".other"))
    return path.with_suffix(".other")


def test_a_checkpoint_of_the_first_format_resumes_exactly(tmp_path: Path) -> None:
    def first_format(state: dict[str, Any]) -> None:
        del state["format"], state["ranks"][0]["machine"]
        for random in state["ranks"][0]["random"].values():
            random["torch"] = random.pop("cpu")

    saver = Saver(tmp_path, "on_train_batch_end")
    unbroken = run(CASE, saver)
    path = rewritten(saver.paths["on_train_batch_end", 3], first_format)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        assert_same(run(CASE, seed=2, ckpt=path), unbroken)


@pytest.mark.parametrize(
    ("rewrite", "match"),
    [
        (lambda state: state.update(format=3), r"later version of lr-dist wrote it \(format 3.*up to 2\)"),
        (lambda state: state.update(format="new"), "later version of lr-dist wrote it"),
        (lambda state: state["ranks"][0]["random"]["now"].pop("numpy"), r"not written by lr-dist.*KeyError\('numpy'\)"),
        (lambda state: state["ranks"][0]["random"]["now"].update(python=[3]), "not written by lr-dist.*ValueError"),
        (lambda state: state.update(ranks=None), "not written by lr-dist.*TypeError"),
        (lambda state: state["ranks"][0]["machine"].update(threads=64), r"threads .* 64, and this run has \d+"),
        (lambda state: state["ranks"][0]["machine"].update(torch="2.0.1"), r"torch 2\.0\.1, and this run has 2\."),
        (lambda state: state["ranks"][0]["machine"].update(instructions="Z80"), "instructions Z80, and this run has"),
        (lambda state: state["ranks"][0]["machine"].update(device="NVIDIA H100"), "NVIDIA H100, and this run has cpu"),
    ],
)
def test_what_cannot_be_resumed_exactly_says_so_with_both_values_and_goes_on(
    rewrite: Any, match: str, tmp_path: Path
) -> None:
    saver = Saver(tmp_path, "on_train_batch_end")
    unbroken = run(CASE, saver)
    path = rewritten(saver.paths["on_train_batch_end", 3], rewrite)
    with pytest.warns(InexactResumeWarning, match=match):
        resumed = run(CASE, seed=2, ckpt=path)
    assert resumed.trainer.global_step == unbroken.trainer.global_step


def test_another_number_of_threads_is_named(tmp_path: Path) -> None:
    saver = Saver(tmp_path, "on_train_batch_end")
    run(CASE, saver)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(InexactResumeWarning, match=rf"threads .* {threads}, and this run has {threads + 1}"):
            run(CASE, seed=2, ckpt=saver.paths["on_train_batch_end", 3])
    finally:
        torch.set_num_threads(threads)


class InterruptedOnce(torch.utils.data.DataLoader):
    """A loader whose iterator is interrupted while it is made, as starting workers may be, at the third call."""

    def __init__(self, at: int) -> None:
        super().__init__(tiny.batches(6).dataset, 4, shuffle=True)
        self.__dict__["left"] = at

    def __iter__(self) -> Any:
        self.__dict__["left"] -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().__iter__()


def test_a_run_that_was_interrupted_while_it_opened_its_data_resumes_exactly(tmp_path: Path) -> None:
    # The first two iterators are those of the first two epochs.
    path = stopped_by(SystemExit, Case(data=lambda: InterruptedOnce(3), options=WINDOW), tmp_path)
    assert state_in(path)["epochs"] == 2
    case = Case(data=lambda: InterruptedOnce(-1), options=WINDOW)
    assert_same(run(case, seed=2, ckpt=path), run(case))


def test_nothing_of_an_earlier_fit_is_left_in_the_loops(tmp_path: Path) -> None:
    trainer = run(CASE).trainer
    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop):
        assert not {"on_advance_start", "on_advance_end", "on_run_start", "advance", "reset"} & set(vars(loop))
