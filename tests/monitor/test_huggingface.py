"""The twin for transformers' Trainer: the same numbers, the same weights kept, the same care."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from monitor.watched import accuracy, accuracy_of, old_loader
from tiny_trainer import Scores, plain, rows

from lr_dist import ForgettingMonitorCallback
from lr_dist.errors import ConfigurationError, InexactResumeWarning, ResumeMismatchError, UnsupportedStrategyError


def score(model: Any, batch: Any) -> Any:
    return model(input_ids=batch[0]).logits, batch[1]


def watch(old: Any = None, **options: Any) -> ForgettingMonitorCallback:
    if "every_n_epochs" not in options:
        options = {"every_n_steps": 2, **options}
    return ForgettingMonitorCallback(
        old or {"first": old_loader(shuffle=True)}, **{"score": score, "metric": accuracy(), **options}
    )


def trained(folder: Path, *callbacks: Any, resume: Path | None = None, seed: int = 1, **options: Any) -> Any:
    torch.manual_seed(seed)  # the Trainer then seeds by its arguments
    trainer, _ = plain(folder, model=tiny.bert(dropout=0.3, seed=seed), callbacks=callbacks, **options)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def assert_same_weights(one: Any, other: Any) -> None:
    for (name, weight), twin in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(weight, twin), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_watched_training_is_bit_for_bit_the_other(workers: int, tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": 2, "dataloader_num_workers": workers}
    watching = watch({"first": old_loader(shuffle=True, num_workers=workers)})
    watched = trained(tmp_path, watching, **options)
    random = torch.get_rng_state()
    other = trained(tmp_path, **options)
    assert torch.equal(random, torch.get_rng_state())
    assert_same_weights(watched, other)
    losses = [[log["loss"] for log in run.state.log_history if "loss" in log] for run in (watched, other)]
    assert losses[0] == losses[1]
    assert [row.step for row in watching.history] == [0, 2, 4, 5]


def test_scores_are_those_of_the_model_and_are_logged(tmp_path: Path) -> None:
    watching = watch(every_n_epochs=1)
    model = tiny.bert()
    start = accuracy_of(model, old_loader())
    trainer, _ = plain(tmp_path, model=model, max_steps=12)
    watching.attach(trainer)
    trainer.train()
    assert [(row.step, row.epoch) for row in watching.history] == [(0, 0), (6, 1), (12, 2)]
    assert watching.history[0].old["first"] == pytest.approx(start, abs=1e-6)
    assert watching.history[-1].old["first"] == pytest.approx(accuracy_of(model, old_loader()), abs=1e-6)
    logged = {log["step"]: log for log in trainer.state.log_history if "old/first" in log}
    assert list(logged) == [0, 6, 12]
    assert logged[12]["moved/layers.1"] == watching.history[-1].moved["layers.1"] > 0


def test_without_attach_the_history_of_the_trainer_has_it(tmp_path: Path) -> None:
    batches = [{"input_ids": tokens, "labels": labels} for tokens, labels in old_loader()]
    trainer = trained(tmp_path, watch({"first": batches}, score=None))
    assert [log["step"] for log in trainer.state.log_history if "forgotten/first" in log] == [0, 2, 4, 5]


@pytest.mark.parametrize("every", [{"every_n_steps": 2}, {"every_n_epochs": 1}], ids=["steps", "epochs"])
def test_the_evaluation_of_the_same_step_chooses(every: dict[str, int], tmp_path: Path) -> None:
    watching = watch(keep="forgotten <= 1", monitor="eval_score", **every)
    period = {"eval_strategy": "steps", "eval_steps": 2} if "every_n_steps" in every else {"eval_strategy": "epoch"}
    steps = 6 if "every_n_steps" in every else 18
    saved = {"save_strategy": "steps", "save_steps": steps // 3}
    own = {"eval_dataset": rows(4, seed=1), "compute_metrics": Scores([0.5, 0.9, 0.7])}
    trainer = trained(tmp_path, watching, max_steps=steps, **period, **saved, **own)
    assert watching.best_step == steps * 2 // 3
    from safetensors.torch import load_file

    kept = load_file(tmp_path / f"checkpoint-{watching.best_step}" / "model.safetensors")
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, kept[name]), name


def test_a_broken_bound_stops_the_training(tmp_path: Path) -> None:
    watching = watch(every_n_steps=1, stop_when="moved/head > 0.001", patience=2)
    trainer = trained(tmp_path, watching)
    over = [row.step for row in watching.history if row.moved["head"] > 0.001]
    assert trainer.state.global_step == over[1] < 5


def test_a_resumed_training_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"keep": "forgotten <= 1 and moved/head < 0.01", "every_n_steps": 1}
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = watch(**options)
    unbroken = trained(tmp_path, whole, **saving)
    for step in (4, 5):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    again = watch(**options)
    resumed = trained(tmp_path, again, resume=tmp_path / "checkpoint-3", seed=2, **saving)
    assert [replace(row, seconds=0) for row in again.history] == [replace(row, seconds=0) for row in whole.history]
    assert again.best_step == whole.best_step
    assert_same_weights(resumed, unbroken)


def test_other_checkpoints_are_refused_or_named(tmp_path: Path) -> None:
    trained(tmp_path, watch(), max_steps=2, save_strategy="steps", save_steps=2)
    checkpoint = tmp_path / "checkpoint-2"
    with pytest.raises(ResumeMismatchError, match="'tasks': \\['first'\\]"):
        trained(tmp_path, watch({"second": old_loader()}), resume=checkpoint)
    file = checkpoint / "forgetting_monitor.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ResumeMismatchError, match="cannot be read"):
        trained(tmp_path, watch(), resume=checkpoint)
    file.unlink()
    watching = watch()
    with pytest.warns(InexactResumeWarning, match="count from the step"):
        trained(tmp_path, watching, resume=checkpoint)
    assert [row.step for row in watching.history] == [2, 4, 5]


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps", "eval_dataset": rows(4)}
    with pytest.raises(ConfigurationError, match="load_best_model_at_end=True and keep"):
        trained(tmp_path, watch(keep="forgotten <= 1"), **best)
    with pytest.raises(ConfigurationError, match=r"eval_accuracy, which was not logged"):
        trained(tmp_path, watch(keep="forgotten <= 1", monitor="eval_accuracy"))
    watching = watch()
    trainer, _ = plain(tmp_path)
    trainer.args.fsdp = [True]
    with pytest.raises(UnsupportedStrategyError, match="FSDP"):
        watching.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
