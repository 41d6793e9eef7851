"""A tiny BERT in a real Trainer, for the tests of methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification


class Module(L.LightningModule):
    """A tiny BERT with one head; `penalty(module)` is added to the loss in `training_step`, for comparison.

    `dropout` is 0 by default, so that fits with and without a method see the same numbers.
    """

    def __init__(
        self,
        optimizer: Any = torch.optim.SGD,
        lr: float = 0.1,
        penalty: Callable[[Module], torch.Tensor] | None = None,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = BertForSequenceClassification(
            BertConfig(
                **{"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
                **{"intermediate_size": 32, "max_position_embeddings": 16},
                **{"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout},
            )
        )
        self.start = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.make = lambda: optimizer(self.parameters(), lr=lr, **options)
        self.penalty = penalty
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        if self.penalty is not None:
            loss = loss + self.penalty(self)
        return loss

    def configure_optimizers(self) -> Any:
        return self.make()


def batches(count: int = 8, seed: int = 1) -> DataLoader:
    """`count` batches of 4 rows of 6 tokens with random labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 20, (4 * count, 6), generator=generator)
    labels = torch.randint(0, 2, (4 * count,), generator=generator)
    return DataLoader([{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)], batch_size=4)


def fit(
    module: Module, *callbacks: L.Callback, data: DataLoader | None = None, ckpt_path: Any = None, **options
) -> L.Trainer:
    trainer = L.Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False},
        **{"enable_progress_bar": False, "enable_model_summary": False},
        **options,
        callbacks=list(callbacks),
    )
    trainer.fit(module, data or batches(), ckpt_path=ckpt_path)
    return trainer


def weights(module: Module) -> torch.Tensor:
    """All weights in one row."""
    return torch.cat([p.detach().flatten() for p in module.model.parameters()])
