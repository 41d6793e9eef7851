"""The score with one layer's weights exchanged; the model ends as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import tiny
import torch

from lr_dist.errors import ConfigurationError, ModelMismatchError, ScoringError
from lr_dist.layers import assign_layers
from lr_dist.retention.layer_probe import layer_probe

LAYERS = ["embeddings", "layers.0", "layers.1", "layers.2", "head"]


def changed(model: torch.nn.Module, *layers: str) -> torch.nn.Module:
    """A copy with other weights in some layers."""
    other = copy.deepcopy(model)
    names = {name for layer in layers for name in assign_layers(model).groups[layer]}
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name in names:
                parameter.add_(0.5)
    return other


def total(model: torch.nn.Module) -> float:
    """A score in which every layer has a known share: the sum of its weights in float64."""
    return sum(float(p.detach().double().sum()) for p in model.parameters())


def test_each_layer_gives_back_what_its_change_took() -> None:
    before = tiny.bert()
    after = changed(before, "layers.1", "head")
    probe = layer_probe(after, before, total)
    sizes = {
        layer: sum(dict(before.named_parameters())[name].numel() for name in names)
        for layer, names in assign_layers(before).groups.items()
    }
    # Layers that did not change are not scored.
    assert list(probe.exchanged) == ["layers.1", "head"]
    assert probe.gain == pytest.approx({layer: -0.5 * sizes[layer] for layer in ("layers.1", "head")}, rel=1e-4)
    assert probe.score == total(after)
    assert probe.all_exchanged == pytest.approx(total(before), rel=1e-6)
    # The other way round: what the change of one layer alone costs.
    forward = layer_probe(before, after.state_dict(), total, layers=["embeddings", "layers.1"])
    assert forward.gain["layers.1"] == pytest.approx(0.5 * sizes["layers.1"], rel=1e-4)
    assert forward.gain["embeddings"] == 0


def test_it_finds_the_layer_that_a_real_training_made_forget() -> None:
    # Only layers.2 learns the second task, so only it can have forgotten.
    module = tiny.Classifier(lambda m: torch.optim.AdamW(m.model.bert.encoder.layer[2].parameters(), lr=5e-2))
    before = copy.deepcopy(module.model)
    tiny.fit(module, data=tiny.batches(8, seed=3))
    tokens, labels = tiny.batches().dataset.tensors

    def likelihood(model: Any) -> float:
        model.eval()
        with torch.no_grad():
            return -float(model(input_ids=tokens, labels=labels).loss)

    probe = layer_probe(module.model, before, likelihood)
    assert list(probe.exchanged) == ["layers.2"]
    assert probe.exchanged["layers.2"] == probe.all_exchanged == likelihood(before)
    assert probe.gain["layers.2"] != 0


@pytest.mark.parametrize("fails_at", [0, 1, 3, 6])
def test_the_model_is_bit_for_bit_unchanged_also_after_an_error(fails_at: int) -> None:
    before = tiny.bert()
    after = changed(before, *LAYERS)
    kept = tiny.weights(after)
    calls: list[float] = []

    def fails(model: torch.nn.Module) -> float:
        calls.append(total(model))
        if len(calls) == fails_at + 1:
            raise KeyboardInterrupt
        return calls[-1]

    with pytest.raises(KeyboardInterrupt):
        layer_probe(after, before, fails)
    assert all(torch.equal(parameter, kept[name]) for name, parameter in after.named_parameters())
    calls.clear()
    layer_probe(after, before, total)
    assert all(torch.equal(parameter, kept[name]) for name, parameter in after.named_parameters())
    assert all(parameter.requires_grad for parameter in after.parameters())


def test_wrong_input_is_named() -> None:
    model = tiny.bert()
    with pytest.raises(ModelMismatchError, match="lacks"):
        layer_probe(model, tiny.bert(layers=2), total)
    with pytest.raises(ConfigurationError, match=r"embeddings, layers\.0, .*not 'layers\.7'"):
        layer_probe(model, tiny.bert(seed=1), total, layers=["layers.7"])
    for value in (math.nan, None, "0.5", torch.zeros(2)):
        with pytest.raises(ScoringError, match="one finite number"):
            layer_probe(model, tiny.bert(seed=1), lambda model, value=value: value)
