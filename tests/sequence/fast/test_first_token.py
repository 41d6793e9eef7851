"""Cutting the last layer to the first token changes no score and no gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
)

from lr_dist.layers import assign_layers
from lr_dist.sequence.fast.attention import use_own_attention
from lr_dist.sequence.fast.dropout import use_block_dropout
from lr_dist.sequence.fast.first_token import keep_first_token

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
KINDS = [
    (BertModel, BertConfig(**SIZES)),
    (RobertaModel, RobertaConfig(**SIZES)),
    (ElectraModel, ElectraConfig(**SIZES, embedding_size=16)),
]
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [6, 7, 8, 1, 1]])
ATTENDS = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def first_state(model: nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS, attention_mask=ATTENDS).last_hidden_state[:, 0]


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_the_first_tokens_state_and_every_gradient_stay(kind: type, config: object) -> None:
    torch.manual_seed(0)
    whole = kind(config).double().eval()
    cut = copy.deepcopy(whole)
    assert keep_first_token(cut, assign_layers(cut))
    assert cut(input_ids=TOKENS).last_hidden_state.shape == (2, 1, 32)
    expected, found = first_state(whole), first_state(copy.deepcopy(cut))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    first_state(whole).square().sum().backward()
    first_state(cut).square().sum().backward()
    for (name, ours), theirs in zip(cut.named_parameters(), whole.parameters(), strict=True):
        if theirs.grad is not None and "pooler" not in name:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10, msg=name)


def test_it_works_in_training_with_block_dropout() -> None:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES))
    use_block_dropout(model)
    use_own_attention(model)
    assert keep_first_token(model, assign_layers(model))
    first_state(model.train()).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "layer.2." in n)


def test_a_model_of_another_shape_is_left_alone() -> None:
    model = DistilBertModel(DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=50)).eval()
    assert not keep_first_token(model, assign_layers(model))
    assert model(input_ids=TOKENS).last_hidden_state.shape == (2, 5, 32)


def test_a_model_whose_first_token_would_change_is_left_alone() -> None:
    class Mixed(BertModel):
        """Its states are moved on by one after the layers, so the first one is the last token's."""

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> object:
            outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask)
            outputs.last_hidden_state = outputs.last_hidden_state.roll(1, dims=1)
            return outputs

    torch.manual_seed(0)
    model = Mixed(BertConfig(**SIZES)).eval()
    assert not keep_first_token(model, assign_layers(model))
    assert model(input_ids=TOKENS).last_hidden_state.shape == (2, 5, 32)


def test_a_model_that_cannot_be_computed_cut_is_left_as_it_was() -> None:
    class Whole(BertModel):
        """Its own code reads every token's state."""

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> object:
            outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask)
            outputs.last_hidden_state = outputs.last_hidden_state.view(*input_ids.shape, -1)
            assert outputs.last_hidden_state.shape[-1] == self.config.hidden_size, "tokens are missing"
            return outputs

    model = Whole(BertConfig(**SIZES)).train()
    assert not keep_first_token(model, assign_layers(model))
    assert model.training
    assert model(input_ids=TOKENS).last_hidden_state.shape == (2, 5, SIZES["hidden_size"])
