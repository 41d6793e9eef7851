"""Parameter groups for plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from transformers import BertModel

from lr_dist import LRDistribution, param_groups
from lr_dist.errors import (
    InvalidDistributionError,
    InvalidNoDecayError,
    InvalidOverrideError,
    InvalidRateError,
    NothingToTrainError,
)
from lr_dist.presets import resolve_plan


def names_of(model: torch.nn.Module, group: dict[str, Any]) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def test_groups_are_in_the_order_of_depth_with_their_rates() -> None:
    groups = param_groups(tiny.bert(), tiny.EXPLICIT)
    assert {group["name"]: group["lr"] for group in groups} == tiny.RATES
    assert [group["name"] for group in groups] == list(tiny.RATES)
    assert all(group["weight_decay"] == 0 for group in groups)


def test_layer_wise_decay_gives_the_head_the_rate_and_each_layer_below_less() -> None:
    groups = param_groups(tiny.bert(), "decay:lr=4e-4,factor=0.5")
    assert [g["lr"] for g in groups] == pytest.approx([4e-4 / 16, 4e-4 / 8, 4e-4 / 4, 4e-4 / 2, 4e-4])


def test_of_a_plan_groups_get_the_first_phase_of_the_first_stage() -> None:
    head = "flat:lr=1e-3,freeze=embeddings..layers.-1"
    model = tiny.bert()
    groups = param_groups(model, f"{head} @ 20% > flat:lr=1e-4 | flat:lr=1e-5")
    assert {group["name"]: group["lr"] for group in groups} == {"head": 1e-3}
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad
    second = resolve_plan(f"flat:lr=1e-4 | {head} @ 20% > flat:lr=1e-4").stage(1)
    assert [group["name"] for group in param_groups(tiny.bert(), second)] == ["head"]
    assert len(param_groups(tiny.bert(), "flat:lr=1e-4 @ gradual")) == 5


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = tiny.bert()
    for groups in (param_groups(model, "flat:lr=1e-3"), param_groups(model, "flat:lr=1e-3", weight_decay=0.1)):
        held = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


def test_weight_decay_splits_each_layer_by_the_number_of_dimensions() -> None:
    model = tiny.bert()
    groups = {group["name"]: group for group in param_groups(model, tiny.EXPLICIT, weight_decay=0.1)}
    assert list(groups)[:4] == ["embeddings", "embeddings/no_decay", "layers.0", "layers.0/no_decay"]
    assert groups["layers.1"]["weight_decay"] == 0.1
    assert groups["layers.1/no_decay"]["weight_decay"] == 0
    assert groups["layers.1"]["lr"] == groups["layers.1/no_decay"]["lr"] == 2e-4
    assert names_of(model, groups["embeddings/no_decay"]) == {
        "bert.embeddings.LayerNorm.weight",
        "bert.embeddings.LayerNorm.bias",
    }
    assert names_of(model, groups["head"]) == {"bert.pooler.dense.weight", "classifier.weight"}


def test_no_decay_takes_regexes() -> None:
    model = tiny.bert()
    groups = param_groups(model, "flat:lr=1e-3", weight_decay=0.1, no_decay=[r"\.bias$", "embeddings"])
    by_name = {group["name"]: group for group in groups}
    assert "embeddings" not in by_name
    assert len(by_name["embeddings/no_decay"]["params"]) == 5
    assert "bert.encoder.layer.0.output.LayerNorm.weight" in names_of(model, by_name["layers.0"])
    assert "bert.encoder.layer.0.output.LayerNorm.bias" in names_of(model, by_name["layers.0/no_decay"])


def test_without_any_no_decay_regex_everything_is_decayed() -> None:
    groups = param_groups(tiny.bert(), "flat:lr=1e-3", weight_decay=0.1, no_decay=[])
    assert [group["name"] for group in groups] == list(tiny.RATES)
    assert {group["weight_decay"] for group in groups} == {0.1}


@pytest.mark.parametrize(
    "patterns",
    [
        *(["LayerNorm", "layer_norm"], ["(bias"], "bias", [3], 3),
        *(["bias{99999999999}"], ["(?a)(?u)bias"], ["(" * 5000 + "bias"]),
    ],
)
def test_a_no_decay_regex_that_cannot_work_is_an_error(patterns: Any) -> None:
    with pytest.raises(InvalidNoDecayError, match=r"layer_norm|\(bias|bias|3|\(\("):
        param_groups(tiny.bert(), "flat:lr=1e-3", weight_decay=0.1, no_decay=patterns)


def test_a_rate_of_zero_freezes_and_leaves_out() -> None:
    model = tiny.bert()
    groups = param_groups(model, LRDistribution.from_dict(tiny.EXPLICIT).freeze("embeddings", "layers.0"))
    assert [group["name"] for group in groups] == ["layers.1", "layers.2", "head"]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    expected = {n for n, _ in model.named_parameters() if "embeddings" in n or "encoder.layer.0." in n}
    assert frozen == expected
    assert len(frozen) == 5 + 16


def test_a_later_distribution_thaws_what_an_earlier_one_froze_but_not_what_the_user_froze() -> None:
    model = tiny.bert()
    model.bert.encoder.layer[1].requires_grad_(False)
    param_groups(model, LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0"))
    groups = param_groups(model, tiny.EXPLICIT)
    assert [group["name"] for group in groups] == ["embeddings", "layers.0", "layers.2", "head"]
    assert not any(parameter.requires_grad for parameter in model.bert.encoder.layer[1].parameters())


def test_nothing_left_to_train_is_an_error() -> None:
    with pytest.raises(NothingToTrainError, match="BertForSequenceClassification"):
        param_groups(tiny.bert(), "flat:lr=0")
    model = tiny.bert().requires_grad_(False)
    with pytest.raises(NothingToTrainError, match="requires_grad"):
        param_groups(model, "flat:lr=1e-3")


def test_a_relative_distribution_needs_and_multiplies_the_rate() -> None:
    relative = "linear:first=0.5,last=2,relative=true"
    with pytest.raises(InvalidRateError, match="lr="):
        param_groups(tiny.bert(), relative)
    groups = param_groups(tiny.bert(), relative, lr=1e-3)
    assert groups[0]["lr"] == pytest.approx(5e-4)
    assert groups[-1]["lr"] == pytest.approx(2e-3)


def test_numpy_numbers_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    groups = param_groups(tiny.bert(), tiny.EXPLICIT, weight_decay=numpy.float32(0.25))
    assert {group["weight_decay"] for group in groups} == {0.25, 0.0}


@pytest.mark.parametrize(
    "value", [-0.1, float("nan"), float("inf"), "0.1", True, 10**400, pytest.param(-(10**5000), id="5000 digits")]
)
def test_a_weight_decay_or_rate_that_is_no_number_is_an_error(value: Any) -> None:
    with pytest.raises(InvalidRateError, match="weight_decay"):
        param_groups(tiny.bert(), "flat:lr=1e-3", weight_decay=value)
    with pytest.raises(InvalidRateError, match="lr must be"):
        param_groups(tiny.bert(), "flat:lr=1,relative=true", lr=value)


def test_errors_of_the_distribution_and_of_the_overrides_come_through() -> None:
    with pytest.raises(InvalidDistributionError, match="flatt"):
        param_groups(tiny.bert(), "flatt:lr=1")
    with pytest.raises(InvalidOverrideError, match="nowhere"):
        param_groups(tiny.bert(), "flat:lr=1", overrides={"nowhere": "head"})


def test_overrides_place_parameters() -> None:
    model = tiny.bert()
    groups = {g["name"]: g for g in param_groups(model, tiny.EXPLICIT, overrides={"pooler": "layers.2"})}
    assert "bert.pooler.dense.weight" in names_of(model, groups["layers.2"])
    assert names_of(model, groups["head"]) == {"classifier.weight", "classifier.bias"}


def test_a_group_without_parameters_is_left_out() -> None:
    model = tiny.bert().bert
    assert isinstance(model, BertModel)
    model.pooler = None
    assert [group["name"] for group in param_groups(model, tiny.EXPLICIT)] == list(tiny.RATES)[:-1]


def test_plain_sgd_moves_each_layer_by_its_rate_times_the_gradient() -> None:
    model = tiny.bert()
    optimizer = torch.optim.SGD(param_groups(model, tiny.EXPLICIT))
    tokens, labels = next(iter(tiny.batches()))
    model(input_ids=tokens, labels=labels).loss.backward()
    before = tiny.weights(model)
    optimizer.step()
    for name, parameter in model.named_parameters():
        layer = next(group["name"] for group in optimizer.param_groups if any(parameter is p for p in group["params"]))
        assert torch.equal(parameter, before[name].add(parameter.grad, alpha=-tiny.RATES[layer])), name
    assert any(parameter.grad.abs().max() > 1e-3 for parameter in model.bert.encoder.layer[0].parameters())
