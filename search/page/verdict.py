"""What a study found, in words."""

from __future__ import annotations

from collections.abc import Sequence

from lr_dist.runs.numbers import number, signed
from lr_dist.search.page.confirmed import Confirmed
from lr_dist.search.page.figures import trial_name
from lr_dist.search.page.findings import Findings


def verdict(findings: Findings, confirmed: Sequence[Confirmed]) -> str:
    """The best trial and the best flat rate, by fresh seeds if there are any; empty for a study without a result.

    Args:
        findings: of the study.
        confirmed: the distributions that were run again.
    """
    if fresh := _confirmed(confirmed):
        return fresh
    if findings.front:
        few = len(findings.front)
        return (
            f"{few} of {len(findings.complete):,} trials are on the Pareto front: none is better in both p_o and p_s."
        )
    best, flat = findings.best, findings.best_flat
    if best is None:
        return ""
    found = f"Of {len(findings.complete):,} complete trials, {trial_name(best)} is the best: {number(best.values[0])}."
    if flat is None:
        return f"{found} No flat rate was tried, so what rates by depth add is not known."
    if flat.number == best.number:
        return f"{found} It is a flat rate: no searched distribution beats it."
    gain = best.values[0] - flat.values[0]
    return (
        f"{found} That is {number(gain)} more than the best flat rate, {trial_name(flat)}, on the seeds that chose it; "
        "fresh seeds tell how much of it stays."
    )


def _confirmed(rows: Sequence[Confirmed]) -> str:
    """The best searched distribution against the tuned flat rate, over seeds that had no part in the choice."""
    control = next((row for row in rows if row.control), None)
    best = next((row for row in rows if not row.flat and row.feasible and row.difference is not None), None)
    if control is None or best is None or best.difference is None:
        return ""
    mean, half = best.difference.mean, best.difference.half
    if half is None:
        clear = "one seed says little"
    elif abs(mean) > half:
        clear = "the 95% interval leaves out 0"
    else:
        clear = "not told apart: the 95% interval contains 0"
    return (
        f"Confirmed with {best.seeds} fresh seeds: {best.label} scores {number(best.value)}, the tuned flat rate "
        f"({control.label}) {number(control.value)}; the difference is {signed(mean, half)}, {clear}."
    )
