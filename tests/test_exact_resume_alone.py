"""`ExactResume` in a Trainer of its own, and beside LayerwiseLR: one of them does the work, and both read its state."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from exact import Case, Ended, Saver, assert_same, run
from lightning.pytorch.callbacks import ModelCheckpoint

from lr_dist import ExactResume, LayerwiseLR
from lr_dist._callback.internals import Loops
from lr_dist._callback.tracker import Tracker
from lr_dist.errors import InexactResumeWarning, UnsupportedCallbackError

WINDOW = {"accumulate_grad_batches": 4}  # of 6 batches: steps after 4 and 6, 10 and 12
PLATEAU = Case(
    lambda optimizer: {
        "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=0, threshold=0.9),
        "monitor": "train_loss",
    },
    validation=partial(tiny.batches, 2),
    options=WINDOW,
)
# In the middle of a window, on its last batch, at the end of the epoch, and in the second epoch.
MOMENTS = (("on_train_batch_end", 3), ("on_train_batch_end", 6), ("on_train_epoch_end", 6), ("on_validation_end", 12))


def alone(*callbacks: Any, **options: Any) -> Ended:
    return run(PLATEAU, *callbacks, layerwise=False, **options)


def callbacks_in(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)["callbacks"]
    return found


def test_without_layerwise_lr_a_run_resumes_exactly(tmp_path: Path) -> None:
    saver = Saver(tmp_path, *{hook for hook, _ in MOMENTS})
    unbroken = alone(ExactResume(), saver)
    for moment in MOMENTS:
        assert_same(alone(ExactResume(), seed=2, ckpt=saver.paths[moment], weights_only=True), unbroken)


def test_without_any_callback_the_same_run_does_not(tmp_path: Path) -> None:
    saver = Saver(tmp_path, "on_train_batch_end")
    unbroken = alone(saver)
    with pytest.raises(AssertionError):
        assert_same(alone(seed=2, ckpt=saver.paths["on_train_batch_end", 3]), unbroken)


def test_it_changes_no_random_number_and_no_weight_of_an_unbroken_run() -> None:
    assert_same(alone(ExactResume()), alone())


def test_the_checkpoints_of_model_checkpoint_resume_exactly(tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    unbroken = alone(ExactResume(), every, enable_checkpointing=True)
    path = tmp_path / "step=3.ckpt"
    assert callbacks_in(path)["ExactResume"]["format"] == 2
    again = ModelCheckpoint(tmp_path / "again", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    assert_same(alone(ExactResume(), again, seed=2, ckpt=path, enable_checkpointing=True), unbroken)


@pytest.mark.parametrize("first", [True, False])
def test_beside_layerwise_lr_one_of_the_two_does_the_work(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Loops] = []
    original = Tracker.__init__

    def counted(self: Tracker, loops: Loops, started: Any) -> None:
        made.append(loops)
        original(self, loops, started)

    monkeypatch.setattr(Tracker, "__init__", counted)
    saver = Saver(tmp_path, "on_train_batch_end")
    # `run` puts its own LayerwiseLR after these callbacks, and the case's own callbacks after that.
    case = PLATEAU if first else Case(**{**vars(PLATEAU), "callbacks": lambda: [ExactResume()]})
    exact = [ExactResume()] if first else []
    unbroken = run(case, *exact, saver)
    assert len(made) == 1
    path = saver.paths["on_train_batch_end", 3]
    saved = callbacks_in(path)
    assert "exact_resume" not in saved["LayerwiseLR"]
    assert saved["ExactResume"]["batches"] == 3
    exact = [ExactResume()] if first else []
    assert_same(run(case, *exact, seed=2, ckpt=path), unbroken)
    assert len(made) == 2


def test_each_reads_what_the_other_has_written(tmp_path: Path) -> None:
    theirs, ours = Saver(tmp_path / "layerwise", "on_train_batch_end"), Saver(tmp_path / "exact", "on_train_batch_end")
    unbroken = run(PLATEAU, theirs)
    assert_same(run(PLATEAU, ExactResume(), ours), unbroken)
    moment = "on_train_batch_end", 9
    # As a checkpoint of before there was an ExactResume.
    assert "ExactResume" not in callbacks_in(theirs.paths[moment])
    assert_same(run(PLATEAU, ExactResume(), seed=2, ckpt=theirs.paths[moment]), unbroken)
    assert_same(run(PLATEAU, seed=2, ckpt=ours.paths[moment]), unbroken)


def test_a_layerwise_lr_that_leaves_it_out_does_not_keep_it_from_the_other(tmp_path: Path) -> None:
    def both(*more: Any, **options: Any) -> Ended:
        layerwise = LayerwiseLR(tiny.EXPLICIT, verbose=False, exact_resume=False)
        return run(PLATEAU, layerwise, ExactResume(), *more, layerwise=False, **options)

    saver = Saver(tmp_path, "on_train_batch_end")
    unbroken = both(saver)
    assert_same(both(seed=2, ckpt=saver.paths["on_train_batch_end", 3]), unbroken)


def test_a_checkpoint_without_its_state_says_so(tmp_path: Path) -> None:
    saver = Saver(tmp_path, "on_train_batch_end")
    alone(saver)
    with pytest.warns(InexactResumeWarning, match="written without exact_resume"):
        alone(ExactResume(), seed=2, ckpt=saver.paths["on_train_batch_end", 3])


def test_two_of_them_are_refused() -> None:
    with pytest.raises(UnsupportedCallbackError, match="more than one ExactResume"):
        alone(ExactResume(), ExactResume())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_a_copy_serves_another_fit_and_one_callback_serves_several(duplicate: Any, tmp_path: Path) -> None:
    callback = ExactResume()
    saver = Saver(tmp_path, "on_train_batch_end")
    unbroken = alone(callback, saver)
    path = saver.paths["on_train_batch_end", 9]
    assert_same(alone(duplicate(callback), seed=2, ckpt=path), unbroken)
    assert_same(alone(callback, seed=3, ckpt=path), unbroken)


def test_after_the_fit_the_loops_have_their_own_methods_and_a_checkpoint_can_still_be_saved(tmp_path: Path) -> None:
    ended = alone(ExactResume())
    for loop in (ended.trainer.fit_loop, ended.trainer.fit_loop.epoch_loop):
        assert not [name for name, value in vars(loop).items() if callable(value) and name.startswith(("on_", "adv"))]
    ended.trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert callbacks_in(tmp_path / "end.ckpt")["ExactResume"]["epochs"] == 2
