"""Arms: their text form, what makes two the same, and that they can share one table."""

from __future__ import annotations

import json

import pytest
from comparison import FLAT, Listener, config_of

from lr_dist import LRDistribution
from lr_dist.errors import ConfigurationError, InvalidDistributionError, LRDistError
from lr_dist.presets import resolve_plan
from lr_dist.rate_plan import RatePlan
from lr_dist.sequence.arm import Arm, parse_arms
from lr_dist.sequence.compare import compare
from lr_dist.sequence.differences import differences

A, B = LRDistribution.flat(1e-4), LRDistribution.decay(4e-4, 0.7)


def test_a_text_holds_rates_of_stages_and_methods():
    arm = Arm.parse("flat:lr=1e-4 | decay:lr=4e-4,factor=0.7 + l2-sp:alpha=0.5")
    assert arm.plan == RatePlan((A, B))
    assert arm.methods == ("l2-sp:alpha=0.5",)
    assert [arm.plan.stage(i) for i in range(4)] == [A, B, B, B]
    assert Arm.parse(str(arm.plan)).plan == arm.plan


def test_a_mapping_says_the_same():
    spec = {"rates": A.to_dict(), "methods": ["l2-sp:alpha=0.5"], "label": "pulled"}
    assert Arm.parse(spec) == Arm("pulled", RatePlan((A,)), ("l2-sp:alpha=0.5",))
    assert Arm.parse({"rates": "flat:lr=1e-4 | decay:lr=4e-4,factor=0.7"}).plan == RatePlan((A, B))
    assert Arm.parse(A.to_dict()) == Arm.of(A)


def test_a_plan_that_repeats_its_last_distribution_is_the_shorter_one():
    assert RatePlan((A, B, B)) == RatePlan((A, B))
    assert RatePlan((A, A)) == resolve_plan("flat:lr=1e-4")
    assert RatePlan((A,)).fingerprint == A.fingerprint
    assert len({RatePlan(p).fingerprint for p in ((A,), (B,), (A, B), (B, A))}) == 4


@pytest.mark.parametrize("empty", [(), ("flat:lr=1",)])
def test_a_plan_of_something_else_is_refused(empty):
    with pytest.raises(InvalidDistributionError, match="rate plan"):
        RatePlan(empty)


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        (["flat:lr=1e-4", "flat:lr=0.0001"], "same distribution as flat:lr=1e-4"),
        (["flat:lr=1e-4 + l2-sp", "flat:lr=1e-4 + l2-sp:alpha=0.01"], "same arm as"),
        (["flat:lr=1e-4 + l2-sp + l2-sp:alpha=1"], "has the method l2-sp twice"),
        (["flat:lr=1e-4 + nonsense"], "no method 'nonsense'"),
        (["flat:lr=1e-4 |"], "empty stage"),
        ([{"rates": "flat:lr=1", "method": "l2-sp"}], "keys label, rates, methods"),
        ([{"rates": "flat:lr=1", "methods": "l2-sp"}], "methods is a list"),
    ],
)
def test_arms_that_cannot_be_compared_are_named(specs, says):
    with pytest.raises(LRDistError, match=says):
        parse_arms(specs)


def test_arms_that_differ_in_their_method_share_one_table(tiny_model, tmp_path):
    pulled = f"{FLAT} + l2-sp:alpha=1000"
    later = f"{FLAT} | flat:lr=1e-7"
    config = config_of(tiny_model, distributions=(FLAT,), arms=(pulled, later), seeds=(0, 1))
    result = compare(config, tmp_path, listener=Listener(), command="test")
    runs = {(run["arm"], run["seed"]): run for run in result.runs}
    assert [entry["label"] for entry in result.arms] == [FLAT, pulled, later]
    assert result.arms[1]["methods"] == ["l2-sp:alpha=1000"]
    assert len(result.arms[2]["stages"]) == 2
    assert len({run["identity"] for run in result.runs}) == 6
    for seed in (0, 1):
        plain = runs[FLAT, seed]["matrix"]
        assert runs[pulled, seed]["matrix"][0] == plain[0]
        assert runs[pulled, seed]["matrix"] != plain
        # The first stage has the same rates; in the second one hardly anything moves.
        assert runs[later, seed]["matrix"][1] == plain[1]
        assert runs[later, seed]["matrix"][2][0] == plain[1][0]
    assert [row.arm for row in differences([result], FLAT)] == [pulled, later]


def test_results_of_other_arms_are_joined_by_the_same_command(tiny_model, tmp_path):
    first = compare(config_of(tiny_model, distributions=(FLAT,), seeds=(0,)), tmp_path, listener=Listener())
    both = Listener()
    arms = (f"{FLAT} + l2-sp:alpha=1",)
    result = compare(config_of(tiny_model, distributions=(FLAT,), arms=arms, seeds=(0,)), tmp_path, listener=both)
    assert both.ran == [(arms[0], 0)]
    assert result.runs[0] == first.runs[0]


def test_a_run_of_version_0_1_is_still_the_same_run(tiny_model, tmp_path):
    """Its identity holds every setting and the method's text; arms and later settings must not change it."""
    from lr_dist.sequence.compare import RUN_VERSION, Comparison

    comparison = Comparison.prepare(config_of(tiny_model, distributions=(FLAT,), seeds=(0,)))
    bench = comparison.bench
    content = {
        "version": RUN_VERSION,
        "model": bench.model_info["fingerprint"],
        "tasks": [(task.name, task.fingerprint) for task in bench.tasks],
        "settings": {
            **{"epochs": 2, "batch_size": 16, "max_length": 64, "lr": 1e-05, "weight_decay": 0.0, "warmup": 0.1},
            **{"schedule": "cosine", "precision": "32-true", "evaluate_on": "validation", "method": "finetune"},
        },
        "distribution": LRDistribution.parse(FLAT).fingerprint,
        "seed": 0,
    }
    import hashlib

    old = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    listener = Listener()
    comparison.run(tmp_path, command="", listener=listener)
    (path,) = (tmp_path / "runs").glob("[!.]*.json")
    assert json.loads(path.read_text())["identity"] == old
    # As it was written then: with `distribution` for the label.
    run = json.loads(path.read_text())
    run["distribution"] = run.pop("arm")
    path.write_text(json.dumps(run))
    again = Listener()
    comparison.run(tmp_path, command="", listener=again)
    assert again.ran == []


def test_an_arm_without_a_label_is_called_by_its_text():
    assert Arm.of(A, ["l2-sp"]).label == f"{A} + l2-sp"
    with pytest.raises(ConfigurationError, match="twice"):
        Arm.of(A, ["l2-sp", "l2-sp:beta=1"])
