"""finetuning-scheduler's own callback beside LayerwiseLR.

Skipped where it is not installed (`pip install finetuning-scheduler==2.14.1`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch import callbacks

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist.names import layer_of

fts = pytest.importorskip("finetuning_scheduler")


def sgd(module: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)


class Seen(callbacks.Callback):
    """At every step: the phase, the layers that have a group, with its rate, and what moved at all."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        phase = next(each for each in trainer.callbacks if isinstance(each, fts.FinetuningScheduler)).curr_depth
        groups = trainer.optimizers[0].param_groups
        rates = {layer_of(group["name"]): group["lr"] for group in groups if group["params"]}
        self.steps.append((phase, rates))


def test_phases_of_the_scheduler_train_each_layer_at_its_own_rate(tmp_path: Path) -> None:
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(
        "0: {params: ['model.classifier.*'], max_transition_epoch: 1}\n"
        "1: {params: ['model.bert.encoder.layer.2.*', 'model.bert.pooler.*'], max_transition_epoch: 2}\n"
        "2: {params: ['model.bert.encoder.layer.[01].*', 'model.bert.embeddings.*'], max_transition_epoch: 4}\n"
    )
    seen, module = Seen(), tiny.Classifier(sgd, scores=[0.1 * i for i in range(10)])
    before = tiny.weights(module)
    scheduler = fts.FinetuningScheduler(ft_schedule=str(schedule), epoch_transitions_only=True)
    best = fts.FTSCheckpoint(
        dirpath=tmp_path / "best", monitor="score", mode="max", save_top_k=1, save_on_train_epoch_end=True
    )
    distribution = LRDistribution.from_dict(tiny.EXPLICIT)
    tiny.fit(
        module,
        *(scheduler, best, LayerwiseLR(distribution, verbose=False), seen),
        max_epochs=9,
        enable_checkpointing=True,
        default_root_dir=tmp_path,
    )
    phases = [phase for phase, _ in seen.steps]
    assert sorted(set(phases)) == [0, 1, 2]
    for phase, rates in seen.steps:
        trained = {0: {"head"}, 1: {"head", "layers.2"}, 2: set(tiny.RATES)}[phase]
        assert set(rates) == trained
        assert rates == pytest.approx({layer: tiny.RATES[layer] for layer in trained})
    after = tiny.weights(module)
    assert all(not torch.equal(after[name], before[name]) for name in after if "embeddings.word" in name)
