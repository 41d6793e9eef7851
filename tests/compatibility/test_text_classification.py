"""The text classification of everybody's tutorial with one line added, and what that line does to it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lr_dist import LayerwiseLR
from lr_dist.tasks import load_task

DECAY = "decay:lr=4e-3,factor=0.5"
RATES = {"embeddings": 2.5e-4, "layers.0": 5e-4, "layers.1": 1e-3, "layers.2": 2e-3, "head": 4e-3}
WARMUP = 10


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """648 short sentences for training and others for validation, half of them positive."""
    folder = tmp_path_factory.mktemp("texts")
    task = load_task("demo-sentiment")
    for name, split in (("train", task.train), ("validation", task.validation)):
        split.rename_column("text_a", "sentence").to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture
def tutorial(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import text_classification

    return text_classification


def trained(
    tutorial: Any,
    model: str,
    folder: Path,
    *callbacks: L.Callback,
    data: Any = None,
    warmup: int = WARMUP,
    **options: Any,
) -> Any:
    """The lines of the tutorial that train, with the callbacks given; the Trainer and the module."""
    L.seed_everything(42, verbose=False)
    data = tutorial.TextDataModule(str(folder), model, **(data or {}))
    module = tutorial.TextClassifier(model, learning_rate=1e-3, warmup_steps=warmup, weight_decay=0.01)
    trainer = tiny.trainer(*callbacks, **options)
    trainer.fit(module, datamodule=data)
    return trainer, module


def factor(step: int, total: int) -> float:
    """The linear warm-up and decay at a step."""
    return step / WARMUP if step < WARMUP else (total - step) / (total - WARMUP)


def test_every_layers_halves_follow_their_rate_times_the_warm_up(
    tutorial: Any, tiny_model: str, texts: Path, tmp_path: Path
) -> None:
    recorder = tiny.Recorder()
    trainer, module = trained(
        tutorial,
        tiny_model,
        texts,
        LayerwiseLR(DECAY, verbose=False),
        recorder,
        LearningRateMonitor(logging_interval="step"),
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        max_epochs=2,
    )
    total = 2 * 41  # 648 sentences in batches of 16
    for name, rate in RATES.items():
        expected = [rate * factor(step, total) for step in range(total)]
        assert recorder.rates[name] == pytest.approx(expected, rel=1e-9), name
        assert recorder.rates[f"{name}/no_decay"] == pytest.approx(expected, rel=1e-9), name
    # Without weight decay are the parameters that the tutorial says, and every parameter is somewhere.
    names = {id(p): name for name, p in module.named_parameters()}
    for group in trainer.optimizers[0].param_groups:
        members = [names.pop(id(p)) for p in group["params"]]
        undecayed = group["name"].endswith("/no_decay")
        assert group["weight_decay"] == (0.0 if undecayed else 0.01)
        assert all(name.endswith(("bias", "LayerNorm.weight")) == undecayed for name in members)
    assert names == {}
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        logged = [row for row in csv.DictReader(file) if row.get("lr-AdamW/layers.0/no_decay")]
    assert [float(row["lr-AdamW/layers.0/no_decay"]) for row in logged] == pytest.approx(
        [5e-4 * factor(step, total) for step in range(total)]
    )


def test_the_weights_move_by_these_rates(tutorial: Any, tiny_model: str, texts: Path) -> None:
    class FirstStep(L.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.before = tiny.weights(pl_module)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.moved = dict.fromkeys(RATES, 0.0)
            layers = {id(p): g["name"].split("/")[0] for g in trainer.optimizers[0].param_groups for p in g["params"]}
            for name, p in pl_module.named_parameters():
                layer = layers[id(p)]
                self.moved[layer] = max(self.moved[layer], (p - self.before[name]).abs().max().item())

    first = FirstStep()
    trained(tutorial, tiny_model, texts, LayerwiseLR(DECAY, verbose=False), first, warmup=0, max_steps=1)
    # The first step of Adam is the rate times a sign.
    assert first.moved == pytest.approx(RATES, rel=0.02)


def test_at_the_modules_own_rate_everywhere_the_line_changes_no_bit(
    tutorial: Any, tiny_model: str, texts: Path
) -> None:
    _, plain = trained(tutorial, tiny_model, texts, max_epochs=1)
    _, flat = trained(tutorial, tiny_model, texts, LayerwiseLR("flat:lr=1e-3", verbose=False), max_epochs=1)
    for (name, ours), theirs in zip(flat.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_it_learns_and_frozen_layers_stay_as_they_were(
    tutorial: Any, tiny_model: str, texts: Path, tmp_path: Path
) -> None:
    line = LayerwiseLR("decay:lr=1e-2,factor=0.8,freeze=layers.0..layers.0", verbose=False)
    best = ModelCheckpoint(tmp_path, monitor="val_accuracy", mode="max")
    trainer, module = trained(tutorial, tiny_model, texts, line, best, enable_checkpointing=True, max_epochs=4)
    (scores,) = trainer.test(module, datamodule=trainer.datamodule, ckpt_path="best", verbose=False)
    assert scores["val_accuracy"] > 0.8
    fresh = tutorial.TextClassifier(tiny_model)
    for name, parameter in module.model.named_parameters():
        if "encoder.layer" in name:
            same = torch.equal(parameter, fresh.model.get_parameter(name))
            assert same == ("encoder.layer.0." in name), name


def test_a_run_that_is_resumed_from_its_checkpoint_ends_with_the_same_weights(
    tutorial: Any, tiny_model: str, texts: Path, tmp_path: Path
) -> None:
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    options = {"max_epochs": 2, "enable_checkpointing": True}
    _, whole = trained(tutorial, tiny_model, texts, LayerwiseLR(DECAY, verbose=False), saving, **options)
    L.seed_everything(7, verbose=False)
    resumed = tutorial.TextClassifier(tiny_model, learning_rate=1e-3, warmup_steps=WARMUP, weight_decay=0.01)
    trainer = tiny.trainer(LayerwiseLR(DECAY, verbose=False), max_epochs=2)
    data = tutorial.TextDataModule(str(texts), tiny_model)
    trainer.fit(resumed, datamodule=data, ckpt_path=tmp_path / "epoch=0.ckpt")
    for (name, ours), theirs in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.data
@pytest.mark.minilm
def test_pre_trained_weights_on_real_reviews_take_a_preset_as_multiples_of_the_modules_rate(
    tutorial: Any, minilm_path: Path, glue_dir: Path
) -> None:
    recorder = tiny.Recorder()
    line = LayerwiseLR("kenneweg2022-relative", verbose=False)
    data = {"limit": 96, "batch_size": 8, "max_length": 24}
    folder = glue_dir / "glue" / "sst2"
    trainer, _ = trained(tutorial, str(minilm_path), folder, line, recorder, data=data, max_epochs=1)
    total = 96 // 8
    for name, multiple in line.distribution.rates(6).items():
        expected = [1e-3 * multiple * factor(step, total) for step in range(total)]
        assert recorder.rates[name] == pytest.approx(expected, rel=1e-9), name
        assert recorder.rates[f"{name}/no_decay"] == pytest.approx(expected, rel=1e-9), name
    assert len(trainer.optimizers[0].param_groups) == 2 * 8
