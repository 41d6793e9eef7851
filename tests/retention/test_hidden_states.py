"""The hidden states of every layer, as the models themselves return them."""

from __future__ import annotations

import random

import pytest
import torch
from tiny import bert
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    T5Config,
    T5EncoderModel,
    T5Model,
    XLNetConfig,
    XLNetModel,
)

from lr_dist.errors import ConfigurationError
from lr_dist.retention.hidden_states import hidden_states

SMALL = {"vocab_size": 40}
MODELS = {
    "bert": lambda: BertForMaskedLM(
        BertConfig(**SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    ),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(**SMALL, dim=16, n_layers=2, n_heads=2, hidden_dim=32)),
    "gpt2": lambda: GPT2Model(GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)),
    "t5 encoder": lambda: T5EncoderModel(T5Config(**SMALL, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)),
    "xlnet": lambda: XLNetModel(XLNetConfig(**SMALL, d_model=16, n_layer=2, n_head=2, d_inner=32)),
}


def padded(examples: int = 5, tokens: int = 6) -> dict[str, Tensor]:
    ids = torch.randint(1, 40, (examples, tokens), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(tokens) < torch.tensor([tokens, *range(2, examples + 1)])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": ids[:, 0]}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("examples", [5, 6])  # 6 examples of 6 tokens: the dimensions cannot be told by their size
def test_they_are_those_that_the_model_returns(kind: str, examples: int) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    batch = padded(examples)
    found = hidden_states(model, [batch], pool="tokens")
    with torch.no_grad():
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert list(found) == ["embeddings", "layers.0", "layers.1"]
    keep = batch["attention_mask"].bool()
    # Of the last layer some models return the states after their final norm.
    for layer, expected in list(zip(found, states, strict=True))[:-1]:
        torch.testing.assert_close(found[layer], expected[keep])
    assert found["layers.1"].shape == found["layers.0"].shape


def test_the_rows_are_means_first_tokens_or_all_tokens_of_the_texts() -> None:
    model, batch = bert().eval(), padded()
    states = {pool: hidden_states(model, [batch], pool=pool)["layers.1"] for pool in ("mean", "first", "tokens")}
    mask = batch["attention_mask"].bool()
    assert len(states["tokens"]) == int(mask.sum())
    assert len(states["mean"]) == len(states["first"]) == 5
    of_second = states["tokens"][6:8]  # the second text has two tokens
    torch.testing.assert_close(states["mean"][1], of_second.mean(0))
    torch.testing.assert_close(states["first"][1], of_second[0])


def test_padding_and_batches_change_nothing() -> None:
    model, batch = bert().eval(), padded()
    whole = hidden_states(model, [batch])
    one_by_one = [
        {name: value[i : i + 1, : batch["attention_mask"][i].sum()] for name, value in batch.items() if value.ndim > 1}
        for i in range(5)
    ]
    for layer, states in hidden_states(model, one_by_one).items():
        torch.testing.assert_close(states, whole[layer], atol=1e-6, rtol=1e-5)


def test_the_model_is_afterwards_as_it_was() -> None:
    model = bert(dropout=0.5).train()
    model.bert.encoder.layer[1].eval()
    modes = [part.training for part in model.modules()]
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(1), random.random()
    torch.manual_seed(3)
    random.seed(3)
    first = hidden_states(model, [padded()])
    assert (torch.rand(1), random.random()) == expected
    assert [part.training for part in model.modules()] == modes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    # Without dropout: the same again.
    assert all(
        torch.equal(a, b) for a, b in zip(first.values(), hidden_states(model, [padded()]).values(), strict=True)
    )


def test_hooks_are_removed_and_the_mode_is_restored_after_an_error() -> None:
    model = bert().train()

    def fails(module: nn.Module, batch: object) -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        hidden_states(model, [padded()], run=fails)
    assert model.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_pairs_and_tensors_are_batches_too_and_a_compiled_model_is_read() -> None:
    model = bert().eval()
    ids = padded()["input_ids"] + 1
    expected = hidden_states(model, [{"input_ids": ids}])["layers.2"]
    assert torch.equal(hidden_states(model, [(ids, ids[:, 0])])["layers.2"], expected)
    assert torch.equal(hidden_states(model, [ids])["layers.2"], expected)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(ids)
    torch.testing.assert_close(hidden_states(compiled, [ids])["layers.2"], expected)


def test_wrong_input_is_named() -> None:
    model = bert()
    with pytest.raises(ConfigurationError, match="pool must be mean, first or tokens, not 'median'"):
        hidden_states(model, [padded()], pool="median")
    with pytest.raises(ConfigurationError, match="no texts"):
        hidden_states(model, [])
    with pytest.raises(ConfigurationError, match="attention_mask of the shape"):
        hidden_states(model, [{"input_ids": torch.ones(3, 4).long(), "attention_mask": torch.ones(3, 1).long()}])
    with pytest.raises(ConfigurationError, match="no token"):
        hidden_states(model, [{"input_ids": torch.ones(3, 4).long(), "attention_mask": torch.zeros(3, 4).long()}])
    with pytest.raises(ConfigurationError, match=r"did not call layers\.0"):
        hidden_states(model, [padded()], run=lambda module, batch: None)
    with pytest.raises(ConfigurationError, match=r"input_ids.* Give batches with the keywords"):
        hidden_states(model, [{"tokens": torch.ones(3, 4).long()}])
    t5 = T5Model(T5Config(**SMALL, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    with pytest.raises(ConfigurationError, match=r"get_encoder\(\)"):
        hidden_states(t5, [padded()])
