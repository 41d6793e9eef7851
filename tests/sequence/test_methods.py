"""Methods against forgetting: the interface, and L2-SP against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from comparison import FLAT, Listener, config_of

from lr_dist.errors import ConfigurationError
from lr_dist.models import load_backbone
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.compare import compare
from lr_dist.sequence.methods import METHODS, build_method
from lr_dist.sequence.settings import SequenceSettings


def classifier(tiny_model: str, method: str) -> SequenceClassifier:
    return SequenceClassifier(
        load_backbone(tiny_model),
        {"a": 2},
        reads_first_token=True,
        settings=SequenceSettings(method=method),
        method=build_method(method),
    )


def test_l2_sp_adds_half_alpha_times_the_squared_way_from_the_pre_trained_weights(tiny_model):
    model = classifier(tiny_model, "l2-sp:alpha=0.5")
    model.method.before_sequence(model)
    task_loss = torch.tensor(2.0)
    assert model.method.loss(model, {}, task_loss).item() == 2.0
    with torch.no_grad():
        model.backbone.encoder.layer[1].output.dense.bias += 3.0  # 32 entries
        model.heads["a"].bias += 100.0  # heads are free
        frozen = model.backbone.encoder.layer[0].output.dense.bias
        frozen.requires_grad_(False)
        frozen += 7.0  # and what is frozen has nothing to be pulled
    assert model.method.loss(model, {}, task_loss).item() == pytest.approx(2.0 + 0.25 * 32 * 9.0)


def test_a_strong_pull_keeps_more_of_the_start_and_is_part_of_what_makes_a_run(tiny_model, tmp_path):
    def last_row(method: str) -> dict:
        config = config_of(tiny_model, distributions=(FLAT,), seeds=(0,))
        settings = SequenceSettings(epochs=2, batch_size=16, method=method, precision="32-true")
        config = type(config)(**{**vars(config), "settings": settings})
        return compare(config, tmp_path / method.replace(":", "_"), listener=Listener(), command="test").runs[0]

    plain, pulled = last_row("finetune"), last_row("l2-sp:alpha=1000")
    assert plain["identity"] != pulled["identity"]
    assert plain["matrix"][0] == pulled["matrix"][0]
    assert plain["matrix"] != pulled["matrix"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("replay", "there are finetune, l2-sp"),
        ("l2-sp:alpha", "not key=number"),
        ("l2-sp:alpha=-1", "0 or more"),
        ("l2-sp:alpha=nan", "finite"),
        ("l2-sp:beta=1", "beta"),
    ],
)
def test_a_method_that_cannot_be_built_is_named(text, says):
    with pytest.raises(ConfigurationError, match=says):
        build_method(text)


def test_every_method_says_its_name_and_settings():
    for name in METHODS:
        assert build_method(name).to_dict()["name"] == name


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"max_length": 2},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"weight_decay": -1.0},
        {"warmup": 1.0},
        {"schedule": "sine"},
        {"precision": "fp8"},
        {"evaluate_on": "test"},
    ],
)
def test_settings_out_of_range_are_refused_with_their_name(settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        SequenceSettings(**settings)
