"""Interpolation between state dicts: by hand, exact ends, other architectures refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from lr_dist import LRDistribution
from lr_dist.errors import InvalidAlphaError, ModelMismatchError
from lr_dist.methods import interpolate_weights, layer_alphas


def test_by_hand() -> None:
    before = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[4.0]]), "n": torch.tensor([1, 2])}
    after = {"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([[8.0]]), "n": torch.tensor([3, 4])}
    mixed = interpolate_weights(before, after, {"a": 0.25, "b": 0.5})
    assert {name: value.tolist() for name, value in mixed.items()} == {"a": [1.25, 1.5], "b": [[6.0]], "n": [3, 4]}
    assert interpolate_weights(before, after, 0.75)["b"].item() == 7
    assert (before["a"].tolist(), after["a"].tolist()) == ([1, 2], [2, 0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_ends_are_exact_and_the_middle_is_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(1000, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    before = before * 1e3
    assert torch.equal(interpolate_weights({"w": before}, {"w": after}, 0)["w"], before)
    assert torch.equal(interpolate_weights({"w": before}, {"w": after}, 1)["w"], after)
    middle = interpolate_weights({"w": before}, {"w": after}, 0.3)["w"]
    exact = before.double() + 0.3 * (after.double() - before.double())
    assert middle.dtype == dtype
    assert (
        (middle.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs().clamp(min=before.abs().max() / 64)
    ).all()


def test_the_alphas_of_a_model_follow_its_depth() -> None:
    model = tiny.bert()
    alphas = layer_alphas(model, LRDistribution.from_layers(0.1, [0.2, 0.4, 0.6], 0.8))
    assert alphas["bert.embeddings.word_embeddings.weight"] == 0.1
    assert [alphas[f"bert.encoder.layer.{k}.attention.self.query.bias"] for k in range(3)] == [0.2, 0.4, 0.6]
    assert alphas["classifier.weight"] == alphas["bert.pooler.dense.weight"] == 1
    assert layer_alphas(model, 0.5, head="interpolated")["classifier.weight"] == 0.5
    # Two layers' numbers on three: the middle one is their geometric mean, as of rates.
    alphas = layer_alphas(model, "from_layers:embeddings=0,layers=0.4/0.9,head=1")
    assert alphas["bert.encoder.layer.1.attention.self.query.bias"] == pytest.approx(math.sqrt(0.4 * 0.9))


def test_tied_weights_have_one_alpha_under_each_name() -> None:
    config = BertConfig(
        **{"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 32, "max_position_embeddings": 16},
    )
    torch.manual_seed(0)
    model, other = BertForMaskedLM(config), BertForMaskedLM(config)
    alphas = layer_alphas(model, "linear:first=0.25,last=0.75", head="interpolated")
    assert alphas["cls.predictions.decoder.weight"] == alphas["bert.embeddings.word_embeddings.weight"] == 0.25
    mixed = interpolate_weights(model.state_dict(), other.state_dict(), alphas)
    tied = [mixed[name] for name in ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")]
    assert torch.equal(*tied)
    before, after = (each.bert.embeddings.word_embeddings.weight for each in (model, other))
    torch.testing.assert_close(tied[0], before + 0.25 * (after - before))
    other.load_state_dict(mixed)


def test_buffers_are_as_learned() -> None:
    norm, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    other(torch.randn(8, 2))
    names = dict(norm.named_parameters())
    mixed = interpolate_weights(norm.state_dict(), other.state_dict(), dict.fromkeys(names, 0.5))
    assert torch.equal(mixed["running_mean"], other.running_mean)
    assert mixed["num_batches_tracked"] == 1


def of_labels(count: int, **sizes: int) -> dict[str, torch.Tensor]:
    config = BertConfig(
        num_labels=count,
        **{
            **{"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"intermediate_size": 32, "max_position_embeddings": 16, **sizes},
        },
    )
    return BertForSequenceClassification(config).state_dict()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: of_labels(2, num_hidden_layers=3), r"only after has bert\.encoder\.layer\.2\..* and \d+ more"),
        (lambda: of_labels(2, num_hidden_layers=1), r"only before has bert\.encoder\.layer\.1\."),
        (
            lambda: of_labels(2, intermediate_size=64),
            r"other shapes: .*intermediate.* \(32, 16\) before and \(64, 16\) after",
        ),
        (lambda: of_labels(3), r"classifier\.weight \(2, 16\) before and \(3, 16\) after.*heads="),
        (lambda: {f"model.{name}": value for name, value in of_labels(2).items()}, r"only after has model\.bert"),
    ],
)
def test_another_architecture_is_refused_by_the_names_of_its_weights(other: Any, says: str) -> None:
    with pytest.raises(ModelMismatchError, match=says):
        interpolate_weights(of_labels(2), other(), 0.5)


def test_a_head_of_another_size_is_kept_from_after_where_it_is_named() -> None:
    before, after = of_labels(2), of_labels(3)
    mixed = interpolate_weights(before, after, 0.5, heads=["classifier"])
    assert torch.equal(mixed["classifier.weight"], after["classifier.weight"])
    name = "bert.pooler.dense.weight"
    torch.testing.assert_close(mixed[name], (before[name] + after[name]) / 2)
    del before["classifier.weight"], before["classifier.bias"]
    assert mixed.keys() == interpolate_weights(before, after, 0.5, heads=["classifier"]).keys()


@pytest.mark.parametrize("alpha", [1.01, -1, float("nan"), "0.5", None, {"a": 2}])
def test_a_number_that_is_no_share_is_refused(alpha: Any) -> None:
    with pytest.raises(InvalidAlphaError, match="from 0 to 1"):
        interpolate_weights({"a": torch.zeros(1)}, {"a": torch.ones(1)}, alpha)


def test_an_alpha_of_no_weight_is_refused() -> None:
    with pytest.raises(ModelMismatchError, match="alpha for b"):
        interpolate_weights({"a": torch.zeros(1)}, {"a": torch.ones(1)}, {"a": 0.5, "b": 0.5})
