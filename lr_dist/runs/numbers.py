"""Scores as text, the same in every table, figure and page."""

from __future__ import annotations

# Of a metric that is not defined, such as the forgetting of a single task.
ABSENT = "n/a"


def number(value: float | None) -> str:
    """Three decimals without a leading zero, as papers print scores; `n/a` for None."""
    if value is None:
        return ABSENT
    text = f"{value:.3f}"
    if text in ("-0.000", "0.000"):
        return ".000"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
