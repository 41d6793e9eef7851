"""What LearningRateMonitor and the loggers show: every group by its name, at the rate that the step uses."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)


def layerwise(distribution: Any = DISTRIBUTION) -> LayerwiseLR:
    return LayerwiseLR(distribution, verbose=False)


def halves(module: Any, optimizer: Any = torch.optim.AdamW, **options: Any) -> Any:
    decayed, rest = [p for p in module.parameters() if p.ndim > 1], [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return optimizer(groups, lr=1e-3, **options)


def logged(folder: Path, column: str) -> list[float]:
    with next(folder.rglob("metrics.csv")).open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def columns(folder: Path) -> set[str]:
    with next(folder.rglob("metrics.csv")).open() as file:
        return set(next(csv.reader(file))) - {"epoch", "step"}


def test_every_group_is_logged_by_name_at_every_step(tmp_path: Path) -> None:
    def configure(module: Any) -> Any:
        optimizer = halves(module)
        return [optimizer], [{"scheduler": sch.StepLR(optimizer, 2, 0.5), "interval": "step"}]

    monitor = LearningRateMonitor(logging_interval="step")
    tiny.fit(tiny.Classifier(configure), layerwise(), monitor, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert columns(tmp_path) == {f"lr-AdamW/{name}{end}" for name in tiny.RATES for end in ("", "/no_decay")}
    for name, rate in tiny.RATES.items():
        rates = [rate, rate, rate / 2, rate / 2, rate / 4, rate / 4, rate / 8, rate / 8]
        assert logged(tmp_path, f"lr-AdamW/{name}") == pytest.approx(rates)
        assert logged(tmp_path, f"lr-AdamW/{name}/no_decay") == pytest.approx(rates)
        assert monitor.lrs[f"lr-AdamW/{name}"] == pytest.approx(rates)


@pytest.mark.parametrize("first", [True, False])
def test_the_rates_are_logged_once_an_epoch_without_a_schedule_in_either_order(first: bool, tmp_path: Path) -> None:
    pair = [LearningRateMonitor(logging_interval="epoch"), layerwise()]
    module = tiny.Classifier(halves)
    tiny.fit(module, *(pair if first else pair[::-1]), logger=CSVLogger(tmp_path), max_epochs=3, log_every_n_steps=1)
    assert logged(tmp_path, "lr-AdamW/layers.1/no_decay") == [2e-4] * 3


def test_momentum_and_weight_decay_are_logged_for_every_group(tmp_path: Path) -> None:
    def configure(module: Any) -> Any:
        optimizer = halves(module, torch.optim.SGD, momentum=0.9)
        cycle = sch.OneCycleLR(optimizer, 1e-3, 8, base_momentum=0.5, max_momentum=0.9, anneal_strategy="linear")
        return [optimizer], [{"scheduler": cycle, "interval": "step", "name": "rate"}]

    monitor = LearningRateMonitor("step", log_momentum=True, log_weight_decay=True)
    tiny.fit(tiny.Classifier(configure), layerwise(), monitor, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    for name in tiny.RATES:
        assert logged(tmp_path, f"rate/{name}-weight_decay") == [0.1] * 8
        assert logged(tmp_path, f"rate/{name}/no_decay-weight_decay") == [0.0] * 8
        momenta = logged(tmp_path, f"rate/{name}-momentum")
        assert momenta == logged(tmp_path, f"rate/{name}/no_decay-momentum")
        assert (max(momenta), min(momenta)) == pytest.approx((0.9, 0.5), abs=0.15)
        # Momentum falls where the rate rises.
        rates = logged(tmp_path, f"rate/{name}")
        assert all((b - a) * (d - c) < 0 for a, b, c, d in zip(rates, rates[1:], momenta, momenta[1:], strict=False))


def test_with_two_optimizers_only_the_transformers_groups_have_layers_names(tmp_path: Path) -> None:
    class Two(tiny.Classifier):
        def __init__(self) -> None:
            super().__init__(None)
            self.automatic_optimization = False
            self.critic = nn.Linear(2, 1)

        def configure_optimizers(self) -> Any:
            return [torch.optim.AdamW(self.critic.parameters(), lr=0.25), halves(self.model)]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            output = self.model(input_ids=batch[0], labels=batch[1])
            self.manual_backward(output.loss + self.critic(output.logits).mean() ** 2)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    monitor = LearningRateMonitor(logging_interval="step")
    tiny.fit(Two(), layerwise(), monitor, logger=CSVLogger(tmp_path), log_every_n_steps=1, max_steps=4)
    # Lightning numbers optimizers of one class from the second on.
    names = {f"lr-AdamW-1/{name}{end}" for name in tiny.RATES for end in ("", "/no_decay")}
    assert columns(tmp_path) == {"lr-AdamW", *names}
    assert logged(tmp_path, "lr-AdamW") == [0.25, 0.25]
    assert logged(tmp_path, "lr-AdamW-1/layers.0") == [3e-5, 3e-5]


def test_the_module_can_log_a_layers_rate_by_its_name(tmp_path: Path) -> None:
    class Logging(tiny.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            rates = {group["name"]: group["lr"] for group in self.optimizers().param_groups}
            self.log("rate", rates["layers.2"])
            return super().training_step(batch, batch_idx)

    tiny.fit(Logging(halves), layerwise(), logger=CSVLogger(tmp_path), log_every_n_steps=4)
    assert logged(tmp_path, "rate") == pytest.approx([5e-4, 5e-4])
