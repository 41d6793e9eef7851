"""Which preset or rate is recommended, and what is said about it."""

from __future__ import annotations

import pytest

from lr_dist.advice import Case, choose, recommend
from lr_dist.advice.known import MEASURED, known
from lr_dist.advice.recommendation import level
from lr_dist.errors import ConfigurationError, ModelLoadError
from lr_dist.presets import get_preset, resolve_plan
from lr_dist.sequence.arm import Arm


@pytest.mark.parametrize(
    ("case", "preset"),
    [
        (Case("electra", 12, ("mrpc",), 3668), "electra"),
        (Case("electra", 24, ("mnli",), 392_702), "electra-large"),
        (Case("vit", 12, ("imagenet",), 1_281_167, batch_size=1024), "mae-vit-b"),
        (Case("vit_mae", 32, ("imagenet",), 1_281_167, batch_size=1024), "mae-vit-h"),
        (Case("clip", 24, ("imagenet",), 1_281_167, batch_size=2048), "clip-vit-l14"),
        (Case("xlnet", 24, ("squad2",), 130_319, batch_size=48), None),  # its preset has a caution
        (Case("bert", 12, ("imdb",), 25_000, batch_size=24), "bert-sun2019"),
        (Case("bert", 24, ("rte",), 2490), "bert-zhang2021"),
        (Case("bert", 6, ("sst2", "qqp"), 1500), None),
        (Case("llama", 32, ("mine",), 5000), None),
    ],
)
def test_the_preset_of_the_same_family_and_depth_is_named(case: Case, preset: str | None) -> None:
    advice = choose(case)
    assert advice.preset == preset
    if preset is not None:
        assert advice.plan == get_preset(preset).plan
        assert advice.schedule == get_preset(preset).schedule


def test_a_small_bert_gets_the_rate_that_was_measured_and_not_the_one_of_bert_base() -> None:
    advice = choose(Case("bert", 6, ("sst2", "qqp"), 1500))
    assert str(advice.plan) == "flat:lr=1.34e-4 | decay:lr=4e-4,factor=0.7"
    assert advice.methods == ("interpolate:alpha=0.7",)
    assert advice.differences == ()
    assert "at equal p_s" in advice.evidence[0]
    alone = choose(Case("bert", 6, ("sst2",), 1500))
    assert (str(alone.plan), alone.methods) == ("flat:lr=1.34e-4", ())
    assert "+.005" in alone.evidence[0]


def test_where_nothing_is_near_the_words_say_so() -> None:
    advice = choose(Case("llama", 32, ("mine",), 5000))
    assert advice.evidence == ()
    assert str(advice.plan) == "flat:lr=5e-5"
    assert any(line.startswith("model family: llama here, ") for line in advice.differences)
    assert "too far to take its rates" in advice.limits
    assert "nothing that was measured near this case" in advice.text()


def test_the_same_family_far_away_in_size_is_not_near() -> None:
    few = choose(Case("vit", 12, ("mine",), 500, batch_size=32))
    assert few.preset is None
    assert "examples: 500 here, 1,281,167 there" in few.differences
    assert "batch size: 32 here, 1,024 there" in few.differences


def test_methods_are_recommended_only_where_something_can_be_forgotten() -> None:
    one, two = Case("electra", 12, ("mrpc",), 3668), Case("electra", 12, ("mrpc", "rte"), 3668)
    started = Case("electra", 12, ("mrpc",), 3668, fine_tuned=True)
    shift = Case("electra", 12, ("sst2@length",), 3668)
    assert choose(one).methods == ()
    for case in (two, started, shift):
        advice = choose(case)
        assert advice.methods == ("interpolate:alpha=0.7",)
        assert "order: something learned before is to be kept here, one task alone there" in advice.differences
        assert any("replay:ratio=0.1" in line for line in advice.advice)
    # The text for a comparison is one that a comparison reads.
    arm = Arm.parse(choose(two).arm)
    assert arm.plan == get_preset("electra").plan
    assert arm.methods == ("interpolate:alpha=0.7",)


def test_distances_grow_with_every_difference() -> None:
    exact = Case("bert", 6, ("a", "b"), 1500)
    assert MEASURED.distance(exact) == 0
    distances = [
        MEASURED.distance(case)
        for case in (
            Case("bert", 12, ("a", "b"), 1500),
            Case("bert", 24, ("a", "b"), 1500),
            Case("bert", 24, ("a", "b"), 6000),
            Case("bert", 24, ("a", "b"), 6000, batch_size=128),
        )
    ]
    assert distances == [1, 2, 3, 4]


def test_only_presets_with_a_setting_and_without_a_caution_are_candidates() -> None:
    names = {setting.preset.name for setting in known() if setting.preset is not None}
    assert {"electra", "mae-vit-b", "beit-large"} <= names
    assert not names & {"kenneweg2022", "kenneweg2022-relative", "ulmfit", "lp-ft", "xlnet-large-squad"}


def test_the_level_is_the_geometric_mean_of_the_layers_that_train() -> None:
    # Layers at 1e-4 x (.25, .5), head 1e-4, embeddings 1.25e-5.
    assert level(resolve_plan("decay:lr=1e-4,factor=0.5"), 2) == pytest.approx(1e-4 * (0.25 * 0.5) ** 0.5)
    assert level(resolve_plan("flat:lr=1e-4,freeze=embeddings..layers.0,head=1"), 2) == pytest.approx(1e-4)
    assert level(resolve_plan("flat:lr=1 | flat:lr=3,freeze=embeddings..layers.-1 @ 20% > flat:lr=2e-5"), 3) == (
        pytest.approx(2e-5)
    )


def test_a_plan_is_scaled_so_that_its_layers_have_the_best_flat_rate() -> None:
    advice = choose(Case("electra", 12, ("mrpc",), 3668)).scaled_to(3e-5, "Scanned.")
    assert level(advice.plan, 12) == pytest.approx(3e-5, rel=1e-5)
    before, after = (plan.stages[0].rates(12) for plan in (get_preset("electra").plan, advice.plan))  # type: ignore[union-attr]
    ratios = {group: after[group] / before[group] for group in before}
    assert list(ratios.values()) == pytest.approx([ratios["head"]] * 14)
    assert advice.evidence[0] == "Scanned."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "tasks must be one name or more"),
        ({"examples": 0}, "examples"),
        ({"batch_size": 1.5}, "batch_size"),
    ],
)
def test_a_case_that_cannot_be_is_refused(changes, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Case(**{"family": "bert", "layers": 6, "tasks": ("a",), "examples": 100, **changes})


def test_what_is_wrong_is_said_before_a_model_is_looked_for() -> None:
    with pytest.raises(ConfigurationError, match="a list of names"):
        recommend("nowhere/at-all", "sst2", 100)
    with pytest.raises(ConfigurationError, match="examples"):
        recommend("nowhere/at-all", ["sst2"], -1)
    with pytest.raises(ModelLoadError):
        recommend("./no-such-folder", ["sst2"], 100)
