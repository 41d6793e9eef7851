"""Only an arm that beats the tuned control becomes a preset, and its figures are the measured ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lr_dist.advice import Case, choose
from lr_dist.errors import ConfigurationError
from lr_dist.evidence.analysis import Estimate, Finding
from lr_dist.evidence.config import EvidenceConfig
from lr_dist.evidence.preset import preset_of
from lr_dist.evidence.summary import Outcome
from lr_dist.evidence.tuning import Choice
from lr_dist.presets import list_presets, resolve_plan
from lr_dist.presets.schema import Preset

CONFIG = EvidenceConfig(
    model="minilm",
    limit=1500,
    first="flat:lr=3e-4",
    search=(("sst2", "qqp"),),
    held_out=(("qnli", "qqp"),),
    contenders={"flat": "flat:lr=1e-4", "ewc": "flat:lr=6e-4 + ewc:strength=1e5"},
)


def finding(name: str, text: str, p_o: Estimate, p_s: Estimate, at_equal: Estimate | None = None) -> Finding:
    means = {"p_o": 0.954, "p_s": 0.961, "average_accuracy": 0.9575, "forgetting": 0.002}
    return Finding(name, text, means, {"p_o": p_o, "p_s": p_s}, Estimate(0.89, 0.6, 1.2, 6, 30), at_equal, 12.0, 30, 0)


def outcome(p_o: Estimate, p_s: Estimate, finished: int = 60, at_equal: Estimate | None = None) -> Outcome:
    none = Estimate(0.0, 0.0, 0.0, 6, 30)
    texts = {"flat": "flat:lr=1e-4", "ewc": "flat:lr=6e-4 + ewc:strength=1e5"}
    return Outcome(
        config={},
        command="lr-dist evidence --config my.yaml",
        environment={"processor": "a processor", "versions": {"torch": "2.13.0"}},
        choices={name: Choice(name, {}, text, 0.95, 4, 0) for name, text in texts.items()},
        findings=[finding("flat", texts["flat"], none, none), finding("ewc", texts["ewc"], p_o, p_s, at_equal)],
        diverged=[],
        curves={},
        finished=finished,
        planned=60,
    )


BETTER, EQUAL = Estimate(0.011, 0.005, 0.015, 6, 30), Estimate(0.002, -0.002, 0.007, 6, 30)
WORSE = Estimate(-0.015, -0.023, -0.006, 6, 30)


def test_the_preset_has_rates_methods_and_figures_of_the_arm() -> None:
    preset = preset_of(CONFIG, outcome(BETTER, EQUAL), "ewc", "mine")
    assert preset.plan == resolve_plan("flat:lr=3e-4 | flat:lr=6e-4")
    assert preset.methods == ("ewc:strength=1e5",)
    assert preset.caution is None
    assert preset.provenance.tasks == ("sst2>qqp",)
    assert (preset.provenance.families, preset.provenance.layers) == (("bert",), (6,))
    assert (preset.provenance.examples, preset.provenance.in_sequence) == ((1500, 1500), True)
    tuned_on = (("demo-sentiment", "my-news=/data", {"name": "b-c", "path": "/x"}),)
    other = preset_of(replace(CONFIG, search=tuned_on), outcome(BETTER, EQUAL), "ewc", "mine")
    assert other.provenance.tasks == ("demo-sentiment>my-news>b-c",)
    text = "\n".join(preset.provenance.evidence)
    for figure in ("lr-dist evidence --config my.yaml", "+.011 [+.005, +.015]", "30 pairs of runs in 6", ".954"):
        assert figure in text
    assert Preset.from_dict(preset.to_dict()) == preset
    assert preset_of(CONFIG, outcome(BETTER, EQUAL, 20), "ewc", "mine").caution == "Preliminary: 20 of 60 runs."


@pytest.mark.parametrize(
    ("p_o", "p_s"), [(EQUAL, EQUAL), (BETTER, WORSE), (WORSE, BETTER), (replace(BETTER, low=None, high=None), EQUAL)]
)
def test_an_arm_that_is_not_clearly_better_is_refused_with_its_figures(p_o: Estimate, p_s: Estimate) -> None:
    with pytest.raises(ConfigurationError, match=r"has not earned a preset.*p_s by [+-]\.0"):
        preset_of(CONFIG, outcome(p_o, p_s), "ewc", "mine")


def test_an_arm_that_learns_less_needs_a_higher_p_o_at_equal_p_s() -> None:
    preset = preset_of(CONFIG, outcome(BETTER, WORSE, at_equal=BETTER), "ewc", "mine")
    assert "than with any flat rate that learns as much of the later one" in preset.purpose
    assert any("equal p_s" in line and "+.011 [+.005, +.015]" in line for line in preset.provenance.evidence)
    with pytest.raises(ConfigurationError, match=r"at equal p_s by \+\.002"):
        preset_of(CONFIG, outcome(BETTER, WORSE, at_equal=EQUAL), "ewc", "mine")


def test_a_preset_of_an_arm_that_was_given_up_says_so() -> None:
    found = outcome(BETTER, EQUAL)
    found = replace(found, findings=[found.findings[0], replace(found.findings[1], given_up=1)])
    assert preset_of(CONFIG, found, "ewc", "mine").caution == "Compared with 1 of 5 seeds."


@pytest.mark.parametrize("arm", ["flat", "si"])
def test_the_control_and_unknown_arms_are_no_presets(arm: str) -> None:
    with pytest.raises(ConfigurationError, match="one of the arms ewc"):
        preset_of(CONFIG, outcome(BETTER, EQUAL), arm, "mine")


def test_a_preset_of_ones_own_is_recommended_with_its_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = preset_of(CONFIG, outcome(BETTER, EQUAL), "ewc", "mine")
    elsewhere = replace(preset, provenance=replace(preset.provenance, families=("roberta",)))
    (tmp_path / "mine.yaml").write_text(elsewhere.to_yaml())
    monkeypatch.setenv("LR_DIST_PRESETS", str(tmp_path))
    advice = choose(Case("roberta", 6, ("sst2", "qqp"), 1500))
    assert (advice.preset, advice.methods) == ("mine", ("ewc:strength=1e5",))


def test_the_shipped_presets_of_evidence_say_where_their_figures_come_from() -> None:
    shipped = [entry.preset for entry in list_presets() if entry.preset and entry.preset.name.startswith("minilm-")]
    assert {preset.name for preset in shipped} >= {"minilm-clinc-ewc", "minilm-clinc-replay"}
    for preset in shipped:
        assert preset.provenance.source == "lr-dist evidence"
        assert preset.provenance.evidence[0].startswith("lr-dist evidence --config configs/evidence/")
        assert preset.methods
