"""The options that both faces of the monitor have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lr_dist.errors import ConfigurationError, shown
from lr_dist.layers import Overrides, Stacks
from lr_dist.monitor.movement import Movement
from lr_dist.monitor.old_tasks import OldTask, Score, tasks_by_name, tasks_with_loaders
from lr_dist.monitor.trade_off import TradeOff
from lr_dist.monitor.watch import Watch


class Options:
    """Checked options, from which each fit's `Watch` is made."""

    def __init__(
        self,
        old: Mapping[str, Iterable[Any]] | Sequence[str],
        *,
        score: Score | Mapping[str, Score] | None,
        metric: Any,
        tokenizer: Any,
        max_length: int,
        examples: int | None,
        keep: str | None,
        monitor: str | None,
        mode: str,
        stop_when: str | None,
        patience: int,
        movement: bool,
        overrides: Overrides | None,
        stacks: Stacks | None,
    ) -> None:
        self.tasks = _tasks(old, score, metric, tokenizer, max_length, examples)
        self.trade_off = TradeOff.of(self.tasks, keep, monitor, mode, stop_when, patience)
        self._movement = (overrides, stacks) if movement else None

    def watch(self) -> Watch:
        """For a new fit."""
        movement = None if self._movement is None else Movement(*self._movement)
        return Watch(self.tasks, self.trade_off, movement)


def _tasks(
    old: Any, score: Any, metric: Any, tokenizer: Any, max_length: int, examples: int | None
) -> tuple[OldTask, ...]:
    if isinstance(old, Mapping):
        if tokenizer is not None:
            raise ConfigurationError(
                "tokenizer is for old tasks that are given by name, ['sst2'], and these have loaders. Leave it out."
            )
        return tasks_with_loaders(old, score, metric)
    if isinstance(old, str) or not isinstance(old, Sequence):
        raise ConfigurationError(
            f"The old tasks must be a mapping from names to loaders, {{'sst2': loader}}, or a list of names of "
            f"lr_dist.tasks, ['sst2'], not {shown(old)}."
        )
    if metric is not None or isinstance(score, Mapping):
        raise ConfigurationError(
            "Old tasks that are given by name bring their metric, and have one score function in common. Leave out "
            "metric, or give a mapping from names to loaders."
        )
    return tasks_by_name(old, tokenizer, max_length, examples, score)
