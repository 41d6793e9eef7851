"""Every arm against the line to beat: p_o at equal p_s, and what that says in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lr_dist.extras import require_libraries
from lr_dist.report.families import Family, flat_family
from lr_dist.runs.numbers import signed
from lr_dist.sequence.equal_ps import AtEqualPs, Point, at_equal_p_s
from lr_dist.sequence.result import ComparisonResult

BETTER, WORSE, NOISE, OUTSIDE, ON_LINE = "better", "worse", "noise", "outside", "the line"


@dataclass(frozen=True)
class Standing:
    """One arm against the line.

    Attributes:
        label: of the arm.
        kind: `better` or `worse` (the interval leaves out 0), `noise`, `outside` (the line does not reach the arm's
            p_s, or no seed is in all of them), or `the line` for its own arms.
        value: the difference; None outside and on the line.
    """

    label: str
    kind: str
    value: AtEqualPs | None = None

    @property
    def text(self) -> str:
        """For a table."""
        if self.value is None:
            return {OUTSIDE: "n/a", ON_LINE: "line"}[self.kind]
        return with_interval(self.value)


@dataclass(frozen=True)
class Standings:
    """All arms against the line.

    Attributes:
        line: the flat rates; None if there are not two or more, or only one task, which has no p_o.
        of: label -> standing; empty without a line.
        level: of the intervals.
    """

    line: Family | None
    of: Mapping[str, Standing]
    level: float


def standings(result: ComparisonResult, level: float = 0.95) -> Standings:
    """Compare every arm with the flat rates at equal p_s.

    Raises:
        MissingExtraError: scipy is not installed (extra `report`).
    """
    require_libraries("report", "scipy")
    line = flat_family(result.arms) if len(result.tasks) > 1 else None
    if line is None:
        return Standings(None, {}, level)
    points = {entry["label"]: _points(result, entry["label"]) for entry in result.arms}
    if sum(bool(points[label]) for label in line.labels) < 2:
        return Standings(None, {}, level)
    curve = [points[label] for label in line.labels if points[label]]
    found = {}
    for label, own in points.items():
        if label in line.labels:
            found[label] = Standing(label, ON_LINE)
            continue
        value = at_equal_p_s(own, curve, level)
        found[label] = Standing(label, OUTSIDE if value is None else _kind(value), value)
    return Standings(line, found, level)


def paragraph(result: ComparisonResult, standing: Standings) -> str:
    """What won and what is noise, in words; empty for a single task."""
    if len(result.tasks) == 1:
        return ""
    old = result.tasks[0]["name"] if len(result.tasks) == 2 else "the earlier tasks"
    if standing.line is None:
        return (
            "There are no two flat rates with finished runs, so no arm can be compared at equal p_s: an arm that "
            f"learns {result.tasks[-1]['name']} less also forgets less of {old}. Add flat rates, e.g. flat:lr=5e-5 "
            "flat:lr=1e-4 flat:lr=2e-4; their best is what the others have to beat."
        )
    groups: dict[str, list[Standing]] = {}
    for each in standing.of.values():
        groups.setdefault(each.kind, []).append(each)
    rates = len(standing.line.members)
    seeds = len(result.config["seeds"])
    last = result.tasks[-1]["name"]
    better = sorted(groups.get(BETTER, []), key=_mean, reverse=True)
    if better:
        retain = "retain" if len(better) > 1 else "retains"
        said = [f"At the same p_s (score on {last}), {_listed(better)} {retain} more of {old} than {rates} flat rates."]
    else:
        said = [f"At the same p_s (score on {last}), no arm clearly retains more of {old} than {rates} flat rates."]
    if groups.get(WORSE):
        said.append(f"Clearly less is retained with {_listed(sorted(groups[WORSE], key=_mean))}.")
    if groups.get(NOISE):
        noise = sorted(groups[NOISE], key=_mean, reverse=True)
        alone = all(each.value is None or each.value.difference.half is None for each in noise)
        why = "one seed has no interval" if alone else f"the {standing.level:.0%} interval over seeds contains 0"
        said.append(f"Not distinguishable from the flat rates ({why}): {_listed(noise)}.")
    if groups.get(OUTSIDE):
        names = _joined([each.label for each in groups[OUTSIDE]])
        said.append(
            f"Not comparable: {names}; no flat rate reaches the same p_s. Add flat rates that learn less, or more."
        )
    compared = sum(each.value is not None for each in standing.of.values())
    if seeds > 1 and compared >= 8:
        said.append(f"Of {compared} intervals, about {compared * (1 - standing.level):.1f} leave out 0 by chance.")
    if 1 < seeds < 5:
        said.append(f"With {seeds} seeds the intervals are rough.")
    return " ".join(said)


def with_interval(value: AtEqualPs) -> str:
    """`+.021 ± .011`."""
    return signed(value.difference.mean, value.difference.half)


def _kind(value: AtEqualPs) -> str:
    interval = value.difference
    if interval.half is None or abs(interval.mean) <= interval.half:
        return NOISE
    return BETTER if interval.mean > 0 else WORSE


def _mean(standing: Standing) -> float:
    return standing.value.difference.mean if standing.value is not None else 0.0


def _listed(group: Sequence[Standing]) -> str:
    return _joined([f"{each.label} ({with_interval(each.value)})" for each in group if each.value is not None])


def _joined(texts: Sequence[str]) -> str:
    shown = list(texts[:6]) + ([f"{len(texts) - 6} more"] if len(texts) > 6 else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _points(result: ComparisonResult, label: str) -> dict[int, Point]:
    return {
        run["seed"]: (run["metrics"]["p_s"], run["metrics"]["p_o"])
        for run in result.runs
        if run["arm"] == label and run["status"] == "done"
    }
