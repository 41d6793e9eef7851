"""Arms whose rates follow from the weights of the model, and arms that change over time, in one comparison."""

from __future__ import annotations

import pytest
from comparison import FLAT, Listener, config_of

from lr_dist import LRDistribution
from lr_dist.errors import ConfigurationError, InvalidRateError
from lr_dist.models import load_backbone
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.compare import Comparison, compare
from lr_dist.sequence.heavy_tail import check_settings, with_rates_of

TAIL = "heavy-tail:lr=1e-3,s1=0.6"


def test_the_rates_are_those_of_the_spectrum_of_the_model(tiny_model):
    backbone = load_backbone(tiny_model)
    expected = LRDistribution.from_spectrum(backbone, 1e-3, s1=0.6)
    arm = Arm.parse(with_rates_of(f"{FLAT} | {TAIL} @ 20% > {TAIL}*0.5 + l2-sp:alpha=0.1", backbone))
    assert arm.label == f"{FLAT} | {TAIL} @ 20% > {TAIL}*0.5 + l2-sp:alpha=0.1"
    assert arm.methods == ("l2-sp:alpha=0.1",)
    flat, first, second = arm.plan.distributions
    assert flat == LRDistribution.flat(1e-3)
    number = len(expected.rates(2)) - 2
    assert len(set(first.rates(number).values())) > 1
    assert first.rates(number) == pytest.approx(expected.rates(number), rel=1e-5)
    assert second.rates(number) == pytest.approx(expected.scale(0.5).rates(number), rel=1e-5)
    mapping = {"rates": TAIL, "methods": ["l2-sp:alpha=0.1"], "label": "tail"}
    assert Arm.parse(with_rates_of(mapping, backbone)) == Arm(
        "tail", Arm.parse(with_rates_of(TAIL, backbone)).plan, ("l2-sp:alpha=0.1",)
    )
    assert with_rates_of(FLAT, backbone) == FLAT


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("heavy-tail", ConfigurationError, "no rate; write heavy-tail:lr=1e-4"),
        ("heavy-tail:lr=1e-4,s3=1", ConfigurationError, "settings lr, s1, s2"),
        ("heavy-tail:lr=high", ConfigurationError, "is a number"),
        ("flat:lr=1e-4 | heavy-tail:lr=-1", InvalidRateError, "lr of heavy-tail"),
        ({"rates": "heavy-tail:lr=nan"}, InvalidRateError, "lr of heavy-tail"),
    ],
)
def test_invalid_settings_are_refused_before_a_model_is_loaded(text, error, says):
    with pytest.raises(error, match=says):
        check_settings(text)
    with pytest.raises(error, match=says):
        Comparison.prepare(config_of("no-such-model", distributions=(), arms=(text,)))


def test_they_share_a_comparison_with_gradual_unfreezing_and_finch(tiny_model, tmp_path):
    ulmfit = "decay:lr=2e-3,factor=0.385 @ gradual"
    arms = (FLAT, TAIL, ulmfit, f"{FLAT} + finch:momentum=0.9")
    config = config_of(tiny_model, distributions=(), arms=arms, seeds=(0,), epochs=1)
    result = compare(config, tmp_path, listener=Listener())
    assert [run["status"] for run in result.runs] == ["done"] * 4
    assert [arm["label"] for arm in result.arms] == list(arms)
    assert result.arms[2]["stages"][0]["phases"][0]["gradual"] is True
    assert len({arm["fingerprint"] for arm in result.arms}) == 3
    # Going on trains nothing again: the rates are found to be the same.
    listener = Listener()
    compare(config, tmp_path, listener=listener)
    assert listener.ran == []
