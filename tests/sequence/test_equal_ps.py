"""p_o at equal p_s, against values computed by hand."""

from __future__ import annotations

import statistics

import pytest
from scipy.stats import t

from lr_dist.sequence.equal_ps import at_equal_p_s, on_curve


def test_between_two_points_the_curve_is_the_line_through_them():
    curve = [(0.70, 0.90), (0.80, 0.80), (0.84, 0.60)]
    assert on_curve(curve, 0.75) == pytest.approx(0.85)
    assert on_curve(curve, 0.82) == pytest.approx(0.70)
    assert on_curve(curve, 0.80) == 0.80


@pytest.mark.parametrize("p_s", [0.69, 0.85])
def test_outside_its_range_nothing_is_extrapolated(p_s):
    assert on_curve([(0.70, 0.90), (0.84, 0.60)], p_s) is None
    assert on_curve([], p_s) is None
    assert on_curve([(p_s + 0.01, 0.5)], p_s) is None


def test_where_the_curve_turns_back_the_better_crossing_counts():
    # The highest rate learns less than the one before.
    assert on_curve([(0.70, 0.90), (0.80, 0.80), (0.74, 0.50)], 0.76) == pytest.approx(0.84)


def test_above_a_curve_that_turns_back_its_highest_p_s_counts():
    turned = [(0.70, 0.90), (0.80, 0.80), (0.74, 0.50)]
    assert on_curve(turned, 0.81) == 0.80
    assert on_curve(turned, 0.69) is None
    # A highest point at either end may not be the highest that the control can reach.
    assert on_curve(turned[:2], 0.81) is None
    assert on_curve(turned[1:], 0.81) is None
    found = at_equal_p_s({0: (0.85, 0.84), 1: (0.85, 0.86)}, [{0: point, 1: point} for point in turned])
    assert found is not None
    assert (found.curve, found.between) == (0.80, (1,))
    assert found.difference.mean == pytest.approx(0.05)


CURVE = [
    {0: (0.70, 0.90), 1: (0.72, 0.88)},  # mean .71 / .89
    {0: (0.80, 0.80), 1: (0.82, 0.78)},  # mean .81 / .79
]


def test_the_difference_is_that_of_the_means_and_its_interval_of_the_paired_seeds():
    arm = {0: (0.74, 0.90), 1: (0.80, 0.84)}  # mean .77 / .87; there the curve has .89 - .06 = .83
    found = at_equal_p_s(arm, CURVE, level=0.95)
    assert found is not None
    assert found.curve == pytest.approx(0.83)
    assert found.between == (0, 1)
    assert found.difference.mean == pytest.approx(0.04)
    # The slope is -1. By seed: y + x of the arm minus y + x of the curve, which is 1.6 for every point of it.
    parts = [0.90 + 0.74 - 1.6, 0.84 + 0.80 - 1.6]
    assert statistics.fmean(parts) == pytest.approx(0.04)
    half = float(t.ppf(0.975, 1)) * statistics.stdev(parts) / 2**0.5
    assert found.difference.half == pytest.approx(half)
    assert found.difference.n == 2


def test_noise_that_arm_and_curve_share_cancels():
    # Seed 1 is .05 better at everything, everywhere; a comparison that did not pair seeds would have a wide interval.
    curve = [{0: (0.70, 0.90), 1: (0.75, 0.95)}, {0: (0.80, 0.80), 1: (0.85, 0.85)}]
    found = at_equal_p_s({0: (0.72, 0.90), 1: (0.77, 0.95)}, curve)
    assert found is not None
    assert found.difference.mean == pytest.approx(0.02)
    assert found.difference.half == pytest.approx(0.0, abs=1e-12)


def test_an_arm_exactly_at_the_p_s_of_one_of_the_curve_is_compared_with_that_one():
    found = at_equal_p_s({0: (0.80, 0.85), 1: (0.82, 0.81)}, CURVE)
    assert found is not None
    assert found.between == (1,)
    assert found.difference.mean == pytest.approx(0.04)


def test_one_seed_has_no_interval_and_only_seeds_that_all_have_count():
    curve = [{0: (0.70, 0.90), 7: (0.1, 0.1)}, {0: (0.80, 0.80)}]
    found = at_equal_p_s({0: (0.75, 0.90), 5: (0.1, 0.1)}, curve)
    assert found is not None
    assert (found.difference.n, found.difference.half) == (1, None)
    assert found.difference.mean == pytest.approx(0.05)
    assert at_equal_p_s({5: (0.75, 0.90)}, curve) is None
    assert at_equal_p_s({0: (0.75, 0.90)}, []) is None


def test_an_arm_beyond_the_curve_is_not_compared():
    assert at_equal_p_s({0: (0.60, 0.95), 1: (0.60, 0.95)}, CURVE) is None
    assert at_equal_p_s({0: (0.90, 0.70), 1: (0.90, 0.70)}, CURVE) is None
