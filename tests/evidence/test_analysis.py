"""Differences, curves and bootstrap intervals, against numbers worked out by hand."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from lr_dist.errors import ConfigurationError
from lr_dist.evidence.analysis import bootstrap, bootstrap_ratio
from lr_dist.evidence.config import Contender, EvidenceConfig


def test_the_mean_weighs_sequences_not_seeds():
    values = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 10.0}
    estimate = bootstrap(
        {"a": [0, 1], "b": [0]}, lambda name, seeds: statistics.fmean(values[name, seed] for seed in seeds)
    )
    assert estimate is not None
    assert (estimate.mean, estimate.sequences, estimate.pairs) == (6.0, 2, 3)
    # Both draws are a (1/4): the mean is 1 with 1/16, 1.5 with 4/16. So 1.6% lie below 1.5, and 7.8% up to it.
    assert estimate.low == 1.5
    assert estimate.high == 10.0


def test_the_interval_is_that_of_a_normal_mean():
    rng = np.random.default_rng(1)
    noise = {(name, seed): rng.normal(0.5, 1.0) for name in range(40) for seed in range(1)}
    estimate = bootstrap(
        {str(n): [0] for n in range(40)}, lambda name, seeds: float(np.mean([noise[int(name), s] for s in seeds]))
    )
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    spread = 1.96 * float(np.std(list(noise.values()))) / 40**0.5
    assert estimate.high - estimate.mean == pytest.approx(spread, rel=0.15)
    assert estimate.mean - estimate.low == pytest.approx(spread, rel=0.15)


def test_one_run_has_no_interval_and_a_sequence_without_a_value_is_left_out():
    estimate = bootstrap({"a": [0], "b": [0]}, lambda name, seeds: 1.0 if name == "a" else None)
    assert estimate is not None
    assert (estimate.mean, estimate.low, estimate.sequences, estimate.is_clear) == (1.0, None, 1, False)
    assert bootstrap({"a": [0]}, lambda name, seeds: None) is None


def test_the_share_of_forgetting_that_is_gone():
    ours, theirs = {"a": 0.01, "b": 0.03}, {"a": 0.1, "b": 0.1}
    estimate = bootstrap_ratio({"a": [0], "b": [0]}, lambda n, s: ours[n], lambda n, s: theirs[n])
    assert estimate is not None
    assert estimate.mean == pytest.approx(0.8)
    assert bootstrap_ratio({"a": [0], "b": [0]}, lambda n, s: 0.1, lambda n, s: -0.1) is None


FLAT = {"text": "flat:lr={lr}", "settings": {"lr": ["1e-4", "2e-4"]}, "curve": "lr"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"search": ()}, "others to tune on"),
        ({"choices": "chosen.json"}, "others to tune on"),
        ({"held_out": (("sst2", "qqp"),)}, "in search and in held_out"),
        ({"control": "ewc"}, "no arm"),
        ({"seeds": (1, 1)}, "distinct"),
        ({"contenders": {"flat": {"text": "flat:lr={lr}"}}}, "places for"),
        ({"contenders": {"flat": {"text": "flat:lr={lr}", "settings": {"lr": []}}}}, "no values"),
        ({"contenders": {"flat": {**FLAT, "curve": "alpha"}}}, "none of its settings"),
        ({"contenders": {"flat": {**FLAT, "grid": 1}}}, "keys text, settings, curve, seeds"),
        ({"contenders": {"flat": {**FLAT, "seeds": 1}}}, "control 'flat' needs all seeds"),
        ({"contenders": {"flat": FLAT, "ewc": {"text": "flat:lr=1e-4 + ewc", "seeds": 0}}}, "seeds of the arm ewc"),
    ],
)
def test_an_invalid_protocol_is_named(changes, says):
    values = {"search": (("sst2", "qqp"),), "held_out": (("sst2", "qnli"),), "contenders": {"flat": FLAT}}
    with pytest.raises(ConfigurationError, match=says):
        EvidenceConfig(**{**values, **changes})


def test_an_arm_is_written_with_the_first_stage_and_its_settings():
    arm = Contender("both", "flat:lr={lr} + interpolate:alpha={alpha}", {"lr": ("1e-4",), "alpha": (0.5, 0.7)}, "alpha")
    assert [arm.written(each) for each in arm.combinations()] == [
        "flat:lr=1e-4 + interpolate:alpha=0.5",
        "flat:lr=1e-4 + interpolate:alpha=0.7",
    ]
    config = EvidenceConfig(search=(("a", "b"),), held_out=(("b", "a"),), contenders={"flat": FLAT})
    assert config.arm_text(arm.written({"lr": "1e-4", "alpha": 1})) == (
        "flat:lr=1.34e-4 | flat:lr=1e-4 + interpolate:alpha=1"
    )
    assert arm.curve_of({"lr": "1e-4", "alpha": 0.7}) == [{"lr": "1e-4", "alpha": a} for a in (0.5, 0.7)]
