"""Influence functions over several stages: which training examples a later prediction, or its loss, rests on."""
