"""Per-example gradients of whole batches, against a loop over the examples, for the architectures that differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
)

from lr_dist.methods.per_example import PerExampleSums

SMALL = {
    **{"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "max_position_embeddings": 16, "initializer_range": 0.2, "pad_token_id": 0},
}


class Classifier(nn.Module):
    def __init__(self, model: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(width, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return self.head(self.model(**inputs).last_hidden_state[:, 0])


class MaskedLM(nn.Module):
    """With the decoder's weight tied to the embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.model = BertForMaskedLM(BertConfig(**SMALL))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["input_ids"]).logits[:, 1, :3]


class Functional(nn.Module):
    """Uses a weight outside of the module that owns it, which no hook sees."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.layer = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.layer(self.embedding(batch["input_ids"]).mean(1))
        return self.head(nn.functional.linear(hidden, self.layer.weight))


class Own(nn.Module):
    """A parameter in a module of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.scale = nn.Parameter(torch.ones(16))
        self.head = nn.Linear(16, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head((self.embedding(batch["input_ids"]) * self.scale).mean(1))


def _gpt2() -> nn.Module:
    config = GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    return Classifier(GPT2Model(config))  # Conv1D in place of Linear


def _llama() -> nn.Module:
    config = {key: value for key, value in SMALL.items() if key != "pad_token_id"}
    return Classifier(LlamaModel(LlamaConfig(**config)))  # RMSNorm


def _distilbert() -> nn.Module:
    config = DistilBertConfig(vocab_size=30, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=16)
    return Classifier(DistilBertModel(config))


# Model -> whether whole batches can be used.
MODELS = {
    "bert": (lambda: Classifier(BertModel(BertConfig(**SMALL))), True),
    "roberta": (lambda: Classifier(RobertaModel(RobertaConfig(**SMALL))), True),
    "distilbert": (_distilbert, True),
    "gpt2": (_gpt2, False),
    "llama": (_llama, False),
    "albert, one layer used twice": (
        lambda: Classifier(AlbertModel(AlbertConfig(**SMALL, embedding_size=8))),
        False,
    ),
    "tied weights": (MaskedLM, False),
    "a weight used outside of its module": (Functional, False),
    "a parameter of its own": (Own, False),
}


def _batch(examples: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 30, (examples, 6), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0  # padded
    ids[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(examples) % 3}


def _losses(model: nn.Module) -> Any:
    return lambda batch, first: nn.functional.cross_entropy(model(batch), batch["labels"], reduction="none")


def _by_hand(model: nn.Module, batch: dict[str, Tensor], function: Any) -> dict[str, Tensor]:
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for index in range(len(batch["labels"])):
        model.zero_grad()
        _losses(model)({key: value[index : index + 1] for key, value in batch.items()}, index).sum().backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                sums[name] += function(p.grad.clone())
    model.zero_grad()
    return sums


@pytest.mark.parametrize("function", [Tensor.square_, Tensor.abs_])
@pytest.mark.parametrize("name", MODELS)
def test_the_sum_over_a_batch_is_that_of_its_examples_one_by_one(name, function):
    torch.manual_seed(0)
    make, whole = MODELS[name]
    model = make().eval()
    sums = PerExampleSums(model, dict(model.named_parameters()), _losses(model), function)
    sums.add(_batch())
    sums.add(_batch(3))
    assert sums._whole_batches is whole
    assert sums.examples == 8
    first, second = _by_hand(model, _batch(), function), _by_hand(model, _batch(3), function)
    largest = max(total.max() for total in first.values())
    assert largest > 1e-3
    for parameter in first:
        torch.testing.assert_close(
            sums.sums[parameter], first[parameter] + second[parameter], rtol=1e-4, atol=float(1e-6 * largest)
        )


def test_a_batch_of_one_example_decides_nothing():
    model = MODELS["bert"][0]().eval()
    sums = PerExampleSums(model, dict(model.named_parameters()), _losses(model), Tensor.square_)
    sums.add(_batch(2) | {key: value[:1] for key, value in _batch(2).items()})
    assert sums._whole_batches is None
    sums.add(_batch())
    assert sums._whole_batches is True


def test_only_the_parameters_that_are_asked_for():
    """With the others frozen or not, and gradients and flags of all as before."""
    model = MODELS["bert"][0]().eval()
    parameters = {name: p for name, p in model.named_parameters() if "layer.1" in name}
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.model.embeddings.requires_grad_(False)
    before = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    sums = PerExampleSums(model, parameters, _losses(model), Tensor.square_)
    sums.add(_batch())
    assert sums._whole_batches is True
    assert {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()} == before
    expected = _by_hand(model, _batch(), Tensor.square_)
    for name, total in sums.sums.items():
        torch.testing.assert_close(total, expected[name], rtol=1e-4, atol=1e-8)
    assert not any(module._forward_hooks for module in model.modules())
