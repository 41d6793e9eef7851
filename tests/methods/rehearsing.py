"""Two tasks, real models small enough for a test, and a real Trainer to learn one after the other."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from lr_dist.methods import Method


class Linear(L.LightningModule):
    """y = w x with two weights, no bias, squared error, SGD."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -1.0]))
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def points(*rows: tuple[float, float, float], batch_size: int | None = None) -> DataLoader:
    """Examples (x1, x2, y)."""
    table = torch.tensor(rows, dtype=torch.float32)
    return DataLoader(TensorDataset(table[:, :2], table[:, 2]), batch_size=batch_size or len(rows))


class Classifier(L.LightningModule):
    """A tiny BERT, as a user's module holds it."""

    def __init__(self, optimizer: Any = torch.optim.SGD, lr: float = 0.1, dropout: float = 0.0, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = BertForSequenceClassification(
            BertConfig(
                **{"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
                **{"intermediate_size": 32, "max_position_embeddings": 16, "initializer_range": 0.2},
                **{"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout},
            )
        )
        self.optimizer, self.options = optimizer, {"lr": lr, **options}
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), **self.options)


def texts(count: int = 8, seed: int = 1, batch_size: int = 4) -> DataLoader:
    """`count` batches of 4 random texts with labels that follow from the first token and the seed."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 20, (4 * count, 6), generator=generator)
    labels = ((ids[:, 0] + seed) % 3 > 0).long()
    rows = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    return DataLoader(rows, batch_size=batch_size)


def fit(module: L.LightningModule, *callbacks: L.Callback, data: DataLoader, ckpt: Any = None, **options: Any) -> Any:
    """Fit silently on one CPU for one epoch, and return the Trainer."""
    trainer = L.Trainer(
        **{
            **{"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False},
            **{"enable_progress_bar": False, "enable_model_summary": False},
            **options,
        },
        callbacks=list(callbacks),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.fit(module, data, ckpt_path=ckpt)
    return trainer


def learned(method: Method, module: L.LightningModule, data: DataLoader) -> Method:
    """The method after a first stage that left the module as it is."""
    method.stage_started(module)
    method.end_stage(module, data)
    return method


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Drawn(L.Callback):
    """Notes the examples that a method draws, in the order of the steps."""

    def __init__(self, method: Any) -> None:
        self.steps: list[list[Any]] = []
        portions = method._portions

        def noting(*args: Any) -> Any:
            found = portions(*args)
            self.steps.append([(portion.batch, portion) for portion, _ in found])
            return found

        method._portions = noting


class SaveAfter(L.Callback):
    """Writes a checkpoint after so many batches, also in the middle of a window of accumulation."""

    def __init__(self, batches: int, path: Any) -> None:
        self.left, self.path = batches, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)


in_every_way_of_training = pytest.mark.parametrize(
    ("module", "trainer"),
    [
        ({}, {}),
        ({}, {"accumulate_grad_batches": 2}),
        ({}, {"gradient_clip_val": 0.05}),
        ({"optimizer": torch.optim.AdamW, "lr": 1e-3, "eps": 1e-4, "fused": True}, {"accumulate_grad_batches": 4}),
        ({}, {"precision": "bf16-mixed"}),
        ({}, {"plugins": "scaled"}),
    ],
    ids=["plain", "accumulated", "clipped", "fused", "bf16", "scaled"],
)


def with_scaler(options: dict) -> dict:
    """The Trainer's options of `in_every_way_of_training`, with a gradient scaler for `scaled`."""
    if options.get("plugins") != "scaled":
        return options
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))]}
