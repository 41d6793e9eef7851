"""Scores, differences and durations as text, the same in every table, figure and page."""

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


def signed(value: float, half: float | None = None) -> str:
    """A difference of scores: `+.011`, `-.003`; with its sign even where it is rounded to zero.

    Args:
        value: the difference.
        half: half the width of its interval: `+.011 ± .004`; None for a difference without one.
    """
    text = f"{'-' if value < 0 else '+'}{number(abs(value))}"
    return text if half is None else f"{text} ± {number(half)}"


def duration(seconds: float) -> str:
    """`under a minute`, `about 5 min`, `about 2 h 10 min`."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"about {minutes // 60} h {minutes % 60} min"
    return f"about {minutes} min" if minutes else "under a minute"
