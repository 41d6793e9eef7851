"""Differences, curves and bootstrap intervals, against numbers worked out by hand."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest

from lr_dist.errors import ConfigurationError, InvalidResultError
from lr_dist.evidence.analysis import bootstrap, bootstrap_ratio, findings, scores_of
from lr_dist.evidence.config import Contender, EvidenceConfig
from lr_dist.evidence.summary import Outcome, _all_diverged, _curve
from lr_dist.evidence.table import verdict
from lr_dist.evidence.tuning import Choice
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.result import ComparisonResult
from lr_dist.sequence.settings import SequenceSettings


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


OLD, NEW = "news=/data/2019", {"name": "news", "path": "/data/2020"}
FLAT = {"text": "flat:lr={lr}", "settings": {"lr": ["1e-4", "2e-4"]}, "curve": "lr"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"search": ()}, "others to tune on"),
        ({"choices": "chosen.json"}, "others to tune on"),
        ({"held_out": (("sst2", "qqp"),)}, "in search and in held_out"),
        ({"control": "ewc"}, "no arm"),
        ({"seeds": (1, 1)}, "distinct"),
        ({"seeds": (1, 0)}, "Seed 0 is in tuning_seeds and in seeds"),
        ({"settings": SequenceSettings(evaluate_on="dev")}, "tunes on dev and compares on validation"),
        ({"contenders": {"flat": {"text": "flat:lr={lr}"}}}, "places for"),
        ({"contenders": {"flat": {"text": "flat:lr={lr}", "settings": {"lr": []}}}}, "no values"),
        ({"contenders": {"flat": {**FLAT, "curve": "alpha"}}}, "none of its settings"),
        ({"contenders": {"flat": {**FLAT, "grid": 1}}}, "keys text, settings, curve, seeds"),
        ({"contenders": {"flat": {**FLAT, "seeds": 1}}}, "control 'flat' needs all seeds"),
        ({"contenders": {"flat": FLAT, "ewc": {"text": "flat:lr=1e-4 + ewc", "seeds": 0}}}, "seeds of the arm ewc"),
        ({"contenders": {"flat": FLAT, "ewc": "flat:lr={lr"}}, "The arm ewc has the text"),
        ({"held_out": (("sst2",),)}, "has one task"),
        ({"held_out": ((OLD, "sst2"), (NEW, "sst2"))}, "have the same name, news-sst2"),
        ({"held_out": (("a-b=/x", "c=/y"), ("a=/x", "b-c=/y"))}, "have the same name, a-b-c"),
        ({"search": (({"path": "/x"}, "sst2"),)}, "needs a name"),
        ({"start": "model"}, "takes no start"),
        ({"method": "ewc:strength=1"}, "takes no method"),
    ],
)
def test_an_invalid_protocol_is_named(changes, says):
    values = {"search": (("sst2", "qqp"),), "held_out": (("sst2", "qnli"),), "contenders": {"flat": FLAT}}
    with pytest.raises(ConfigurationError, match=says):
        EvidenceConfig(**{**values, **changes})


def test_a_shift_alone_is_a_sequence_of_two_tasks():
    config = EvidenceConfig(search=(("sst2", "qqp"),), held_out=(("qnli@length",),), contenders={"flat": FLAT})
    assert config.held_out == (("qnli@length",),)


def test_white_space_around_an_arm_is_no_part_of_its_label():
    # As a folded text in YAML ends.
    folded = {"text": "flat:lr={lr}\n", "settings": {"lr": ["1e-4"]}}
    config = EvidenceConfig(
        first=" flat:lr=3e-3", search=(("a", "b"),), held_out=(("b", "a"),), contenders={"flat": folded}
    )
    label = config.arm_text(config.arms()["flat"].written({"lr": "1e-4"}))
    assert label == Arm.parse(label).label == "flat:lr=3e-3 | flat:lr=1e-4"


def result(config, runs):
    """A result of a>b with the given (text, seed, p_o), diverged where p_o is None."""
    metrics = {"p_s": 0.9, "average_accuracy": 0.8, "forgetting": 0.1}
    return ComparisonResult(
        *("", "", {}, {}, {}),
        tasks=[{"name": "a"}, {"name": "b"}],
        arms=[],
        runs=[
            {
                "arm": config.arm_text(text),
                "seed": seed,
                "train_seconds": 1.0,
                **({"status": "diverged"} if p_o is None else {"status": "done", "metrics": {**metrics, "p_o": p_o}}),
            }
            for text, seed, p_o in runs
        ],
        summary=[],
        planned_runs=0,
    )


def test_an_arm_that_diverged_takes_no_runs_from_the_others():
    arms = {
        "flat": {"text": "flat:lr={lr}", "settings": {"lr": [1, 2, 3]}, "curve": "lr"},
        "ewc": "flat:lr=1 + ewc:strength=1",
        "l2-sp": "flat:lr=1 + l2-sp:alpha=1",
        "si": {"text": "flat:lr=1 + si:c=1", "seeds": 1},
    }
    config = EvidenceConfig(search=(("b", "a"),), held_out=(("a", "b"),), contenders=arms, seeds=(10, 11))
    choices = {
        name: Choice(name, {"lr": 1} if name == "flat" else {}, arm.text.format(lr=1), 0.5, 1, 0)
        for name, arm in config.arms().items()
    }
    flat, ewc, l2_sp, si = (choice.text for choice in choices.values())
    # ewc has diverged with seed 10, the only one of si; l2-sp and 3 of the control's curve with both.
    runs = [(flat, 10, 0.5), (flat, 11, 0.7), ("flat:lr=2", 10, 0.4), ("flat:lr=2", 11, 0.6), ("flat:lr=3", 10, None)]
    runs += [("flat:lr=3", 11, None), (ewc, 10, None), (ewc, 11, 0.9), (si, 10, 0.8)]
    runs += [(l2_sp, 10, None), (l2_sp, 11, None)]
    of = {finding.name: finding for finding in findings(config, choices, [result(config, runs)])}
    assert {name: finding.differences["p_o"].pairs for name, finding in of.items()} == {"flat": 2, "ewc": 1, "si": 1}
    assert of["flat"].means["p_o"] == pytest.approx(0.6)
    assert of["ewc"].differences["p_o"].mean == pytest.approx(0.9 - 0.7)
    assert of["si"].differences["p_o"].mean == pytest.approx(0.8 - 0.5)
    assert (of["ewc"].runs, of["ewc"].diverged, of["si"].called) == (2, 1, "si (1 seed)")
    ran = [result(config, runs)]
    assert [name for name, each in choices.items() if _all_diverged(config.arm_text(each.text), ran)] == ["l2-sp"]
    points = _curve(config, "flat", choices["flat"], ran)
    assert [(lr, p_o, number) for lr, _, p_o, number in points] == [
        (1, pytest.approx(0.6), 2),
        (2, pytest.approx(0.5), 2),
    ]


def test_a_control_without_a_curve_is_compared_by_the_average():
    config = EvidenceConfig(
        search=(("b", "a"),),
        held_out=(("a", "b"),),
        contenders={"ewc": "flat:lr=1 + ewc:strength=1", "si": "flat:lr=1 + si:c=1"},
        control="ewc",
        seeds=(10, 11),
    )
    choices = {name: Choice(name, {}, arm.text, 0.5, 1, 0) for name, arm in config.arms().items()}
    # The same p_s, which is no curve.
    runs = [
        (choice.text, seed, p_o) for choice, p_o in zip(choices.values(), (0.5, 0.7), strict=True) for seed in (10, 11)
    ]
    ended = result(config, runs)
    for run, average in zip(ended.runs, (0.7, 0.7, 0.8, 0.8), strict=True):
        run["metrics"]["average_accuracy"] = average
    found = findings(config, choices, [ended])
    assert found[1].at_equal_p_s is None
    outcome = Outcome({}, "", {}, choices, found, [], {}, 4, 4)
    assert verdict(outcome) == (
        "Against the control (flat:lr=1 + ewc:strength=1), with intervals that leave out zero: the average is higher "
        "with si +.100 [+.100, +.100]."
    )


def test_a_run_without_what_the_protocol_measures_is_not_finished():
    config = EvidenceConfig(search=(("b", "a"),), held_out=(("a", "b"),), contenders={"flat": "flat:lr=1"})
    probed = replace(config, linear_probe=True)
    without = result(config, [("flat:lr=1", 10, 0.5)])
    assert scores_of(config, "flat:lr=1", [without])["a-b"][10]["p_o"] == 0.5
    choices = {"flat": Choice("flat", {}, "flat:lr=1", 0.5, 1, 0)}
    with pytest.raises(InvalidResultError, match="no finished run"):
        findings(probed, choices, [without])


def test_an_interval_that_no_resample_has_a_value_for_is_none():
    # A value only for both seeds together, which a resample of ten nearly never has.
    seeds = list(range(10))
    estimate = bootstrap({"a": seeds}, lambda name, drawn: 1.0 if list(drawn) == seeds else None, resamples=5)
    assert estimate is not None
    assert (estimate.mean, estimate.low, estimate.high) == (1.0, None, None)


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
