"""How labels for the factors of a curvature are chosen; without torch, for the command line."""

from __future__ import annotations

from typing import Literal

from lr_dist.errors import InfluenceError, shown

Labels = Literal["sampled", "expected"]
LABELS: tuple[Labels, ...] = ("sampled", "expected")


def check_labels(labels: str) -> None:
    """Check how labels for the factors are chosen.

    Raises:
        InfluenceError: neither sampled nor expected.
    """
    if labels not in LABELS:
        raise InfluenceError(
            f"labels must be sampled (one label an example, drawn from the model) or expected (the mean over all), not "
            f"{shown(labels)}."
        )
