"""Optuna studies with a fixed number of trials that survives crashes, their storage, and worker processes."""
