"""Rates that cannot be what was meant: told once, before the first step, with the likely cause."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import tiny
import torch
from torch.optim import SGD, Adadelta, Adagrad, AdamW

from lr_dist import LayerwiseLR, LRDistribution, param_groups
from lr_dist._callback.rate_warnings import highest_rate
from lr_dist._distribution.sanity import brief, multiple_warnings, named, rate_warnings
from lr_dist.errors import NothingToTrainError, RateRangeWarning, StuckLayersWarning
from lr_dist.presets import list_presets, resolve_distribution

OURS = (RateRangeWarning, StuckLayersWarning)


def doubts(text: str, num_layers: int, *, base_lr: float = 1e-5) -> list[UserWarning]:
    """What AdamW's rates under the distribution are doubted for."""
    distribution = resolve_distribution(text)
    rates = distribution.absolute(base_lr).rates(num_layers)
    return rate_warnings(distribution, rates, base_lr=base_lr if distribution.relative else None, optimizer="AdamW")


# What is doubted, and what is not ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "num_layers", "says"),
    [
        ("decay:lr=1,factor=0.9", 6, r"every group .*above 0\.1 \(the highest: 1, head\).*add relative=true"),
        ("flat:lr=2", 6, r"above 0\.1.*add relative=true"),
        ("decay:lr=4e-4,factor=70", 6, r"embeddings to layers\.4 .*3\.29e9, embeddings.*factor=70 is above 1.*0\.7"),
        ("decay:lr=4e-4,total=2000", 6, r"embeddings.*total=2000 is above 1.*0\.02"),
        ("discriminative:lr=1e-3,factor=0.5", 12, r"factor=0\.5.*is under 1.*2\.6"),
        ("decay:lr=4e-4,factor=0.7,relative=true", 6, r"below 1e-8 .*4e-4 times 1e-5.*leave relative=true out"),
        ("flat:lr=2e6,relative=true", 6, r"above 0\.1.*It is relative.*2e6 times 1e-5"),
        ("decay:lr=4e-4,factor=0.7", 48, r"embeddings to layers\.18 .*1\.03e-11.*49 times.*total=0\.02"),
        ("flat:lr=1e-9", 6, r"every group .*below 1e-8.*Raise it"),
        ("flat:lr=1e-4,embeddings=1e-9", 6, r"gives embeddings a learning rate below 1e-8"),
    ],
)
def test_rates_out_of_range_are_told_with_group_value_and_cause(text: str, num_layers: int, says: str) -> None:
    first, *_ = doubts(text, num_layers)
    assert isinstance(first, RateRangeWarning)
    assert re.search(says, str(first)), first
    assert f"The distribution {LRDistribution.parse(text)} gives" in str(first)


@pytest.mark.parametrize(
    ("text", "num_layers", "says"),
    [
        ("decay:lr=4e-4,factor=0.7", 24, r"embeddings to layers\.3 .*5\.36e-8.*layers\.23 \(2\.8e-4\).*total=0\.02"),
        ("discriminative:lr=1e-2", 12, r"embeddings to layers\.3 .*layers\.11 .*freeze=embeddings\.\.layers\.3"),
        ("flat:lr=1e-3,layers.1=1e-7", 6, r"gives layers\.1 .*freeze=layers\.1\.\.layers\.1"),
        (
            "flat:lr=1e-3,layers.1=1e-7,layers.3=1e-7,embeddings=1e-7",
            6,
            r"embeddings, layers\.1 and layers\.3 .*rate 0",
        ),
        ("decay:lr=1,factor=0.7,relative=true", 24, r"less than a thousandth"),
    ],
)
def test_layers_that_hardly_move_beside_the_others_are_told(text: str, num_layers: int, says: str) -> None:
    (found,) = doubts(text, num_layers, base_lr=1e-3)
    assert isinstance(found, StuckLayersWarning)
    assert re.search(says, str(found)), found


@pytest.mark.parametrize("num_layers", [1, 3, 6, 12, 24])
@pytest.mark.parametrize(
    "text",
    [
        "flat:lr=2e-5",
        "flat:lr=0.1",
        "flat:lr=1e-8",
        "decay:lr=4e-4,factor=0.8",
        "decay:lr=4e-4,total=0.02",
        "decay:lr=1,factor=0.9,relative=true",
        "linear:first=1e-6,last=1e-4",
        "flat:lr=0,head=1e-3",
        "flat:lr=1e-6,head=1e-2",
        "flat:lr=2e-5,freeze=embeddings..0.5",
    ],
)
def test_what_people_use_is_not_doubted(text: str, num_layers: int) -> None:
    assert doubts(text, num_layers) == []


@pytest.mark.parametrize("num_layers", [6, 12, 24])
def test_no_preset_that_a_search_found_is_doubted(num_layers: int) -> None:
    # Recipes from the literature are kept as they are, and may rightly be doubted: a factor a layer shrinks with depth.
    presets = [entry.preset for entry in list_presets() if entry.source == "shipped" and entry.preset]
    shipped = [preset.distribution for preset in presets if preset.provenance.trials]
    assert len(shipped) >= 4
    for distribution in shipped:
        assert doubts(str(distribution), num_layers) == []
        if distribution.relative:
            assert multiple_warnings(distribution, distribution.rates(num_layers)) == []


def test_multiples_are_doubted_before_the_optimizers_rate_is_known() -> None:
    def found(text: str) -> list[UserWarning]:
        distribution = LRDistribution.parse(text)
        return multiple_warnings(distribution, distribution.rates(6))

    (low,) = found("decay:lr=4e-4,factor=0.7,relative=true")
    assert "largest multiple of the optimizer's own rate is 4e-4" in str(low)
    assert "leave relative=true out" in str(low)
    (high,) = found("decay:lr=1,factor=70,relative=true")
    assert "factor=70 is above 1" in str(high)
    (stuck,) = found("discriminative:lr=1,factor=5,relative=true")
    assert isinstance(stuck, StuckLayersWarning)
    assert "times the optimizer's rate" in str(stuck)


@pytest.mark.parametrize(
    ("number", "text"),
    [(4e-4, "4e-4"), (5.364e-8, "5.36e-8"), (0.343, "0.343"), (1, "1"), (0, "0"), (3.29e9, "3.29e9"), (2e-5, "2e-5")],
)
def test_numbers_are_written_as_by_hand(number: float, text: str) -> None:
    assert brief(number) == text


def test_groups_in_a_row_are_named_as_a_range() -> None:
    order = ["embeddings", "layers.0", "layers.1", "layers.2", "head"]
    assert named(order, order) == "every group"
    assert named(order[:3], order) == "embeddings to layers.1"
    assert named(["embeddings", "layers.0"], order) == "embeddings and layers.0"
    assert named(["embeddings", "layers.1", "layers.2", "head"], order) == "embeddings and layers.1 to head"
    assert named(["head"], order) == "head"


# By optimizer --------------------------------------------------------------------------------------------


class Patient(torch.optim.Optimizer):
    """An optimizer of somebody's own whose usual rate is 1."""

    def __init__(self, params: Any, lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("optimizer", "highest"), [(AdamW, 0.1), (SGD, 10.0), (Adadelta, 100.0), (Adagrad, 1.0), (Patient, 100.0)]
)
def test_the_highest_rate_depends_on_the_optimizer(optimizer: Any, highest: float) -> None:
    assert highest_rate(optimizer([torch.nn.Parameter(torch.zeros(1))])) == pytest.approx(highest)


def told(configure: Any, distribution: str, **options: Any) -> list[Warning]:
    """The warnings of a real fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback = LayerwiseLR(distribution, verbose=False)
        for _ in range(2):
            tiny.fit(tiny.Classifier(configure), callback, **{"max_steps": 2, **options})
    return [warning.message for warning in caught if issubclass(warning.category, OURS)]


def adamw(module: Any) -> Any:
    return AdamW(module.parameters(), lr=2e-5)


def test_a_fit_tells_once_and_knows_the_optimizers_own_rate() -> None:
    (found,) = told(adamw, "decay:lr=4e-4,factor=0.7,relative=true")
    assert "4e-4 times 2e-5" in str(found)
    (found,) = told(adamw, "flat:lr=0.2")
    assert "A step of AdamW moves each weight by about the rate" in str(found)


def test_sgd_may_have_rates_that_adam_may_not() -> None:
    def sgd(module: Any) -> Any:
        return SGD(module.parameters(), lr=0.1)

    assert told(sgd, "flat:lr=0.5") == []
    (found,) = told(sgd, "flat:lr=20", max_steps=1)
    assert "above 10" in str(found)
    assert "With SGD" in str(found)
    assert "Adam" not in str(found)


def test_weights_too_large_for_a_step_are_told_and_do_not_move() -> None:
    def module(size: float) -> tiny.Classifier:
        built = tiny.Classifier(lambda module: AdamW(module.parameters(), lr=2e-5, weight_decay=0.0))
        for parameter in built.model.bert.encoder.layer[1].parameters():
            parameter.data.fill_(size)
        return built

    def fit(size: float) -> tuple[list[Warning], bool]:
        own = module(size)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tiny.fit(own, LayerwiseLR("flat:lr=1e-5", verbose=False), max_steps=2)
        weight = own.model.bert.encoder.layer[1].output.dense.weight
        found = [warning.message for warning in caught if issubclass(warning.category, OURS)]
        return found, bool((weight == size).all())

    # Numbers of float32 around 1,000 are 6e-5 apart: 1e-5 is rounded away.
    (found,), still = fit(1000.0)
    assert isinstance(found, StuckLayersWarning)
    assert "layers.1" in str(found)
    assert "layers.0" not in str(found)
    assert still
    assert fit(0.01) == ([], False)


# Other faces ---------------------------------------------------------------------------------------------


def test_param_groups_tells_of_rates_without_knowing_the_optimizer() -> None:
    with pytest.warns(
        RateRangeWarning, match=r"flat:lr=2 gives every group.*only optimizers such as SGD tolerate more"
    ):
        param_groups(tiny.bert(), "flat:lr=2")
    with pytest.warns(RateRangeWarning, match=r"4e-4 times 2e-5"):
        param_groups(tiny.bert(), "decay:lr=4e-4,factor=0.7,relative=true", lr=2e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        param_groups(tiny.bert(), "decay:lr=4e-4,factor=0.7")


def test_the_warning_points_at_the_callers_line() -> None:
    with pytest.warns(RateRangeWarning) as caught:
        param_groups(tiny.bert(), "flat:lr=2")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("text", ["flat:lr=0", "decay:lr=0,factor=0.7", "flat:lr=1e-4,freeze=embeddings..head"])
def test_rates_of_zero_everywhere_are_our_error_and_leave_the_model_as_it_was(text: str) -> None:
    module = tiny.Classifier(adamw)
    with pytest.raises(NothingToTrainError, match=re.escape(f"{text} has the rate 0 everywhere".split(",")[0])):
        tiny.fit(module, LayerwiseLR(text, verbose=False))
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_model_that_the_user_and_the_distribution_freeze_together_is_our_error() -> None:
    module = tiny.Classifier(adamw)
    module.model.classifier.requires_grad_(False)
    module.model.bert.pooler.requires_grad_(False)
    with pytest.raises(NothingToTrainError, match="requires_grad flags"):
        tiny.fit(module, LayerwiseLR("flat:lr=0,head=1e-3", verbose=False))
