"""Starts: folders with a fine-tuned classifier and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lr_dist.sequence.bench import Bench
from lr_dist.tasks import Task, eval_loader

# So small that a tanh after it changes nothing that counts.
SMALL = 2.0**-10


def tokenizer_of(folder: str | Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def save_start(folder: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def bert_of(base: str, labels: tuple[str, ...], backbone: dict[str, torch.Tensor], head: Any) -> Any:
    """A BERT of transformers with these weights, whose pooler passes the first state on to the linear head."""
    from transformers import AutoConfig, BertForSequenceClassification

    config = AutoConfig.from_pretrained(base, num_labels=len(labels), id2label=dict(enumerate(labels)))
    model = BertForSequenceClassification(config)
    model.bert.load_state_dict(backbone, strict=False)
    with torch.no_grad():
        model.bert.pooler.dense.weight.copy_(SMALL * torch.eye(config.hidden_size))
        model.bert.pooler.dense.bias.zero_()
        model.classifier.weight.copy_(head.weight / SMALL)
        model.classifier.bias.copy_(head.bias)
    return model


def bert_with_head(base: str, task: Task, folder: Path) -> str:
    """The tiny BERT with a pooler and a head for the task, at random."""
    from transformers import AutoConfig, BertForSequenceClassification

    names = {"num_labels": task.num_outputs, "id2label": dict(enumerate(task.classes))}
    torch.manual_seed(1)
    model = BertForSequenceClassification.from_pretrained(base, config=AutoConfig.from_pretrained(base, **names))
    return save_start(folder, model, tokenizer_of(base))


def score_of(folder: str, bench: Bench) -> float:
    """Accuracy of the folder's own classifier on validation, by transformers alone."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    task, split = bench.tasks[0], bench.tokens[0].validation
    order = [[x.lower() for x in model.config.id2label.values()].index(name) for name in task.classes]
    right = 0
    with torch.inference_mode():
        for batch in eval_loader(split, 64, bench.tokens[0].pad_token_id):
            labels = batch.pop("labels")
            right += int((model(**batch).logits[:, order].argmax(-1) == labels).sum())
    return right / len(split)
