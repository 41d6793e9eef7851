"""Which arms form a curve."""

from __future__ import annotations

from lr_dist.report.families import families, flat_family, is_flat
from lr_dist.sequence.arm import Arm


def entries(*texts: str) -> list[dict]:
    return [Arm.parse(text).to_dict(1e-5, 4) for text in texts]


def found(*texts: str) -> dict[str, list[float]]:
    return {family.name: [number for number, _ in family.members] for family in families(entries(*texts))}


def test_flat_rates_form_a_curve_in_the_order_of_the_rate():
    assert found("flat:lr=2e-4", "flat:lr=5e-5", "flat:lr=1e-4") == {"flat:lr=…": [5e-5, 1e-4, 2e-4]}


def test_a_methods_strength_forms_a_curve_and_a_default_is_a_number_too():
    names = found(
        "flat:lr=1e-4",
        "flat:lr=1e-4 + interpolate:alpha=0.5",
        "flat:lr=1e-4 + interpolate",  # alpha=0.7
        "flat:lr=1e-4 + interpolate:alpha=0.9",
        "flat:lr=1e-4 + l2-sp:alpha=0.1",
    )
    assert list(names.values()) == [[0.5, 0.7, 0.9]]


def test_arms_that_differ_in_two_numbers_are_not_joined_and_a_grid_gives_both_directions():
    assert found("flat:lr=1e-4 + l2-sp:alpha=0.1", "flat:lr=2e-4 + l2-sp:alpha=0.2") == {}
    grid = [f"flat:lr={lr} + l2-sp:alpha={alpha}" for lr in ("1e-4", "2e-4") for alpha in ("0.1", "0.2", "0.3")]
    assert found(*grid) == {
        "flat:lr=1e-4 + l2-sp:alpha=…": [0.1, 0.2, 0.3],
        "flat:lr=2e-4 + l2-sp:alpha=…": [0.1, 0.2, 0.3],
        "flat:lr=… + l2-sp:alpha=0.1": [1e-4, 2e-4],
        "flat:lr=… + l2-sp:alpha=0.2": [1e-4, 2e-4],
        "flat:lr=… + l2-sp:alpha=0.3": [1e-4, 2e-4],
    }


def test_the_scale_of_all_rates_is_a_strength_and_so_is_one_setting_of_the_shape():
    texts = ("decay:lr=4e-4,factor=0.7", "decay:lr=2e-4,factor=0.7", "decay:lr=4e-4,factor=0.9")
    first, second = families(entries(*texts))
    assert (first.name, first.labels) == ("decay:lr=…,factor=0.7", (texts[1], texts[0]))
    assert first.members[1][0] == 2 * first.members[0][0]
    assert (second.name, second.members) == ("decay:lr=4e-4,factor=…", ((0.7, texts[0]), (0.9, texts[2])))


def test_later_rates_form_a_curve_with_the_plan_in_which_they_equal_the_first():
    texts = ("flat:lr=1e-4 | flat:lr=3e-5", "flat:lr=1e-4", "flat:lr=1e-4 | flat:lr=3e-4")
    (family,) = families(entries(*texts))
    assert family.labels == texts
    assert flat_family(entries(*texts)) == family


def test_the_line_to_beat_is_the_flat_rates_without_methods_and_freezing():
    arms = entries("flat:lr=1e-4 + l2-sp:alpha=1", "flat:lr=1e-4,freeze=embeddings", "decay:lr=1e-4,factor=0.5")
    assert not any(map(is_flat, arms))
    assert flat_family(arms) is None
    family = flat_family([*arms, *entries("flat:lr=1e-4")])
    assert family is not None
    assert family.labels == ("flat:lr=1e-4",)
