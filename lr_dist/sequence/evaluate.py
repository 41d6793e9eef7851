"""Testing a model on a task."""

from __future__ import annotations

import torch

from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.tasks import Scorer, Task, TokenSplit, eval_loader

BATCH_SIZE = 128


def evaluate(module: SequenceClassifier, task: Task, split: TokenSplit, pad_token_id: int) -> dict[str, float]:
    """Every metric of `task` on a split, without gradients, in large batches of similar length."""
    was_training = module.training
    module.eval()
    scorer = Scorer(task)
    bf16 = module.settings.precision == "bf16-mixed"
    with torch.inference_mode(), torch.autocast(module.device.type, torch.bfloat16, enabled=bf16):
        for batch in eval_loader(split, BATCH_SIZE, pad_token_id):
            moved = {key: value.to(module.device) for key, value in batch.items()}
            scorer.update(module(moved, task.head).cpu(), batch["labels"])
    module.train(was_training)
    return scorer.compute()
