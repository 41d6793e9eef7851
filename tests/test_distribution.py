"""LRDistribution: every family against numbers computed by hand, its operations, and its forms."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lr_dist import LRDistribution, load_preset
from lr_dist._distribution.edits import Edit
from lr_dist._distribution.families import COMPOSED, FAMILIES, grouped_layers
from lr_dist._distribution.sanity import brief
from lr_dist.distribution import GROUPED_KEYS, group_names
from lr_dist.errors import (
    InvalidDistributionError,
    InvalidRateError,
    LayerCountError,
    LRDistError,
    ZeroRateError,
)
from lr_dist.presets import resolve_distribution

TEN = dict(zip(GROUPED_KEYS, [1e-6, 2e-6, 4e-6, 8e-6, 16e-6, 32e-6, 64e-6, 128e-6, 256e-6, 1e-3], strict=True))


def rates_of(distribution: LRDistribution, num_layers: int) -> list[float]:
    return list(distribution.rates(num_layers).values())


# Families, by hand ---------------------------------------------------------------------------------------


def test_groups_are_named_from_the_input_to_the_head() -> None:
    assert list(LRDistribution.flat(1e-4).rates(3)) == ["embeddings", "layers.0", "layers.1", "layers.2", "head"]
    assert group_names(1) == ["embeddings", "layers.0", "head"]


def test_flat_gives_one_rate_everywhere() -> None:
    assert rates_of(LRDistribution.flat(3e-5), 4) == [3e-5] * 6


def test_decay_leaves_the_head_at_the_rate_and_halves_it_at_every_step_down() -> None:
    assert rates_of(LRDistribution.decay(8.0, 0.5), 3) == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_discriminative_divides_by_2_6_at_every_step_down() -> None:
    expected = [1e-2 / 2.6**3, 1e-2 / 2.6**2, 1e-2 / 2.6, 1e-2]
    assert rates_of(LRDistribution.discriminative(1e-2), 2) == pytest.approx(expected, rel=1e-12)
    assert rates_of(LRDistribution.discriminative(8.0, 2.0), 1) == [2.0, 4.0, 8.0]


def test_linear_goes_in_equal_steps_from_the_embeddings_to_the_head() -> None:
    assert rates_of(LRDistribution.linear(1.0, 5.0), 3) == pytest.approx([1, 2, 3, 4, 5], rel=1e-15)


def test_cosine_follows_half_a_cosine() -> None:
    # shares (1 - cos(pi i / 4)) / 2 for i = 0..4
    root = math.sqrt(0.5)
    expected = [2, 2 + 4 * (1 - root) / 2, 4, 2 + 4 * (1 + root) / 2, 6]
    assert rates_of(LRDistribution.cosine(2.0, 6.0), 3) == pytest.approx(expected, rel=1e-14)


def test_grouped_places_the_eight_groups_on_12_layers_as_the_paper_does() -> None:
    assert [list(r) for r in grouped_layers(12)] == [[0, 1], [2], [3, 4], [5], [6, 7], [8], [9, 10], [11]]
    expected = [1, 2, 2, 4, 8, 8, 16, 32, 32, 64, 128, 128, 256, 1000]
    assert rates_of(LRDistribution.grouped(TEN), 12) == pytest.approx([e * 1e-6 for e in expected], rel=1e-15)


def test_grouped_places_the_eight_groups_on_24_layers_three_by_three() -> None:
    rates = rates_of(LRDistribution.grouped(TEN), 24)
    assert rates[1:-1] == [rate for key in GROUPED_KEYS[1:-1] for rate in [TEN[key]] * 3]


@pytest.mark.parametrize("num_layers", [8, 9, 10, 11, 12, 13, 16, 24, 36, 100])
def test_the_paper_formula_places_every_layer_once(num_layers: int) -> None:
    placed = [layer for members in grouped_layers(num_layers) for layer in members]
    assert placed == list(range(num_layers))
    low = [math.ceil(num_layers / 8 * (i - 1)) for i in range(1, 9)]
    assert [members.start for members in grouped_layers(num_layers)] == low


def test_grouped_on_fewer_than_8_layers_keeps_the_ends_and_interpolates_between() -> None:
    # g1..g8 are 2e-6 * 2^(0..7); 4 layers sit at 0, 7/3, 14/3 and 7.
    expected = [2e-6 * 2 ** (7 * j / 3) for j in range(4)]
    assert rates_of(LRDistribution.grouped(TEN), 4) == pytest.approx([1e-6, *expected, 1e-3], rel=1e-12)


def test_layers_given_one_by_one_serve_that_number_exactly() -> None:
    distribution = LRDistribution.from_layers(1e-6, [1e-5, 0.0, 3e-5], 1e-3)
    assert rates_of(distribution, 3) == [1e-6, 1e-5, 0.0, 3e-5, 1e-3]


def test_interpolation_is_linear_in_the_logarithm() -> None:
    distribution = LRDistribution.from_layers(1.0, [1.0, 100.0], 1.0)
    assert rates_of(distribution, 3)[1:-1] == pytest.approx([1, 10, 100], rel=1e-12)
    assert rates_of(distribution, 5)[1:-1] == pytest.approx([10 ** (j / 2) for j in range(5)], rel=1e-12)


def test_a_single_layer_takes_the_rate_of_the_middle() -> None:
    assert rates_of(LRDistribution.from_layers(1.0, [1.0, 100.0], 1.0), 1)[1] == pytest.approx(10, rel=1e-12)
    assert rates_of(LRDistribution.from_layers(1.0, [2.0, 7.0, 3.0], 1.0), 1)[1] == 7.0


def test_next_to_a_frozen_layer_the_nearer_rate_is_taken_and_the_shallower_one_in_the_middle() -> None:
    assert rates_of(LRDistribution.from_layers(1, [0.0, 4.0], 1), 4)[1:-1] == [0.0, 0.0, 4.0, 4.0]
    assert rates_of(LRDistribution.from_layers(1, [0.0, 4.0], 1), 3)[1:-1] == [0.0, 0.0, 4.0]
    assert rates_of(LRDistribution.from_layers(1, [4.0, 0.0], 1), 3)[1:-1] == [4.0, 4.0, 0.0]


@given(st.lists(st.floats(1e-9, 1.0), min_size=2, max_size=60))
def test_depths_that_both_models_have_keep_their_rate_exactly(layers: list[float]) -> None:
    # N' = 2 N - 1 holds every depth of N.
    rates = rates_of(LRDistribution.from_layers(1.0, layers, 1.0), 2 * len(layers) - 1)[1:-1]
    assert rates[::2] == layers
    for left, between, right in zip(layers, rates[1::2], layers[1:], strict=False):
        assert between == pytest.approx(math.sqrt(left * right), rel=1e-9)


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=20), st.integers(1, 60))
def test_interpolation_never_leaves_the_range_of_the_given_rates(layers: list[float], num_layers: int) -> None:
    rates = rates_of(LRDistribution.from_layers(1.0, layers, 1.0), num_layers)[1:-1]
    assert len(rates) == num_layers
    assert min(layers) * (1 - 1e-9) <= min(rates) <= max(rates) <= max(layers) * (1 + 1e-9)


# Operations ----------------------------------------------------------------------------------------------


def test_freezing_a_range_sets_exactly_those_groups_to_zero() -> None:
    rates = LRDistribution.flat(1e-4).freeze("embeddings", "layers.1").rates(4)
    assert [name for name, rate in rates.items() if rate == 0] == ["embeddings", "layers.0", "layers.1"]


def test_freezing_by_relative_depth_takes_the_lower_half_of_any_model() -> None:
    lower_half = LRDistribution.flat(1e-4).freeze("embeddings", 0.5)
    assert rates_of(lower_half, 4) == [0, 0, 0, 1e-4, 1e-4, 1e-4]
    assert rates_of(lower_half, 5) == [0, 0, 0, 0, 1e-4, 1e-4, 1e-4]
    assert rates_of(lower_half, 1) == [0, 0, 1e-4]


def test_a_range_between_two_layers_of_a_small_model_changes_nothing() -> None:
    assert rates_of(LRDistribution.flat(1.0).freeze(0.4, 0.45), 3) == [1.0] * 5


def test_overriding_counts_layers_from_the_top_with_a_minus() -> None:
    assert rates_of(LRDistribution.flat(1.0).override("layers.-1", 5.0), 3) == [1.0, 1.0, 1.0, 5.0, 1.0]
    assert rates_of(LRDistribution.flat(1.0).override("layers.0", 5.0), 3) == [1.0, 5.0, 1.0, 1.0, 1.0]


def test_the_later_edit_wins() -> None:
    distribution = LRDistribution.flat(1.0).freeze("embeddings", "head").override("head", 2.0)
    assert rates_of(distribution, 2) == [0.0, 0.0, 0.0, 2.0]
    assert distribution.can_freeze
    assert not LRDistribution.flat(1.0).override("head", 2.0).can_freeze


def test_operations_leave_the_original_as_it_was() -> None:
    original = LRDistribution.flat(1.0)
    original.freeze(), original.override("head", 3.0), original.scale(2.0), original.relative_to(0.5)
    assert original == LRDistribution.flat(1.0)


@pytest.mark.parametrize(("first", "last"), [(0.8, 0.2), ("head", "embeddings"), ("head", 0.5), (0.5, "embeddings")])
def test_a_range_that_runs_backwards_raises_at_once(first: str | float, last: str | float) -> None:
    with pytest.raises(InvalidDistributionError, match="backwards"):
        LRDistribution.flat(1.0).freeze(first, last)


def test_a_range_of_layers_that_runs_backwards_raises_when_the_number_of_layers_is_known() -> None:
    ambiguous = LRDistribution.flat(1.0).freeze("layers.2", "layers.-2")
    assert rates_of(ambiguous, 4) == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    with pytest.raises(LayerCountError, match=r"layers\.2\.\.layers\.-2 runs backwards on 3 layers"):
        ambiguous.rates(3)


@pytest.mark.parametrize("group", ["layers.3", "layers.-4"])
def test_an_edit_of_a_layer_that_the_model_lacks_raises(group: str) -> None:
    with pytest.raises(LayerCountError, match="the model has 3 layers"):
        LRDistribution.flat(1.0).override(group, 2.0).rates(3)


@pytest.mark.parametrize("group", ["layers.01", "layers.-0", "layers.", "layer.1", "layers.٣", "Head", "", 1.5, -0.1])
def test_an_end_that_names_no_depth_raises(group: str) -> None:
    with pytest.raises(InvalidDistributionError, match="is not a depth"):
        LRDistribution.flat(1.0).freeze(group)


def test_scaling_multiplies_rates_and_edits_but_no_factor() -> None:
    scaled = LRDistribution.decay(8.0, 0.5).override("embeddings", 3.0).scale(0.25)
    assert rates_of(scaled, 1) == [0.75, 1.0, 2.0]
    mean = LRDistribution.geometric_mean([LRDistribution.linear(1.0, 3.0), LRDistribution.flat(2.0)]).scale(10.0)
    assert rates_of(mean, 1) == pytest.approx([10 * math.sqrt(2), 20, 10 * math.sqrt(6)], rel=1e-12)


def test_a_relative_distribution_becomes_rates_and_back() -> None:
    relative = LRDistribution.decay(2.0, 0.5, relative=True)
    assert relative.absolute(1e-4) == LRDistribution.decay(2e-4, 0.5)
    assert LRDistribution.flat(2e-5).relative_to(1e-5).relative
    assert rates_of(LRDistribution.flat(2e-5).relative_to(1e-5), 1) == pytest.approx([2.0] * 3, rel=1e-15)
    assert LRDistribution.flat(2e-5).absolute(7.0) == LRDistribution.flat(2e-5)
    with pytest.raises(ZeroRateError, match="base_lr is 0"):
        relative.absolute(0.0)


# Means ---------------------------------------------------------------------------------------------------


def test_the_geometric_mean_of_flat_rates_is_flat() -> None:
    mean = LRDistribution.geometric_mean([LRDistribution.flat(1.0), LRDistribution.flat(100.0)])
    assert mean.family == "flat"
    assert rates_of(mean, 2) == pytest.approx([10.0] * 4, rel=1e-14)


def test_weights_count_in_the_logarithm() -> None:
    parts = [LRDistribution.flat(1.0), LRDistribution.flat(16.0)]
    assert rates_of(LRDistribution.geometric_mean(parts, [3, 1]), 1)[0] == pytest.approx(2.0, rel=1e-14)
    assert rates_of(LRDistribution.geometric_mean(parts, [0, 5]), 1)[0] == pytest.approx(16.0, rel=1e-14)


ANY_FAMILY = st.one_of(
    st.builds(LRDistribution.flat, st.floats(1e-9, 1)),
    st.builds(LRDistribution.decay, st.floats(1e-9, 1), st.floats(0.3, 1.5)),
    st.builds(LRDistribution.discriminative, st.floats(1e-9, 1), st.floats(0.5, 3)),
    st.builds(LRDistribution.linear, st.floats(1e-9, 1), st.floats(1e-9, 1)),
    st.builds(LRDistribution.cosine, st.floats(1e-9, 1), st.floats(1e-9, 1)),
    st.builds(
        lambda rates: LRDistribution.grouped(dict(zip(GROUPED_KEYS, rates, strict=True))),
        st.lists(st.floats(1e-9, 1), min_size=10, max_size=10),
    ),
    st.builds(
        LRDistribution.from_layers,
        st.floats(1e-9, 1),
        st.lists(st.floats(1e-9, 1), min_size=1, max_size=6),
        st.floats(1e-9, 1),
    ),
)


@settings(max_examples=60)
@given(st.lists(ANY_FAMILY, min_size=1, max_size=4), st.integers(1, 14), st.data())
def test_the_geometric_mean_is_taken_at_every_depth(
    parts: list[LRDistribution], num_layers: int, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(parts), max_size=len(parts)))
    columns = zip(*(rates_of(part, num_layers) for part in parts), strict=True)
    expected = [
        math.exp(sum(w * math.log(r) for w, r in zip(weights, column, strict=True)) / sum(weights))
        for column in columns
    ]
    mean = LRDistribution.geometric_mean(parts, weights)
    assert rates_of(mean, num_layers) == pytest.approx(expected, rel=1e-9)
    assert rates_of(LRDistribution.from_yaml(mean.to_yaml()), num_layers) == rates_of(mean, num_layers)


@pytest.mark.parametrize(
    "frozen",
    [LRDistribution.flat(0.0), LRDistribution.flat(1.0).freeze(), LRDistribution.from_layers(1, [1, 0], 1)],
)
def test_the_geometric_mean_with_a_frozen_layer_raises(frozen: LRDistribution) -> None:
    with pytest.raises(ZeroRateError, match="whose logarithm"):
        LRDistribution.geometric_mean([LRDistribution.flat(1.0), frozen])


def test_the_geometric_mean_refuses_what_has_no_mean() -> None:
    flat, relative = LRDistribution.flat(1.0), LRDistribution.flat(1.0, relative=True)
    with pytest.raises(InvalidDistributionError, match="at least one"):
        LRDistribution.geometric_mean([])
    with pytest.raises(InvalidDistributionError, match="mixes relative and absolute"):
        LRDistribution.geometric_mean([flat, relative])
    with pytest.raises(InvalidDistributionError, match="needs 1 weights"):
        LRDistribution.geometric_mean([flat], [1, 2])
    with pytest.raises(InvalidDistributionError, match="not all 0"):
        LRDistribution.geometric_mean([flat], [0])


def test_the_mean_of_rates_at_the_edge_of_what_is_allowed_stays_there() -> None:
    # exp(log(1e300)) is 1.00000000000001e300, which no rate may be.
    for rate in (1e-300, 3e-300, 1e300, 7e299, 2e-5):
        assert LRDistribution.geometric_mean([LRDistribution.flat(rate)] * 3) == LRDistribution.flat(rate)
        nested = LRDistribution.geometric_mean([LRDistribution.linear(rate, rate)] * 3)
        assert rates_of(nested, 2) == [rate] * 4
        between = rates_of(LRDistribution.from_layers(1.0, [rate, math.nextafter(rate, 1.0)], 1.0), 9)[1:-1]
        assert {*between} <= {rate, math.nextafter(rate, 1.0)}


def test_a_mean_is_as_relative_as_its_parts() -> None:
    part = {"family": "linear", "first": 1, "last": 2, "relative": True}
    with pytest.raises(InvalidDistributionError, match="must have the same `relative`"):
        LRDistribution.from_dict({"family": "geometric_mean", "of": [part], "weights": [1]})
    relative = LRDistribution.from_dict({"family": "geometric_mean", "of": [part], "weights": [1], "relative": True})
    absolute = relative.absolute(1e-3)
    assert absolute == LRDistribution.geometric_mean([LRDistribution.linear(1e-3, 2e-3)]).scale(1.0)
    assert absolute.relative_to(1e-3).absolute(1e-3) == absolute
    assert "relative" not in absolute.to_yaml()


def test_means_within_means_are_readable_up_to_10_levels_and_refused_beyond() -> None:
    nested = LRDistribution.linear(1.0, 2.0)
    for _ in range(10):
        nested = LRDistribution.geometric_mean([nested, LRDistribution.flat(1.0)])
    assert LRDistribution.from_yaml(nested.to_yaml()) == nested
    with pytest.raises(InvalidDistributionError, match="deeper than 10"):
        LRDistribution.geometric_mean([nested, LRDistribution.flat(1.0)])


def test_a_mean_shows_its_weights_and_edits_in_its_text() -> None:
    parts = [LRDistribution.linear(1.0, 2.0), LRDistribution.flat(1.0)]
    assert str(LRDistribution.geometric_mean(parts)) == "geometric_mean(linear:first=1,last=2; flat:lr=1)"
    weighted = LRDistribution.geometric_mean(parts, [3, 1]).freeze("embeddings")
    assert str(weighted).endswith("flat:lr=1):weights=3/1,freeze=embeddings..embeddings")


# The decay to a total ratio ------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 2, 6, 12, 24, 48, 200])
def test_a_total_decay_has_the_same_ends_at_every_depth_and_equal_ratios_between(num_layers: int) -> None:
    rates = list(LRDistribution.decay(4e-4, total=0.02).rates(num_layers).values())
    assert rates[0] == 4e-4 * 0.02
    assert rates[-1] == 4e-4
    factors = [low / high for low, high in itertools.pairwise(rates)]
    assert factors == pytest.approx([0.02 ** (1 / (num_layers + 1))] * (num_layers + 1))


def test_a_total_decay_is_the_decay_whose_factor_is_its_root() -> None:
    by_factor, by_total = LRDistribution.decay(4e-4, 0.7), LRDistribution.decay(4e-4, total=0.7**7)
    assert list(by_total.rates(6).values()) == pytest.approx(list(by_factor.rates(6).values()))
    assert by_total.rates(12)["embeddings"] == pytest.approx(by_factor.rates(6)["embeddings"])
    assert by_factor.rates(12)["embeddings"] == pytest.approx(3.88e-6, rel=1e-2)
    assert by_total.fingerprint != by_factor.fingerprint


def test_the_rates_by_depth_that_the_docs_show_are_what_the_distributions_give() -> None:
    page = (Path(__file__).parent.parent / "docs" / "distributions.md").read_text(encoding="utf-8")
    header, _, *rows = page[page.index("| layers | `decay") :].split("\n\n")[0].splitlines()
    texts = re.findall(r"`([^`]+)`", header)
    assert [row.split("|")[1].strip() for row in rows] == ["6", "12", "24", "48"]
    for row in rows:
        layers, *rates = [cell.strip() for cell in row.strip("|").split("|")]
        for text, rate in zip(texts, rates, strict=True):
            assert rate == brief(LRDistribution.parse(text).rates(int(layers))["embeddings"])


def test_a_total_decay_is_scaled_frozen_and_averaged_like_any_other() -> None:
    total = LRDistribution.decay(1.0, total=0.01, relative=True)
    assert total.absolute(2e-5) == LRDistribution.decay(2e-5, total=0.01)
    assert total.freeze("embeddings").rates(3)["embeddings"] == 0
    assert str(total) == "decay:lr=1,total=0.01,relative=true"
    pair = [LRDistribution.decay(1e-4, total=0.01), LRDistribution.decay(4e-4, total=0.25)]
    mean = LRDistribution.geometric_mean(pair)
    assert mean.family == "decay"
    assert dict(mean.values) == pytest.approx({"lr": 2e-4, "total": 0.05})
    # A total and a factor have no mean of their family: the rates are averaged instead.
    mixed = LRDistribution.geometric_mean([pair[0], LRDistribution.decay(1e-4, 0.5)])
    assert mixed.family == "geometric_mean"
    assert mixed.rates(4)["embeddings"] == pytest.approx(1e-4 * math.sqrt(0.01 * 0.5**5))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("decay:lr=1e-3", "decay needs factor or total"),
        ("decay:total=0.1", "decay needs lr"),
        ("decay:lr=1e-3,factor=0.7,total=0.02", r"factor or total, not both.*factor=0\.7 and total=0\.02"),
        ("discriminative:lr=1e-3,total=0.02", r"no key 'total'.*decay:lr=4e-4,total=0\.02"),
        ("decay:lr=1e-3,total=0", r"total=0\.0 must be finite and greater than 0"),
    ],
)
def test_a_decay_takes_a_factor_or_a_total(text: str, says: str) -> None:
    with pytest.raises(InvalidDistributionError, match=says):
        LRDistribution.parse(text)


def test_a_total_beyond_floating_point_numbers_raises() -> None:
    with pytest.raises(InvalidRateError, match="leaves the range"):
        LRDistribution.decay(1e-200, total=1e-200).rates(6)


# Forms ---------------------------------------------------------------------------------------------------

RATE = st.one_of(st.just(0.0), st.floats(1e-300, 1e300))
ENDS = st.one_of(st.sampled_from(["embeddings", "head", "layers.0", "layers.7", "layers.-1"]), st.floats(0, 1))


@st.composite
def distributions(draw: st.DrawFn) -> LRDistribution:
    family = draw(st.sampled_from([name for name in FAMILIES if name not in COMPOSED]))
    values: dict[str, object] = {}
    for key in FAMILIES[family].rate_keys:
        values[key] = draw(st.lists(RATE, min_size=1, max_size=5)) if key == "layers" else draw(RATE)
    for key in FAMILIES[family].factor_keys:
        instead = [other for other, of in FAMILIES[family].instead.items() if of == key]
        values[draw(st.sampled_from([key, *instead]))] = draw(st.floats(1e-300, 1e300))
    result = LRDistribution(family, tuple(values.items()), draw(st.booleans()))
    for _ in range(draw(st.integers(0, 3))):
        try:
            result = result.freeze(draw(ENDS), draw(ENDS))
        except InvalidDistributionError:  # a range that runs backwards
            assume(False)
    if draw(st.booleans()):
        group = draw(st.sampled_from(["layers.0", "layers.-3"]))
        result = result.override(group, draw(st.floats(1e-300, 1e300)))
    return result


@given(distributions())
def test_text_yaml_and_dict_read_back_to_an_equal_distribution(distribution: LRDistribution) -> None:
    for copy in (
        LRDistribution.parse(str(distribution)),
        LRDistribution.from_yaml(distribution.to_yaml()),
        LRDistribution.from_dict(distribution.to_dict()),
    ):
        assert copy == distribution
        assert hash(copy) == hash(distribution)
        assert copy.fingerprint == distribution.fingerprint


def test_saving_writes_what_is_read_back(tmp_path) -> None:
    distribution = LRDistribution.grouped(TEN).freeze("embeddings", 0.25)
    distribution.save(tmp_path / "mine.yaml")
    assert LRDistribution.from_yaml((tmp_path / "mine.yaml").read_text()) == distribution


def test_the_text_form_reads_families_freezing_and_single_groups() -> None:
    assert LRDistribution.parse("flat:lr=1e-4") == LRDistribution.flat(1e-4)
    assert LRDistribution.parse(" decay : lr=4e-4 , factor=.7 ") == LRDistribution.decay(4e-4, 0.7)
    assert LRDistribution.parse("discriminative:lr=1e-3") == LRDistribution.discriminative(1e-3, 2.6)
    assert LRDistribution.parse("flat:lr=2,relative=true") == LRDistribution.flat(2, relative=True)
    assert LRDistribution.parse("from_layers:embeddings=1,layers=2/3/4,head=5") == LRDistribution.from_layers(
        1, [2, 3, 4], 5
    )
    edited = LRDistribution.parse("flat:lr=1,freeze=embeddings..layers.0,freeze=0.9,layers.-1=7,head=3")
    assert edited == LRDistribution.flat(1).freeze("embeddings", "layers.0").freeze(0.9).override(
        "layers.-1", 7
    ).override("head", 3)


def test_the_text_form_holds_ranges_with_a_rate_and_a_group_that_is_set_twice() -> None:
    ranges = LRDistribution("flat", (("lr", 1.0),), edits=(Edit(0.0, 0.5, 3e-5), Edit("layers.1", "head", 2e-5)))
    assert str(ranges) == "flat:lr=1,0..0.5=3e-5,layers.1..head=2e-5"
    twice = LRDistribution.flat(1.0).override("head", 2.0).override("head", 3.0)
    assert str(twice) == "flat:lr=1,head=2,head..head=3"
    own = LRDistribution.from_layers(1.0, [1.0], 1.0).override("head", 3.0)
    for distribution in (ranges, twice, own):
        assert LRDistribution.parse(str(distribution)) == distribution


def test_equality_and_fingerprint_see_values_kind_and_edits_but_no_spelling() -> None:
    assert LRDistribution.flat(1) == LRDistribution.flat(1.0)
    assert LRDistribution.flat(1).freeze(-0.0, 1).fingerprint == LRDistribution.flat(1.0).freeze(0, 1).fingerprint
    different = [
        LRDistribution.flat(1.0),
        LRDistribution.flat(1.0000000000000002),
        LRDistribution.flat(1.0, relative=True),
        LRDistribution.flat(1.0).freeze(),
        LRDistribution.linear(1.0, 1.0),
    ]
    assert len(set(different)) == len({d.fingerprint for d in different}) == 5


# Checkpoints, result files, studies and presets hold them: another value here would orphan everybody's earlier runs.
FINGERPRINTS = [
    ("flat:lr=2e-5", "4d920e9faa5eeabef409d647f52f9c23ed9b288e929e8bd9af70b70ee3a5f43c"),
    ("decay:lr=4e-4,factor=0.7", "0cdb9b938a523ccf586ff43a43d2534bf3d440f9c8721b569be6f533ed49c9f3"),
    ("decay:lr=1,factor=0.9,relative=true", "b2f3df2580cdc3109c06f1ace2408e784c0e79161e3488b661a8124501210a58"),
    ("discriminative:lr=1e-3", "4574a1f199296f4e2f0a1a5e6aa21adc4525e5f846420da3da921bd29fe5527f"),
    ("linear:first=1e-6,last=1e-4", "6c9c38c8da8c713fe93c44139881dc5e2f39f25c00bd23a25bc2313bcd1756f1"),
    ("cosine:first=1e-6,last=1e-4", "2ca87bee1ba953a5e5fa965f7185facd58ed3d1226a13b12dc28ad655b93dd34"),
    (
        "from_layers:embeddings=1e-5,layers=1e-5/2e-5/4e-5,head=1e-3",
        "3c6bc76fa005df54240cb4fbd5c15c3e75cbccd774eac19f21959c19c83f8613",
    ),
    (
        "flat:lr=1e-4,freeze=embeddings..layers.2,head=1e-3",
        "73d4745793fa1de3509d80d22dcb0da14ed6f2458eef583f92c92b2ae26c020f",
    ),
    (
        "grouped:embeddings=1e-6,g1=1e-6,g2=2e-6,g3=3e-6,g4=4e-6,g5=5e-6,g6=6e-6,g7=7e-6,g8=8e-6,head=9e-5",
        "88937cb06deb42a6cba5be91cd81689598fc2babbc8156ae7810615587c240aa",
    ),
    ("kenneweg2022", "3bf83f98c4aed5e618061346f4a3ba4d0ecf4ec45372eba3a523e96ae363cc27"),
    ("kenneweg2022-relative", "71991f6ee4751d9265aec145809c845294eabf098ceb90afd7993dd22b3bbb62"),
    ("kenneweg2022-taskshift", "ab8a7e795bd1d540a6bc1e775aa23a690ec27939cfee994135395547a07c78ef"),
    ("kenneweg2022-taskshift-relative", "bf513ca45e23385a624a751d47e192fc4dad62d89d3f00c4a6899e1384749085"),
]


@pytest.mark.parametrize(("spec", "fingerprint"), FINGERPRINTS)
def test_fingerprints_stay_the_same_from_release_to_release(spec: str, fingerprint: str) -> None:
    distribution = resolve_distribution(spec)
    assert distribution.fingerprint == fingerprint
    assert LRDistribution.from_dict(json.loads(json.dumps(distribution.to_dict()))).fingerprint == fingerprint
    assert LRDistribution.from_yaml(distribution.to_yaml()).fingerprint == fingerprint


def test_fingerprints_of_means_stay_the_same_too() -> None:
    mean = LRDistribution.geometric_mean([LRDistribution.flat(1e-5), load_preset("kenneweg2022")], weights=[2, 1])
    assert mean.fingerprint == "22e097b9e6a9210ec2e7838851d9cfd7eb771fdc3456448f2db225df3f8c81f1"
    content = b'{"factor":0.7,"family":"decay","lr":0.0004}'
    assert LRDistribution.decay(4e-4, 0.7).fingerprint == hashlib.sha256(content).hexdigest()


# Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [-1e-5, math.nan, math.inf, -math.inf, "1e-5", None, True, 10**400, 1e-301, 1e301, [1]])
def test_a_rate_that_is_no_learning_rate_raises(lr: object) -> None:
    with pytest.raises(InvalidRateError, match="lr"):
        LRDistribution.flat(lr)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["1e-400", "0.00001e-400", "." + "0" * 400 + "1", "-1e-999"])
def test_a_text_that_would_round_to_zero_raises_instead_of_freezing(text: str) -> None:
    with pytest.raises(InvalidRateError, match="too small"):
        LRDistribution.parse(f"flat:lr={text}")
    with pytest.raises(InvalidRateError, match="too small"):
        LRDistribution.parse(f"flat:lr=1,head={text}")
    assert LRDistribution.parse("flat:lr=0e-400") == LRDistribution.flat(0.0)


@pytest.mark.parametrize("lr", [Fraction(1, 10**400), -Fraction(1, 10**5000), Fraction(-(10**5000), 10**5001 + 1)])
def test_a_fraction_that_is_no_rate_raises(lr: Fraction) -> None:
    with pytest.raises(InvalidRateError, match="lr"):
        LRDistribution.flat(lr)
    assert LRDistribution.flat(Fraction(1, 4)) == LRDistribution.flat(0.25)


def test_layers_are_a_list_of_at_most_10000_numbers_and_no_bytes() -> None:
    with pytest.raises(InvalidRateError, match="10,000"):
        LRDistribution.from_layers(1.0, [1.0] * 10_001, 1.0)
    for layers in (b"ab", bytearray(b"ab"), memoryview(b"ab")):
        with pytest.raises(InvalidRateError, match="list of at least one number"):
            LRDistribution.from_layers(1.0, layers, 1.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: LRDistribution.grouped(5),  # type: ignore[arg-type]
        lambda: LRDistribution.geometric_mean(5),  # type: ignore[arg-type]
        lambda: LRDistribution.geometric_mean({LRDistribution.flat(1.0)}),  # type: ignore[arg-type]
        lambda: LRDistribution("flat", 5),  # type: ignore[arg-type]
        lambda: LRDistribution("flat", (("lr",),)),  # type: ignore[arg-type]
        lambda: LRDistribution("flat", (("lr", 1.0),), edits=5),  # type: ignore[arg-type]
        lambda: LRDistribution("flat", (("lr", 1.0),), edits=({"from": 0},)),  # type: ignore[arg-type]
        lambda: LRDistribution.from_yaml(None),  # type: ignore[arg-type]
    ],
)
def test_arguments_of_another_type_raise_an_error_of_ours(build: Callable[[], LRDistribution]) -> None:
    with pytest.raises(LRDistError, match=r"not |takes"):
        build()


def test_an_array_where_a_family_is_expected_raises_an_error_of_ours() -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(InvalidDistributionError, match="Unknown family"):
        LRDistribution.from_dict({"family": numpy.array(["flat", "decay"])})


@pytest.mark.parametrize("factor", [0, -0.5, math.nan, math.inf, "0.5"])
def test_a_factor_that_is_not_positive_raises(factor: object) -> None:
    with pytest.raises(InvalidRateError, match="factor"):
        LRDistribution.decay(1e-4, factor)  # type: ignore[arg-type]


def test_numpy_numbers_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    assert LRDistribution.flat(numpy.float32(0.25)) == LRDistribution.flat(0.25)
    assert LRDistribution.flat(numpy.float64(0.25)).to_dict() == {"family": "flat", "lr": 0.25}
    assert LRDistribution.flat(1.0).freeze(numpy.float32(0.5)) == LRDistribution.flat(1.0).freeze(0.5)
    # In NumPy's arithmetic 1e-5 x float32(0.5) would be rounded to seven digits.
    assert LRDistribution.flat(1e-5).scale(numpy.float32(0.5)) == LRDistribution.flat(5e-6)


def test_texts_of_another_class_become_plain_ones_that_yaml_can_write() -> None:
    numpy = pytest.importorskip("numpy")
    distribution = LRDistribution(numpy.str_("flat"), ((numpy.str_("lr"), 1.0),)).freeze(numpy.str_("head"))
    assert LRDistribution.from_yaml(distribution.to_yaml()) == distribution == LRDistribution.flat(1.0).freeze("head")


def test_a_decay_that_would_round_a_rate_to_zero_raises_instead_of_freezing() -> None:
    with pytest.raises(InvalidRateError, match="leaves the range"):
        LRDistribution.decay(1e-5, 0.01).rates(1000)
    with pytest.raises(InvalidRateError, match="leaves the range"):
        LRDistribution.decay(1e-5, 1e10).rates(1000)
    assert set(rates_of(LRDistribution.decay(0.0, 1e10), 1000)) == {0.0}


@pytest.mark.parametrize("num_layers", [0, -1, 10_001, 2.0, True, "12", None])
def test_a_wrong_number_of_layers_raises(num_layers: object) -> None:
    with pytest.raises(LayerCountError, match="num_layers must be"):
        LRDistribution.flat(1.0).rates(num_layers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flat", "is not a distribution"),
        ("flat:", "needs lr"),
        ("flat:1e-4", "is not key=value"),
        ("flat:lr=", "is not key=value"),
        ("flat:lr=1e-4,lr=1e-5", "occurs twice"),
        ("flat:lr=nan", "not a finite number"),
        ("flat:lr=inf", "not a finite number"),
        ("flat:lr=1e999", "not a learning rate"),
        ("flat:lr=\u0967", "not a finite number"),
        ("flat:lr=1_000", "not a finite number"),
        ("flat:lr=-1", "not a learning rate"),
        ("flat:lr=1e-4,factor=2", "has no key 'factor'"),
        ("falt:lr=1e-4", "Unknown family 'falt'"),
        ("flat:lr=1,relative=yes", "must be true or false"),
        ("flat:lr=1,freeze=..head", "is not a depth"),
        ("flat:lr=1,freeze=0.5..0.1", "backwards"),
        ("geometric_mean:of=1", "no text form"),
        ("decay:lr=1e-4", "needs factor"),
        ("from_layers:embeddings=1,layers=1//2,head=1", "not a finite number"),
    ],
)
def test_malformed_text_raises_and_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InvalidDistributionError, match=message):
        LRDistribution.parse(text)


PIECES = ["flat", "decay", "grouped", "lr", "factor", "freeze", "relative", "true", "head", "layers", "layers.-1"]
PIECES += ["geometric_mean", "of", "weights", *":,=/- ", "..", "0", "0.5", "1e-4", "1e999", "\u0661", "\0"]
TEXT = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=16).map("".join))


@settings(max_examples=400)
@given(TEXT)
def test_no_text_raises_anything_but_an_error_of_ours(text: str) -> None:
    try:
        rates = LRDistribution.parse(text).rates(12)
    except LRDistError:
        return
    assert len(rates) == 14
    assert all(math.isfinite(rate) and rate >= 0 for rate in rates.values())


KEYS = ("lr", "factor", "first", "last", "of", "weights", "relative", "edits", "layers")
# Not st.just: Hypothesis would write the number out, which Python refuses.
HUGE = st.none().map(lambda _: 10**5000)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), HUGE, st.binary(max_size=3)
)
DATA = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers(), HUGE), inner, max_size=4),
        st.fixed_dictionaries(
            {"family": st.one_of(st.sampled_from([*FAMILIES]), inner)},
            optional=dict.fromkeys(
                ("lr", "factor", "first", "last", "of", "weights", "relative", "edits", "layers"), inner
            ),
        ),
        st.fixed_dictionaries({"from": inner, "to": inner, "rate": inner}),
    ),
    max_leaves=12,
)


@settings(max_examples=400)
@given(DATA)
def test_no_data_raises_anything_but_an_error_of_ours(data: object) -> None:
    try:
        distribution = LRDistribution.from_dict(data)  # type: ignore[arg-type]
        distribution.rates(12)
    except LRDistError:
        return
    assert LRDistribution.from_dict(distribution.to_dict()) == distribution


def test_data_that_holds_itself_raises_an_error_of_ours() -> None:
    endless: dict[str, object] = {"family": "geometric_mean", "weights": [1]}
    endless["of"] = [endless]
    with pytest.raises(InvalidDistributionError, match="contains itself"):
        LRDistribution.from_dict(endless)


def test_errors_show_at_most_a_few_lines_of_the_value() -> None:
    with pytest.raises(InvalidRateError) as info:
        LRDistribution.from_dict({"family": "flat", "lr": "x" * 1_000_000})
    assert len(str(info.value)) < 300


# Shown ---------------------------------------------------------------------------------------------------


def test_the_table_shows_every_rate_and_reads_no_markup_out_of_the_title() -> None:
    from rich.console import Console

    edits = (Edit(0.0, 0.5, 3e-5),)
    distribution = LRDistribution("flat", (("lr", 1e-4),), edits=edits).freeze("embeddings")
    console = Console(width=100, record=True)
    console.print(distribution.table(2))
    text = console.export_text()
    assert "flat:lr=1e-4,0..0.5=3e-5,freeze=embeddings..embeddings" in text.replace("\n", "").replace(" ", "")
    row = next(line for line in text.splitlines() if "layers.0" in line)
    assert row.split("│")[2].strip() == "3e-05"
    assert "frozen" in text


def test_the_figure_draws_a_frozen_group_as_a_gap() -> None:
    pytest.importorskip("matplotlib")
    axes = LRDistribution.flat(1e-4).freeze("layers.0").plot(3)
    drawn = [float(y) for y in axes.lines[0].get_ydata()]
    assert [math.isnan(y) for y in drawn] == [False, True, False, False, False]
    assert axes.get_yscale() == "log"
