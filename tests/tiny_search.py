"""Real trials of a second: a 3-layer BERT on two generated tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lr_dist.search.space import Space
from lr_dist.search.trials.config import Goal, SearchConfig
from lr_dist.sequence.settings import SequenceSettings

# Both are scored by accuracy.
PAIR = ("demo-entailment", "demo-sentiment")


def config_of(model: str, **changes: Any) -> SearchConfig:
    """A flat search of the paper's sum; `epochs` and `limit` say how long a trial takes."""
    settings = SequenceSettings(
        epochs=changes.pop("epochs", 1), batch_size=16, evaluate_on="dev", precision=changes.pop("precision", "32-true")
    )
    values = {"sequences": (PAIR,), "space": Space("flat"), "goal": Goal("sum"), "trials": 4, "limit": 64}
    return SearchConfig(model, **{**values, "settings": settings, **changes})


def sqlite(folder: Path, name: str = "study.db") -> str:
    return f"sqlite:///{folder / name}"
