"""Callbacks that go back to a checkpoint, or read one, while the run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)


def layerwise() -> LayerwiseLR:
    return LayerwiseLR(DISTRIBUTION, verbose=False)


def scheduled(module: Any) -> Any:
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    return [optimizer], [{"scheduler": sch.LambdaLR(optimizer, lambda step: 1 / (1 + step)), "interval": "step"}]


def restore(trainer: Any, path: Path) -> None:
    """What FinetuningScheduler does: weights, optimizers and schedules, not loops and callbacks."""
    connector = trainer._checkpoint_connector
    connector.resume_start(checkpoint_path=str(path))
    connector.restore_model()
    connector.restore_optimizers_and_schedulers()
    connector.resume_end()


class GoesBack(L.Callback):
    """Saves after two steps, and goes back there before the sixth: once with everything, or with callbacks too."""

    def __init__(self, folder: Path, *, callbacks: bool = False) -> None:
        self.path, self.callbacks = folder / "best.ckpt", callbacks
        self.saved: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            trainer.save_checkpoint(self.path)
            self.saved = tiny.weights(pl_module)
        if batch_idx == 5:
            restore(trainer, self.path)
            if self.callbacks:
                trainer._checkpoint_connector.resume_start(checkpoint_path=str(self.path))
                trainer._checkpoint_connector.restore_callbacks()
                trainer._checkpoint_connector.resume_end()
            after = tiny.weights(pl_module)
            assert all(torch.equal(after[name], self.saved[name]) for name in after)


class Finetuned(BaseFinetuning):
    """Unfreezes nothing; it is there, and would make a resumed run be refused."""

    def freeze_before_training(self, pl_module: Any) -> None:
        pass

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        pass


@pytest.mark.parametrize("callbacks", [False, True])
def test_a_run_that_goes_back_to_its_own_checkpoint_has_the_rates_of_that_step(tmp_path: Path, callbacks: bool) -> None:
    rates = tiny.Recorder()
    tiny.fit(tiny.Classifier(scheduled), layerwise(), Finetuned(), GoesBack(tmp_path, callbacks=callbacks), rates)
    for name, rate in tiny.RATES.items():
        assert rates.rates[name] == pytest.approx([rate / (1 + step) for step in (0, 1, 2, 3, 4, 2, 3, 4)]), name


def test_reading_another_runs_checkpoint_while_training_changes_nothing(tmp_path: Path) -> None:
    other = tiny.fit(tiny.Classifier(scheduled))
    other.save_checkpoint(tmp_path / "teacher.ckpt")

    class Reads(L.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            read = trainer.strategy.load_checkpoint(tmp_path / "teacher.ckpt", weights_only=True)
            assert "LayerwiseLR" not in read["callbacks"]

    rates = tiny.Recorder()
    tiny.fit(tiny.Classifier(scheduled), layerwise(), Reads(), rates)
    assert rates.rates["head"] == pytest.approx([7e-3 / (1 + step) for step in range(8)])


def test_after_a_run_the_next_one_is_checked_again(tmp_path: Path) -> None:
    other = tiny.fit(tiny.Classifier(scheduled))
    other.save_checkpoint(tmp_path / "without.ckpt")
    ours = layerwise()
    tiny.fit(tiny.Classifier(scheduled), ours)
    with pytest.raises(RuntimeError, match="run without LayerwiseLR"):
        tiny.fit(tiny.Classifier(scheduled), ours, ckpt=tmp_path / "without.ckpt")


class Validated(tiny.Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.model(input_ids=batch[0], labels=batch[1]).loss)


def sgd(module: Any) -> Any:
    return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)


@pytest.mark.parametrize("restore_best", [True, False])
def test_finetuning_scheduler_unfreezes_at_each_layers_rate(tmp_path: Path, restore_best: bool) -> None:
    fts = pytest.importorskip("finetuning_scheduler")
    phases = [
        r"model\.(classifier|bert\.pooler)\..*",
        r"model\.bert\.encoder\.layer\.2\..*",
        r"model\.bert\.encoder\..*[01]\..*",
    ]
    schedule = {
        depth: {"params": [pattern], **({"max_transition_epoch": depth + 1} if depth < 2 else {})}
        for depth, pattern in enumerate(phases)
    }
    rates = tiny.Recorder()
    scheduler = fts.FinetuningScheduler(ft_schedule=schedule, restore_best=restore_best)
    checkpoints = fts.FTSCheckpoint(dirpath=tmp_path, monitor="val_loss", save_top_k=2)
    stopping = fts.FTSEarlyStopping(monitor="val_loss", patience=10)
    trainer = tiny.trainer(
        layerwise(), scheduler, stopping, checkpoints, rates, max_epochs=4, enable_checkpointing=True,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Validated(sgd), tiny.batches(), tiny.batches(4))
    assert {name: set(seen) for name, seen in rates.rates.items()} == {
        name: {rate} for name, rate in tiny.RATES.items() if name != "embeddings"
    }
    assert {name: len(seen) for name, seen in rates.rates.items()} == {
        "head": 32, "layers.2": 24, "layers.0": 16, "layers.1": 16,
    }  # fmt: skip
