"""`Monitor`: the options and the results of both faces of the monitor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lr_dist.layers import Overrides, Stacks
from lr_dist.monitor.interval import Interval
from lr_dist.monitor.old_tasks import Score
from lr_dist.monitor.options import Options
from lr_dist.monitor.results import Results


class Monitor(Results):
    """Takes the options; `ForgettingMonitor` and `ForgettingMonitorCallback` say what each means."""

    def __init__(
        self,
        old: Mapping[str, Iterable[Any]] | Sequence[str],
        *,
        score: Score | Mapping[str, Score] | None = None,
        metric: Any = None,
        tokenizer: Any = None,
        max_length: int = 128,
        examples: int | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        keep: str | None = None,
        monitor: str | None = None,
        mode: str = "max",
        restore: bool = True,
        stop_when: str | None = None,
        patience: int = 1,
        movement: bool = True,
        overrides: Overrides | None = None,
        stacks: Stacks | None = None,
    ) -> None:
        self._interval = Interval(every_n_steps, every_n_epochs)
        self._options = Options(
            old,
            score=score,
            metric=metric,
            tokenizer=tokenizer,
            max_length=max_length,
            examples=examples,
            keep=keep,
            monitor=monitor,
            mode=mode,
            stop_when=stop_when,
            patience=patience,
            movement=movement,
            overrides=overrides,
            stacks=stacks,
        )
        self.restore = restore
        self._watch = self._options.watch()
