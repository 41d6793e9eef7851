"""Leaving unused word embeddings out changes nothing but the work."""

from __future__ import annotations

from dataclasses import replace

import comparison
import torch
from torch import nn

from lr_dist import LRDistribution
from lr_dist.models import load_backbone, load_tokenizer
from lr_dist.runs.precision import choose_precision
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.fast.view import View
from lr_dist.sequence.fast.vocabulary import shrink_vocabulary
from lr_dist.sequence.observers import TestAfterStages
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.tasks import load_tasks, tokenize_task


def _tasks(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    tasks = load_tasks(comparison.TASKS, limit=64)
    return tasks, [tokenize_task(task, tokenizer, 16) for task in tasks], tokenizer


def test_a_run_on_the_used_rows_alone_is_the_same_run_bit_for_bit(tiny_model):
    tasks, tokens, tokenizer = _tasks(tiny_model)
    backbone = load_backbone(tiny_model)
    # Rows that no text uses, so that there is something to leave out whatever the tiny tokenizer holds.
    backbone.resize_token_embeddings(backbone.config.vocab_size + 50)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    smaller, renumbered, pad = shrink_vocabulary(backbone, tokens)
    settings = SequenceSettings(epochs=1, batch_size=16, precision="32-true")
    views = (
        View(backbone, tuple(tokens), tokenizer.pad_token_id, True),
        View(smaller, tuple(renumbered), pad, True),
    )
    arm = Arm.of(LRDistribution.flat(1e-2))
    bench = Bench(settings, choose_precision(settings.precision), backbone, tokenizer, {}, tasks, tokens, [])
    runs = [run_sequence(bench.with_view(view), arm, 0, TestAfterStages()) for view in views]
    assert runs[0].matrix == runs[1].matrix
    rows = [model.get_input_embeddings().num_embeddings for model in (backbone, smaller)]
    assert rows[1] <= rows[0] - 50
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_every_token_keeps_its_vector(tiny_model):
    _, tokens, _ = _tasks(tiny_model)
    backbone = load_backbone(tiny_model)
    smaller, renumbered, pad = shrink_vocabulary(backbone, tokens)
    old, new = backbone.get_input_embeddings(), smaller.get_input_embeddings()
    for task, other in zip(tokens, renumbered, strict=True):
        for split in ("train", "dev", "validation"):
            ids = torch.as_tensor(getattr(task, split).rows.features["input_ids"].astype("int64"))
            again = torch.as_tensor(getattr(other, split).rows.features["input_ids"].astype("int64"))
            assert torch.equal(old.weight[ids], new.weight[again])
    assert torch.equal(old.weight[tokens[0].pad_token_id], new.weight[pad])
    assert renumbered[0].pad_token_id == pad


def test_a_model_whose_embedding_is_used_twice_is_left_alone(tiny_model):
    _, tokens, _ = _tasks(tiny_model)
    backbone = load_backbone(tiny_model)
    backbone.output = nn.Linear(1, 1)
    backbone.output.weight = backbone.get_input_embeddings().weight
    model, data, pad = shrink_vocabulary(backbone, [replace(task) for task in tokens])
    assert model is backbone
    assert data[0].train.rows is tokens[0].train.rows
    assert pad == tokens[0].pad_token_id
