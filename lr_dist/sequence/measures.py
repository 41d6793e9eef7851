"""Measures: observers whose results are kept with a run. Rooms above bring their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lr_dist.sequence.observers import Observer


class Measure(Observer):
    """Measures a run; what `result` returns is kept in its file under `name`.

    Its `identity` is part of the run's: with another one, or without the measure, a run is another run. A measure draws
    no random numbers of the run and leaves the model as it is.

    Attributes:
        name: key of its result, `run["measures"][name]`.
    """

    name = ""
    needs_training = False

    def identity(self) -> Any:
        """What the result depends on beside the run, as plain data."""
        return {}

    def result(self) -> Any:
        """Plain data (JSON), after the last stage."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """Numbers of the whole run, after the last stage; they stand beside `p_o` in its metrics, under names of their
        own."""
        return {}


# Called once for each run.
MakeMeasure = Callable[[], Measure]
