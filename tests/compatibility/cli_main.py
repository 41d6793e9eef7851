"""A program with a LightningCLI, as a user writes one: `python cli_main.py fit --config configs/callback.yaml`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.cli import LightningCLI
from torch.optim import lr_scheduler

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny


class Model(tiny.Classifier):
    """An optimizer of its own."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__(lambda module: torch.optim.AdamW(module.parameters(), lr=lr))


class Bare(L.LightningModule):
    """No `configure_optimizers`: the command line or the configuration gives optimizer and schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny.bert()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.model(input_ids=batch[0], labels=batch[1]).loss
        self.log("score", 1.0)
        return loss


class Data(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return tiny.batches()


class Slow(lr_scheduler.LRScheduler):
    """A schedule that LayerwiseLR does not know: three quarters of each group's rate."""

    def get_lr(self) -> Any:
        return [0.75 * base for base in self.base_lrs]


def main(arguments: Any = None) -> LightningCLI:
    return LightningCLI(
        L.LightningModule,
        Data,
        subclass_mode_model=True,
        save_config_kwargs={"overwrite": True},
        args=arguments,
    )


if __name__ == "__main__":
    for group in main().trainer.optimizers[0].param_groups:
        print("group", group["name"], group["lr"])
