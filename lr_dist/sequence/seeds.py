"""Separate seeds for the parts of a run, so that no part's random numbers depend on how many another one drew."""

from __future__ import annotations

from lr_dist._lightning import L
from lr_dist.runs.seeds import seed_of


def derive_seed(seed: int, *step: str | int) -> int:
    """A 31-bit seed for one part of the run `seed`, e.g. `derive_seed(0, "task", 1)`."""
    return seed_of(repr((seed, *step)), 31)


def set_seed(seed: int, *step: str | int) -> None:
    """Seed Python, NumPy and torch for one part of a run."""
    L.seed_everything(derive_seed(seed, *step), workers=True, verbose=False)
