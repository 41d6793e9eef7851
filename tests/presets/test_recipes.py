"""Presets that hold a plan, methods and a schedule, and where they are accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lr_dist import LayerwiseLR, LRDistribution, load_preset
from lr_dist.errors import (
    InvalidDistributionError,
    InvalidPlanError,
    InvalidPresetError,
    PresetMethodsWarning,
)
from lr_dist.presets import (
    Preset,
    PresetSchedule,
    Provenance,
    get_preset,
    read_preset,
    resolve_distribution,
    resolve_plan,
    resolve_recipe,
)
from lr_dist.rate_plan import RatePlan
from lr_dist.sequence.arm import Arm

PROVENANCE = Provenance("a study", "bert", ("sst2>rte",), 50, None, "1", "2026-01-31", ("result.json",))
HEAD_FIRST = "flat:lr=1e-3,freeze=embeddings..layers.-1 @ 20% > flat:lr=1e-4"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "own"
    path.mkdir()
    monkeypatch.setenv("LR_DIST_PRESETS", str(path))
    return path


def save(folder: Path, name: str, plan: str, methods: tuple[str, ...] = (), **more: Any) -> Preset:
    parsed = resolve_plan(plan)
    first = parsed.stages[0]
    distribution = first if isinstance(first, LRDistribution) else first.peak
    preset = Preset(name, "For the tests.", distribution, PROVENANCE, plan=parsed, methods=methods, **more)
    (folder / f"{name}.yaml").write_text(preset.to_yaml(), encoding="utf-8")
    return preset


def test_a_whole_recipe_reads_back_from_its_file(folder: Path) -> None:
    schedule = PresetSchedule("cosine", 0.1, 0.01, 3, "a note")
    preset = save(
        folder, "mine", f"flat:lr=1e-4 | {HEAD_FIRST}", ("interpolate:alpha=0.7",), schedule=schedule, caution="Slow."
    )
    assert read_preset(folder / "mine.yaml") == get_preset("mine") == preset
    assert get_preset("mine").plan == resolve_plan(f"flat:lr=1e-4 | {HEAD_FIRST}")
    assert get_preset("mine").methods == ("interpolate:alpha=0.7",)
    assert get_preset("mine").schedule == schedule
    assert load_preset("mine") == LRDistribution.flat(1e-4)


def test_a_file_of_one_distribution_is_a_plan_of_one_stage_and_is_written_as_before(folder: Path) -> None:
    preset = Preset("old", "For the tests.", LRDistribution.flat(1e-4), PROVENANCE)
    assert preset.plan == RatePlan((LRDistribution.flat(1e-4),))
    assert list(preset.to_dict()) == ["schema_version", "name", "purpose", "distribution", "provenance"]
    assert len(preset.to_dict()["provenance"]) == 8


def test_a_plan_in_a_file_may_be_text(folder: Path) -> None:
    data = {**Preset("t", "For the tests.", LRDistribution.flat(1e-4), PROVENANCE).to_dict(), "plan": HEAD_FIRST}
    del data["distribution"]
    preset = Preset.from_dict(data)
    assert preset.plan == resolve_plan(HEAD_FIRST)
    # The highest rates, where the file has no distribution of its own.
    assert preset.distribution.rates(2) == {"embeddings": 1e-4, "layers.0": 1e-4, "layers.1": 1e-4, "head": 1e-3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distribution": ...}, "missing key 'distribution' in the preset; it has a distribution or a plan"),
        ({"plan": "flat:lr=1e-4 @ 20%"}, "plan: No phase follows"),
        ({"plan": "kenneweg2022 | flat:lr=1e-4"}, "plan: .*is not a distribution"),
        ({"plan": "flat:lr=1,relative=true"}, "must both hold rates"),
        ({"methods": "interpolate"}, "methods must be a list of at least one text"),
        ({"schedule": {"shape": "step"}}, "schedule.shape must be one of"),
        ({"schedule": {"shape": "linear", "warmup": 1.5}}, "schedule.warmup must be a number from 0"),
        ({"schedule": {"shape": "linear", "color": 1}}, "unknown key 'color' in schedule"),
        ({"caution": "two\nlines"}, "caution must be one line of text"),
        ({"provenance": {**PROVENANCE.to_dict(), "layers": [0]}}, r"provenance.layers\[0\] must be a whole number"),
        ({"provenance": {**PROVENANCE.to_dict(), "examples": [5, 2]}}, "smallest and of the largest"),
        ({"provenance": {**PROVENANCE.to_dict(), "spread": [0.5]}}, "factors of 1 or more"),
    ],
)
def test_an_invalid_recipe_is_refused_with_its_key(changes: dict[str, Any], message: str) -> None:
    data = Preset("t", "For the tests.", LRDistribution.flat(1e-4), PROVENANCE).to_dict()
    data.update(changes)
    data = {key: value for key, value in data.items() if value is not ...}
    with pytest.raises(InvalidPresetError, match=message):
        Preset.from_dict(data, source="here.yaml")


def test_a_presets_name_in_a_plan_stands_for_its_plan(folder: Path) -> None:
    save(folder, "phased", HEAD_FIRST)
    save(folder, "staged", "flat:lr=1e-4 | flat:lr=1e-5")
    assert resolve_plan("phased") == resolve_plan(HEAD_FIRST)
    assert resolve_plan(str(folder / "phased.yaml")) == resolve_plan(folder / "phased.yaml") == resolve_plan("phased")
    assert resolve_plan("flat:lr=1e-5 | phased") == resolve_plan(f"flat:lr=1e-5 | {HEAD_FIRST}")
    assert resolve_plan("staged*0.5") == resolve_plan("flat:lr=5e-5 | flat:lr=5e-6")
    halved = "flat:lr=5e-4,freeze=embeddings..layers.-1 @ 20% > flat:lr=5e-5"
    assert resolve_plan("phased * 0.5") == resolve_plan(halved)
    with pytest.raises(InvalidPlanError, match="plan of 2 stages, so it cannot be one stage"):
        resolve_plan("flat:lr=1e-4 | staged")
    with pytest.raises(InvalidPlanError, match="so it cannot be a phase itself"):
        resolve_plan("phased @ 20% > flat:lr=1e-4")


def test_phases_are_not_lost_where_one_distribution_is_needed(folder: Path) -> None:
    save(folder, "phased", HEAD_FIRST)
    for spec in ("phased", str(folder / "phased.yaml")):
        with pytest.raises(InvalidDistributionError, match=r"is the plan .* load_preset\('phased'\)"):
            resolve_distribution(spec)


def test_an_arm_takes_a_presets_methods_and_its_own_take_their_place(folder: Path) -> None:
    save(folder, "kept", "flat:lr=1e-4", ("interpolate:alpha=0.7", "l2-sp:alpha=0.1"))
    for spec in ("kept", "kept*1", {"rates": "kept"}, str(folder / "kept.yaml")):
        assert Arm.parse(spec).methods == ("interpolate:alpha=0.7", "l2-sp:alpha=0.1"), spec
    assert Arm.parse("kept").label == "kept"
    assert Arm.parse("kept + interpolate:alpha=0.5").methods == ("l2-sp:alpha=0.1", "interpolate:alpha=0.5")
    assert not Arm.parse("kept").same_as(Arm.parse("flat:lr=1e-4"))
    assert resolve_recipe("flat:lr=1e-5 | kept")[1] == ("interpolate:alpha=0.7", "l2-sp:alpha=0.1")
    assert resolve_recipe("flat:lr=1e-5") == (resolve_plan("flat:lr=1e-5"), ())


def test_the_callback_takes_a_presets_phases_and_says_that_methods_are_left_out(folder: Path) -> None:
    save(folder, "phased", HEAD_FIRST)
    callback = LayerwiseLR("phased")
    assert callback.phases == resolve_plan(HEAD_FIRST).stages[0]
    save(folder, "kept", "flat:lr=1e-4", ("interpolate:alpha=0.7",))
    with pytest.warns(PresetMethodsWarning, match=r"build_method\('interpolate:alpha=0.7'\)"):
        assert LayerwiseLR("kept").distribution == LRDistribution.flat(1e-4)
