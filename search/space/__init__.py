"""The search space, a family of learning-rate distributions with bounds, and how trials are sampled from it."""

from lr_dist.search.space.space import FAMILIES, Space

__all__ = ["FAMILIES", "Space"]
