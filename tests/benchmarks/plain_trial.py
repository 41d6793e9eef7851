"""A search's trial as one writes it down first: what `search_throughput.py` measures lr-dist's trials against.

Plain PyTorch in fp32, batches in random order padded to their longest text, texts tokenised in the loop, one Adam and
one schedule a layer group (as the code of arXiv 2404.01317 does), everything loaded anew. Data, model, epochs, rates,
schedule, dropout and what is tested after each epoch are those of lr-dist's own trial.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from lr_dist.models import load_backbone, load_tokenizer
from lr_dist.tasks import Scorer, Task, load_tasks


def plain_trial(
    names: list[str],
    lr: float,
    seed: int,
    *,
    epochs: int,
    limit: int,
    dev_size: int,
    batch_size: int,
    data_dir: str | None,
) -> dict[str, Any]:
    """Learn the tasks one after the other; seconds from loading to the last score, and the final scores."""
    began, cpu = time.perf_counter(), time.process_time()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tasks = load_tasks(names, data_dir=data_dir, limit=limit, dev_size=dev_size)
    tokenizer, backbone = load_tokenizer("minilm"), load_backbone("minilm")
    heads = nn.ModuleDict({task.head: nn.Linear(backbone.config.hidden_size, task.num_outputs) for task in tasks})
    loading = {"loading_seconds": time.perf_counter() - began, "loading_cpu_seconds": time.process_time() - cpu}
    scores: dict[str, float] = {}
    train_seconds = 0.0
    for index, task in enumerate(tasks):
        head = heads[task.head]
        steps = epochs * -(-len(task.train) // batch_size)
        optimizers = [torch.optim.Adam(group, lr=lr) for group in _groups(backbone, head)]
        schedules = [get_cosine_schedule_with_warmup(o, round(0.1 * steps), steps) for o in optimizers]
        for _ in range(epochs):
            backbone.train()
            epoch_began = time.perf_counter()
            rows = rng.sample(range(len(task.train)), len(task.train))
            for inputs, labels in _batches(task.train, rows, tokenizer, batch_size):
                logits = head(nn.functional.dropout(backbone(**inputs).last_hidden_state[:, 0], 0.1))
                loss = nn.functional.cross_entropy(logits, labels)
                loss.backward()
                for optimizer, schedule in zip(optimizers, schedules, strict=True):
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
            train_seconds += time.perf_counter() - epoch_began
            for begun in tasks[: index + 1]:
                scores[begun.name] = _score(backbone, heads[begun.head], begun, tokenizer, batch_size)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        **loading,
        "train_seconds": train_seconds,
        "final": [scores[task.name] for task in tasks],
    }


def _groups(backbone: Any, head: nn.Module) -> list[list[nn.Parameter]]:
    parts = [backbone.embeddings, *backbone.encoder.layer, head]
    return [list(part.parameters()) for part in parts]


def _batches(split: Any, rows: list[int], tokenizer: Any, size: int) -> Iterator[tuple[Any, Tensor]]:
    pair = "text_b" in split.column_names
    for start in range(0, len(rows), size):
        examples = split[rows[start : start + size]]
        texts = (examples["text_a"], examples["text_b"]) if pair else (examples["text_a"],)
        encoded = tokenizer(*texts, truncation=True, max_length=128, padding=True, return_tensors="pt")
        yield encoded, torch.tensor(examples["label"])


def _score(backbone: nn.Module, head: nn.Module, task: Task, tokenizer: Any, size: int) -> float:
    backbone.eval()
    scorer = Scorer(task)
    with torch.no_grad():
        for inputs, labels in _batches(task.dev, list(range(len(task.dev))), tokenizer, size):
            scorer.update(head(backbone(**inputs).last_hidden_state[:, 0]), labels)
    return scorer.compute()[task.primary]
