"""The distance of each layer between two models of one architecture."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny import bert
from transformers import BertConfig, BertForMaskedLM, BertModel

from lr_dist.errors import ConfigurationError, DivergedError, ModelMismatchError, UnsupportedWeightsError
from lr_dist.layers import assign_layers
from lr_dist.retention.drift import drift

LAYERS = ["embeddings", "layers.0", "layers.1", "layers.2", "head"]


def test_the_distance_is_relative_and_over_all_parameters_of_a_layer() -> None:
    before, after = bert(), bert()
    parameters = dict(after.named_parameters())
    with torch.no_grad():
        for name in assign_layers(after).groups["layers.1"]:
            parameters[name].mul_(1.5)
        parameters["classifier.bias"].add_(3.0)
    found = drift(before, after)
    assert list(found) == LAYERS
    head = [p for name, p in before.named_parameters() if name in assign_layers(before).groups["head"]]
    size = math.sqrt(sum(float(p.detach().double().square().sum()) for p in head))
    assert found["layers.1"] == pytest.approx(0.5, rel=1e-6)
    assert found["head"] == pytest.approx(3.0 * math.sqrt(2) / size, rel=1e-6)
    assert [found[layer] for layer in ("embeddings", "layers.0", "layers.2")] == [0.0, 0.0, 0.0]


def test_state_dicts_and_wrapped_models_give_the_same() -> None:
    before, after = bert(), bert(seed=1)
    expected = drift(before, after)
    assert expected["layers.0"] > 0.5
    assert drift(before.state_dict(), after) == expected
    assert drift(before, after.state_dict()) == expected
    assert drift(before.state_dict(), after.state_dict(), like=bert(seed=2).to("meta")) == expected
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in after.state_dict().items()}
    assert drift(before, compiled) == expected


def test_tied_weights_count_once_and_a_file_may_hold_one_of_their_names() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    before = BertForMaskedLM(config)
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.bert.embeddings.word_embeddings.weight.add_(0.1)
    expected = drift(before, after)
    assert expected["embeddings"] > 0
    assert expected["head"] == 0
    kept = after.state_dict()
    del kept["bert.embeddings.word_embeddings.weight"]
    assert drift(before, kept) == expected


def test_another_architecture_is_named_with_what_differs() -> None:
    with pytest.raises(ModelMismatchError, match=r"second lacks .*encoder\.layer\.2.* and 12 more"):
        drift(bert(), bert(layers=2))
    with pytest.raises(ModelMismatchError, match=r"first lacks .*encoder\.layer\.2"):
        drift(bert(layers=2), bert())
    other = bert().state_dict()
    other["classifier.weight"] = torch.zeros(3, 16)
    with pytest.raises(ModelMismatchError, match=r"classifier\.weight \(2, 16\) and \(3, 16\)"):
        drift(bert(), other)
    model = bert()
    with pytest.raises(ModelMismatchError, match="base_model"):
        drift(BertModel(model.config), model)
    assert drift(BertModel(model.config, add_pooling_layer=False), BertModel(model.config, add_pooling_layer=False))


def test_weights_without_numbers_are_named() -> None:
    with pytest.raises(ConfigurationError, match="like=model"):
        drift(bert().state_dict(), bert().state_dict())
    with pytest.raises(UnsupportedWeightsError, match="meta device"):
        drift(bert(), bert().to("meta"))
    broken = bert()
    with torch.no_grad():
        broken.classifier.bias[0] = math.nan
    with pytest.raises(DivergedError, match=r"classifier\.bias"):
        drift(bert(), broken)
    with pytest.raises(ConfigurationError, match="state dict"):
        drift(bert(), {"a": 1})  # type: ignore[dict-item]
