"""Informed pre-training: prototypes first, then the scarce data; with its exact cases and its experiment."""
