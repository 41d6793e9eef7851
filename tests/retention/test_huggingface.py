"""The twin for transformers' Trainer: the same numbers, a training that does not notice, and exact resume."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from retention.test_monitor import texts
from tiny_trainer import plain

from lr_dist.errors import InexactResumeWarning, UnsupportedStrategyError
from lr_dist.retention.drift import drift
from lr_dist.retention.huggingface import RetentionMonitorCallback


def watch(**options: Any) -> RetentionMonitorCallback:
    return RetentionMonitorCallback(texts(), **{"every_n_steps": 2, **options})


def trained(folder: Path, *callbacks: Any, resume: Path | None = None, seed: int = 1, **options: Any) -> Any:
    torch.manual_seed(seed)  # the Trainer then seeds by its arguments
    trainer, _ = plain(folder, model=tiny.bert(dropout=0.3, seed=seed), callbacks=callbacks, **options)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def assert_same_weights(one: Any, other: Any) -> None:
    for (name, weight), twin in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(weight, twin), name


def test_a_watched_training_is_bit_for_bit_the_other_and_the_numbers_are_logged(tmp_path: Path) -> None:
    watching = watch(reference=tiny.bert(seed=4))
    watched = trained(tmp_path, watching, gradient_accumulation_steps=2)
    random = torch.get_rng_state()
    other = trained(tmp_path, gradient_accumulation_steps=2)
    assert torch.equal(random, torch.get_rng_state())
    assert_same_weights(watched, other)
    assert [row.step for row in watching.history] == [0, 2, 4, 5]
    assert watching.history[-1].drift == pytest.approx(drift(tiny.bert(seed=4), copy.deepcopy(other.model)), rel=1e-5)
    logged = {log["step"]: log for log in watched.state.log_history if "drift/head" in log}
    assert list(logged) == [0, 2, 4, 5]
    assert logged[4]["cka/layers.1"] == watching.history[2].cka["layers.1"]


def test_a_resumed_training_goes_on(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = watch(every_n_steps=1)
    unbroken = trained(tmp_path, whole, **saving)
    for step in (4, 5):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    again = watch(every_n_steps=1)
    resumed = trained(tmp_path, again, resume=tmp_path / "checkpoint-3", seed=2, **saving)
    assert [replace(row, seconds=0) for row in again.history] == [replace(row, seconds=0) for row in whole.history]
    assert_same_weights(resumed, unbroken)
    (tmp_path / "checkpoint-3" / "retention_monitor.safetensors").unlink()
    with pytest.warns(InexactResumeWarning, match="count from the step"):
        trained(tmp_path, watch(), resume=tmp_path / "checkpoint-3")


def test_fsdp_is_refused(tmp_path: Path) -> None:
    watching = watch()
    trainer, _ = plain(tmp_path)
    trainer.args.fsdp = [True]
    with pytest.raises(UnsupportedStrategyError, match="FSDP"):
        watching.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
