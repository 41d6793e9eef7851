"""A tiny model that learns a new task while an old one is watched."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lr_dist import ForgettingMonitor


def score(module: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits and the labels of a batch."""
    return module.model(input_ids=batch[0]).logits, batch[1]


def accuracy() -> MulticlassAccuracy:
    return MulticlassAccuracy(2, average="micro")


def old_loader(rows: int = 22, **options: Any) -> DataLoader:
    """An old task: its labels follow from the second token. The last batch is a small one."""
    tokens = torch.randint(0, 40, (rows, 7), generator=torch.Generator().manual_seed(5))
    return DataLoader(TensorDataset(tokens, (tokens[:, 1] > 20).long()), **{"batch_size": 4, **options})


def monitor(old: Any = None, **options: Any) -> ForgettingMonitor:
    """Watches one old task every two steps."""
    if "every_n_epochs" not in options:
        options = {"every_n_steps": 2, **options}
    return ForgettingMonitor(old or {"first": old_loader()}, **{"score": score, "metric": accuracy(), **options})


def adamw(module: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=2e-3)


def accuracy_of(model: torch.nn.Module, loader: DataLoader) -> float:
    """Worked out without torchmetrics."""
    was = model.training
    model.eval()
    with torch.no_grad():
        hits = [(model(input_ids=x).logits.argmax(-1) == y).sum().item() for x, y in loader]
    model.train(was)
    return sum(hits) / len(loader.dataset)


__all__ = ["accuracy", "accuracy_of", "adamw", "monitor", "old_loader", "score", "tiny"]
