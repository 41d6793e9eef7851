"""Searching for learning-rate distributions, and combining what was found. Imported as `lr_dist.search`.

`combine` and `kenneweg2022` need nothing but Python.
"""
