"""Testing a model on a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.tasks import Scorer, Task, TokenSplit, eval_loader

BATCH_SIZE = 128


def evaluate(module: SequenceClassifier, task: Task, split: TokenSplit, pad_token_id: int) -> dict[str, float]:
    """Every metric of `task` on a split, without gradients, in large batches of similar length."""
    scorer = Scorer(task)
    for outputs, labels in _over(module, split, pad_token_id, lambda batch: module(batch, task.head)):
        scorer.update(outputs, labels)
    return scorer.compute()


def vectors_of(module: SequenceClassifier, split: TokenSplit, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """The texts' vectors [n, hidden] (float32) and their labels [n], sorted as the loader does."""
    pairs = _over(module, split, pad_token_id, module.vectors)
    return torch.cat([vectors.float() for vectors, _ in pairs]), torch.cat([labels for _, labels in pairs])


def _over(
    module: SequenceClassifier,
    split: TokenSplit,
    pad_token_id: int,
    compute: Callable[[Mapping[str, Tensor]], Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """What `compute` makes of each batch, on the CPU, and the batch's labels."""
    was_training = module.training
    module.eval()
    bf16 = module.settings.precision == "bf16-mixed"
    pairs = []
    with torch.inference_mode(), torch.autocast(module.device.type, torch.bfloat16, enabled=bf16):
        for batch in eval_loader(split, BATCH_SIZE, pad_token_id):
            moved = {key: value.to(module.device) for key, value in batch.items()}
            pairs.append((compute(moved).cpu(), batch["labels"]))
    module.train(was_training)
    return pairs
