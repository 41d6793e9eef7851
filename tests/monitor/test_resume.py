"""A fit that is stopped and resumed measures, keeps and ends as the fit that was not stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import exact
import pytest
import tiny
import torch
from exact import Case, Saver, assert_same, run
from lightning.pytorch.callbacks import ModelCheckpoint
from monitor.watched import adamw, monitor, old_loader

from lr_dist import ExactResume
from lr_dist.errors import InexactResumeWarning, ResumeMismatchError

CASE = Case(data=lambda: tiny.shuffled(4), validation=lambda: tiny.batches(2, seed=9), options={"max_epochs": 3})
KEEP: dict[str, Any] = {"keep": "forgotten <= 1", "monitor": "val_loss", "mode": "min"}


def rows(watching: Any) -> list[Any]:
    return [replace(row, seconds=0.0) for row in watching.history]


def taken_out(ended: Any) -> dict[str, float]:
    """The monitor's metrics, which a resumed run may list in another order."""
    names = [name for name in ended.metrics if name.startswith(("old/", "forgotten/"))]
    return {name: float(ended.trainer.callback_metrics.pop(name)) for name in names}


@pytest.mark.parametrize("every", [{"every_n_steps": 3}, {"every_n_epochs": 1}], ids=["steps", "epochs"])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_a_resumed_fit_ends_where_the_unbroken_one_does(hook: str, every: dict[str, int], tmp_path: Path) -> None:
    # Saved by a callback that stands before the monitor, so before it has measured.
    saver, watching = Saver(tmp_path, hook), monitor(**every, **KEEP)
    unbroken = run(CASE, saver, ExactResume(), watching, layerwise=False)
    chosen = [path for (_, batches), path in saver.paths.items() if batches in (3, 4, 8)]
    assert len(chosen) >= 2
    ours = taken_out(unbroken)
    for path in chosen:
        again = monitor(**every, **KEEP)
        resumed = run(CASE, ExactResume(), again, layerwise=False, seed=2, ckpt=path, weights_only=True)
        assert rows(again) == rows(watching), path.name
        assert again.best_step == watching.best_step
        assert again.best_weights is not None
        assert watching.best_weights is not None
        exact.assert_equal(again.best_weights, watching.best_weights)
        assert taken_out(resumed) == ours
        assert_same(resumed, unbroken)
    assert watching.best_step is not None


def test_the_patience_and_the_start_go_on(tmp_path: Path) -> None:
    options = {"every_n_steps": 1, "stop_when": "moved/head > 0.001", "patience": 5}
    saver = Saver(tmp_path, "on_train_batch_end")
    unbroken = run(CASE, monitor(**options), saver, layerwise=False)
    resumed = run(CASE, monitor(**options), layerwise=False, ckpt=saver.paths["on_train_batch_end", 3])
    assert resumed.trainer.global_step == unbroken.trainer.global_step < 12


def test_a_default_checkpoint_resumes(tmp_path: Path) -> None:
    kept = [ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)]
    watching, again = monitor(every_n_epochs=1), monitor(every_n_epochs=1)
    run(CASE, watching, ExactResume(), *kept, layerwise=False, enable_checkpointing=True)
    run(CASE, again, ExactResume(), layerwise=False, seed=2, ckpt=tmp_path / "epoch=1.ckpt")
    assert rows(again) == rows(watching)


def saved(folder: Path, *callbacks: Any) -> Path:
    trainer = tiny.fit(tiny.Classifier(adamw), *callbacks, data=tiny.batches(4), max_epochs=1)
    trainer.save_checkpoint(folder / "saved.ckpt")
    return folder / "saved.ckpt"


def test_other_old_tasks_or_rules_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, monitor())
    for other in (monitor({"second": old_loader()}), monitor(keep="old >= 0.5"), monitor(movement=False)):
        with pytest.raises(ResumeMismatchError, match="'tasks': \\['first'\\]"):
            tiny.fit(tiny.Classifier(adamw), other, data=tiny.batches(4), ckpt=path, max_epochs=2)


def test_a_checkpoint_without_the_monitor_begins_a_new_count_and_says_so(tmp_path: Path) -> None:
    path, watching = saved(tmp_path), monitor()
    with pytest.warns(InexactResumeWarning, match="count from the step at which this run resumes"):
        tiny.fit(tiny.Classifier(adamw), watching, data=tiny.batches(4), ckpt=path, max_epochs=2)
    assert [row.step for row in watching.history] == [4, 6, 8]
    assert watching.history[0].moved["head"] == 0


def test_each_fit_begins_anew() -> None:
    watching, module = monitor(), tiny.Classifier(adamw)
    tiny.fit(module, watching, data=tiny.batches(4))
    first = watching.history
    tiny.fit(module, watching, data=tiny.batches(4, seed=1))
    assert [row.step for row in watching.history] == [0, 2, 4]
    assert watching.history[0].old == first[-1].old
    assert watching.history[0].moved["head"] == 0
    assert not torch.equal(torch.tensor(first[-1].moved["head"]), torch.tensor(watching.history[-1].moved["head"]))
