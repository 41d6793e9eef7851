"""Checks before and after a model's weights are read."""
