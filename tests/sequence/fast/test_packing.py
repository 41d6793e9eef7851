"""Batches without padding give the same states and gradients as padded ones, on the models that take them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, ElectraConfig, ElectraModel, RobertaConfig, RobertaModel

from lr_dist.layers import assign_layers
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.fast.attention import use_own_attention
from lr_dist.sequence.fast.dropout import use_block_dropout
from lr_dist.sequence.fast.first_token import keep_first_token
from lr_dist.sequence.fast.packing import Packing, first_position, first_states
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.tasks import train_loader

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
PAD = 1
KINDS: list[tuple[Callable[..., nn.Module], object, int]] = [
    (BertModel, BertConfig(**SIZES, pad_token_id=PAD), 0),
    (ElectraModel, ElectraConfig(**SIZES, embedding_size=16, pad_token_id=PAD), 0),
    (RobertaModel, RobertaConfig(**SIZES, pad_token_id=PAD), PAD + 1),
]
BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9], [6, 7, PAD, PAD, PAD], [9, 8, 7, 6, PAD]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]),
    "token_type_ids": torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]),
}


def prepared(model: nn.Module) -> nn.Module:
    use_block_dropout(model)
    use_own_attention(model)
    assert keep_first_token(model, assign_layers(model))
    return model


def test_packing_and_unpacking_are_each_others_inverse():
    packing = Packing.of(BATCH["attention_mask"])
    assert packing.pack(BATCH["input_ids"]).tolist() == [[5, 6, 7, 8, 9, 6, 7, 9, 8, 7, 6]]
    assert packing.first(packing.pack(BATCH["input_ids"])).tolist() == [[5, 6, 9]]
    there = packing.unpack(packing.pack(BATCH["input_ids"]))
    assert there.tolist() == (BATCH["input_ids"] * BATCH["attention_mask"]).tolist()


@pytest.mark.parametrize(("kind", "config", "first"), KINDS)
def test_states_and_gradients_are_those_of_the_padded_batch(kind, config, first):
    torch.manual_seed(0)
    padded = prepared(kind(config).double().eval())
    packed = copy.deepcopy(padded)
    assert first_position(packed, PAD) == first
    batch = {k: v for k, v in BATCH.items() if k != "token_type_ids" or kind is not RobertaModel}
    expected = padded(**batch).last_hidden_state[:, 0]
    found = first_states(packed, batch, first)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    expected.square().sum().backward()
    found.square().sum().backward()
    for (name, ours), theirs in zip(packed.named_parameters(), padded.parameters(), strict=True):
        if theirs.grad is not None and "pooler" not in name:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10, msg=name)


def test_texts_do_not_see_each_other():
    torch.manual_seed(0)
    model = prepared(BertModel(BertConfig(**SIZES)).eval())
    changed = {**BATCH, "input_ids": BATCH["input_ids"].clone()}
    changed["input_ids"][0] = 11
    before, after = first_states(model, BATCH, 0), first_states(model, changed, 0)
    assert not torch.allclose(before[0], after[0])
    assert torch.allclose(before[1:], after[1:], atol=1e-6)


def test_attention_drops_out_in_training_and_every_weight_learns():
    torch.manual_seed(0)
    model = prepared(BertModel(BertConfig(**SIZES), add_pooling_layer=False)).train()
    one, other = (first_states(model, BATCH, 0) for _ in range(2))
    assert not torch.allclose(one, other)
    one.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_with_dropout_states_are_drawn_from_the_distribution_of_the_padded_batch():
    """Mean and variance of every number over many draws; dropout of a third, so that a place without it shows."""
    torch.manual_seed(0)
    config = BertConfig(**SIZES, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3, initializer_range=0.2)
    model = prepared(BertModel(config, add_pooling_layer=False)).train()
    draws = 4000
    many = {name: values.repeat(draws, 1) for name, values in BATCH.items()}
    with torch.no_grad():
        packed = first_states(model, many, 0).unflatten(0, (draws, 3))
        padded = model(**many).last_hidden_state[:, 0].unflatten(0, (draws, 3))
    # Five standard errors; and the variances' own is about 3%.
    noise = ((packed.var(0) + padded.var(0)) / draws).sqrt()
    assert ((packed.mean(0) - padded.mean(0)) / noise).abs().max() < 5
    assert (packed.var(0) / padded.var(0)).log().abs().max() < 0.15


def test_a_model_that_does_not_count_positions_so_stays_padded():
    class Reversed(BertModel):
        """Counts the positions of its inputs from the end, whatever it is told."""

        def forward(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None):
            numbers = torch.arange(input_ids.shape[1]).flip(0)[None]
            return super().forward(input_ids, attention_mask, token_type_ids, numbers)

    torch.manual_seed(0)
    model = Reversed(BertConfig(**SIZES)).eval()
    use_own_attention(model)
    assert keep_first_token(model, assign_layers(model))
    assert first_position(model, 0) is None


def test_a_model_whose_attention_is_its_own_stays_padded():
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES, attn_implementation="eager")).eval()
    use_own_attention(model)
    assert keep_first_token(model, assign_layers(model))
    assert first_position(model, 0) is None


def test_a_bench_packs_and_the_classifier_gives_the_same_outputs(tiny_model):
    settings = SequenceSettings(epochs=1, batch_size=16)
    bench = Bench.prepare(tiny_model, ("demo-sentiment", "demo-entailment"), settings, limit=48)
    view = bench.view()
    assert view.first_position == 0
    heads = {task.head: task.num_outputs for task in bench.tasks}
    packed, padded = (
        SequenceClassifier(
            view.backbone,
            heads,
            reads_first_token=True,
            settings=settings,
            first_position=first,
        ).eval()
        for first in (view.first_position, None)
    )
    padded.load_state_dict(packed.state_dict())
    for batch in train_loader(view.tokens[1].train, 16, 0, view.pad_token_id):
        assert int(batch["attention_mask"].min()) == 0
        torch.testing.assert_close(packed(batch), padded(batch), rtol=1e-4, atol=1e-5)
