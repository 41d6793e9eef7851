"""Prototypes: a small labelled data set made from a graph of facts or from equations (arXiv 2205.11433)."""
