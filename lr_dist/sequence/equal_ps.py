"""p_o at equal p_s: what an arm remembers beyond a curve of other arms that learn the last task as well.

An arm that learns less also forgets less, so p_o alone compares nothing. The arms of a control with several strengths
(the flat rate, with several rates) form a curve in the plane of p_s and p_o; at the p_s of an arm, the curve says how
much p_o the control has for the same p_s.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lr_dist.sequence.differences import Interval

# (p_s, p_o)
Point = tuple[float, float]


@dataclass(frozen=True)
class AtEqualPs:
    """p_o of an arm minus p_o of a curve at the arm's p_s.

    Attributes:
        difference: over the seeds.
        curve: p_o of the curve there.
        between: positions in the curve of the two arms (or the one) that the value comes from.
    """

    difference: Interval
    curve: float
    between: tuple[int, ...]


def on_curve(points: Sequence[Point], p_s: float) -> float | None:
    """The highest p_o at a given p_s on the line through points (p_s, p_o), in the order of their strength.

    Where the line passes the same p_s twice (a rate that is too high learns less again), the better crossing counts.
    A line that turns back has shown the highest p_s that it has to offer; for a p_s above it, its p_o there counts: an
    arm with more of both is better by at least the difference.

    Returns:
        None if the line does not reach this p_s and does not turn back before it; nothing is extrapolated.
    """
    best = _best_crossing(points, p_s)
    return None if best is None else best[0]


def at_equal_p_s(
    arm: Mapping[int, Point], curve: Sequence[Mapping[int, Point]], level: float = 0.95
) -> AtEqualPs | None:
    """Compare an arm with a curve at the p_s that the arm has on average.

    The curve is the line through the means of its arms, over the seeds that all of them and the arm have. At the arm's
    mean p_s, which is a share t of the way from one arm of the curve to the next, the difference is linear in the means
    of the three, so each seed has a part in it:

        d_s = y_s - ((1 - t) y0_s + t y1_s) - b (x_s - ((1 - t) x0_s + t x1_s)),

    with x = p_s, y = p_o, and b the slope between the two arms of the curve. The mean of d_s is the difference, and the
    interval is Student's t over the seeds (the delta method with t and b taken as fixed). Because every seed has the
    same heads, order of examples and random draws in all arms, what they share cancels.

    Args:
        arm: seed -> point.
        curve: in the order of their strength, seed -> point of each arm.
        level: of the interval.

    Returns:
        None where the curve does not reach the arm's p_s (see `on_curve`), or no seed is in all.
    """
    seeds = sorted(set(arm).intersection(*curve)) if curve else []
    if not seeds:
        return None
    means = [_mean([each[seed] for seed in seeds]) for each in curve]
    best = _best_crossing(means, _mean([arm[seed] for seed in seeds])[0])
    if best is None:
        return None
    value, left, share = best
    right = min(left + 1, len(curve) - 1) if share else left
    (x0, y0), (x1, y1) = means[left], means[right]
    slope = (y1 - y0) / (x1 - x0) if x1 != x0 else 0.0
    parts = []
    for seed in seeds:
        (x, y), (xa, ya), (xb, yb) = arm[seed], curve[left][seed], curve[right][seed]
        parts.append(y - (1 - share) * ya - share * yb - slope * (x - (1 - share) * xa - share * xb))
    return AtEqualPs(Interval.of(parts, level), value, (left, right) if share else (left,))


def _best_crossing(points: Sequence[Point], p_s: float) -> tuple[float, int, float] | None:
    """The p_o of `on_curve`, the position that it comes after, and how far it is on the way to the next one."""
    crossings = [(y, position, 0.0) for position, (x, y) in enumerate(points) if x == p_s]
    for position, ((x0, y0), (x1, y1)) in enumerate(itertools.pairwise(points)):
        if min(x0, x1) < p_s < max(x0, x1):
            share = (p_s - x0) / (x1 - x0)
            crossings.append((y0 + (y1 - y0) * share, position, share))
    if not crossings and points:
        highest, p_o, position = max((x, y, position) for position, (x, y) in enumerate(points))
        if p_s > highest and 0 < position < len(points) - 1:
            return p_o, position, 0.0
    return max(crossings, default=None)


def _mean(points: Sequence[Point]) -> Point:
    return statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points)
