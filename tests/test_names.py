"""Names of groups are read in one place, and mean the same layer wherever the user can write one."""

from __future__ import annotations

import itertools

import pytest
import tiny
import torch

from lr_dist import LRDistribution, assign_layers, param_groups
from lr_dist.errors import LRDistError
from lr_dist.layer_schedule import LayerSchedule
from lr_dist.layers import LayerMap
from lr_dist.names import (
    NO_DECAY,
    close_names,
    did_you_mean,
    group_depth,
    group_names,
    is_group_name,
    is_layer,
    layer_of,
)
from lr_dist.regroup import Placement, regroup

DEPTHS = {
    "embeddings": 0,
    "layers.0": 1,
    "layers.2": 3,
    "layers.-1": 3,
    "layers.-3": 1,
    "head": 4,
}
INVALID = ["layers.3", "layers.-4", "layers.01", "layers.-0", "layers.", "layers.1 ", "layer.1", "Head", "", "1"]


@pytest.mark.parametrize(("name", "depth"), DEPTHS.items())
def test_a_name_means_the_same_layer_in_distributions_warm_ups_and_overrides(name: str, depth: int) -> None:
    assert group_depth(name, tiny.LAYERS) == depth
    group = group_names(tiny.LAYERS)[depth]
    rates = LRDistribution.flat(1e-3).override(name, 5e-4).rates(tiny.LAYERS)
    assert [at for at, rate in rates.items() if rate == 5e-4] == [group]
    others = {other: 0 for other in group_names(tiny.LAYERS) if other != group}
    steps = LayerSchedule(warmup_steps={name: 7, **others}).warmup(tiny.LAYERS)
    assert {at for at, count in steps.items() if count == 7} == {group}
    placed: LayerMap = assign_layers(tiny.bert(), {"pooler": name})
    assert placed.group_of["bert.pooler.dense.weight"] == group


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_name_is_refused_in_all_of_them(name: str) -> None:
    assert group_depth(name, tiny.LAYERS) is None
    with pytest.raises(LRDistError):
        LRDistribution.flat(1e-3).override(name, 5e-4).rates(tiny.LAYERS)
    with pytest.raises(LRDistError):
        LayerSchedule(warmup_steps={name: 7}).warmup(tiny.LAYERS)
    with pytest.raises(LRDistError):
        assign_layers(tiny.bert(), {"pooler": name})


@pytest.mark.parametrize("value", [None, 1, b"head", ("head",)], ids=repr)
def test_what_is_not_a_text_is_not_a_name(value: object) -> None:
    assert not is_group_name(value)


def test_the_layer_is_read_back_from_every_name_that_a_group_can_have() -> None:
    for prefix, part in itertools.product(("", "vision", "head", "layers.0"), ("", NO_DECAY, "/2", f"{NO_DECAY}/12")):
        for depth, layer in enumerate(group_names(12, prefix)):
            assert layer_of(layer + part) == layer
            assert is_layer(layer_of(layer + part)) == (0 < depth < 13)


def test_the_layer_is_read_back_from_the_groups_of_an_optimizer() -> None:
    model = tiny.bert()
    by_hand = param_groups(model, "decay:lr=4e-4,factor=0.7", weight_decay=0.1)
    layer_map = assign_layers(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain[::2], "weight_decay": 0.0}, {"params": plain[1::2], "weight_decay": 0.0}]
    )
    regroup(optimizer, [], Placement.of(model, layer_map), LRDistribution.flat(1e-3))
    assert any(group["name"].endswith(f"{NO_DECAY}/2") for group in optimizer.param_groups)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in (*by_hand, *optimizer.param_groups):
        layers = {layer_map.group_of[names[id(p)]] for p in group["params"]}
        assert layers == {layer_of(group["name"])}


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("sst-2", "sst2"), ("STSB", "stsb"), ("demo-sentimant", "demo-sentiment"), ("demosentiment", "demo-sentiment")],
)
def test_a_close_name_is_found_whatever_its_case_and_hyphens(given: str, nearest: str) -> None:
    assert did_you_mean(given, ["stsb", "sst2", "demo-sentiment"]) == f" Did you mean {nearest}?"


def test_the_closest_of_several_names_comes_first_and_nothing_is_close_to_what_is_no_name() -> None:
    assert close_names("flatt", ["flat", "flats", "fat", "cosine"], most=2) == ["flat", "flats"]
    for other in ("xyz", 3, None):
        assert close_names(other, ["flat"], most=3) == []
        assert did_you_mean(other, ["flat"]) == ""
