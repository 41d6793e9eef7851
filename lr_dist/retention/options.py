"""The options that both faces of the monitor of retention have in common, and its results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lr_dist.errors import ConfigurationError, shown
from lr_dist.layers import Overrides, Stacks
from lr_dist.monitor.interval import Interval
from lr_dist.retention.hidden_states import Run, check_pool
from lr_dist.retention.reference import Reference
from lr_dist.retention.text_batches import are_texts, fingerprint_of, text_batches
from lr_dist.retention.watch import LayerChanges, RetentionWatch
from lr_dist.retention.weights import Weights


class Monitor:
    """Checks the options; `RetentionMonitor` and `RetentionMonitorCallback` say what each means."""

    def __init__(
        self,
        texts: Sequence[str] | Iterable[Any] | None = None,
        *,
        tokenizer: Any = None,
        max_length: int = 128,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        reference: Weights | None = None,
        pool: str = "mean",
        run: Run | None = None,
        overrides: Overrides | None = None,
        stacks: Stacks | None = None,
    ) -> None:
        self._interval = Interval(every_n_steps, every_n_epochs)
        check_pool(pool)
        self._batches, self._fingerprint = _batches(texts, tokenizer, max_length)
        self._pool, self._run = pool, run
        self._places = overrides, stacks
        self._reference = None if reference is None else Reference(reference)
        self._watch = self._new_watch()

    @property
    def history(self) -> list[LayerChanges]:
        """The measurements so far, the first one before the first step."""
        return list(self._watch.history)

    def _new_watch(self) -> RetentionWatch:
        return RetentionWatch(self._batches, self._fingerprint, self._reference, self._pool, self._run, *self._places)


def _batches(texts: Any, tokenizer: Any, max_length: int) -> tuple[Iterable[Any] | None, str | None]:
    """The batches, and their fingerprint if it can be told."""
    if texts is None:
        return None, None
    if isinstance(texts, str) or not hasattr(texts, "__iter__") or hasattr(texts, "__next__"):
        raise ConfigurationError(
            "Texts are a list of plain texts (with tokenizer=...), or a DataLoader or a list of batches, not "
            f"{shown(texts)}."
        )
    if are_texts(texts):
        fingerprint = fingerprint_of([*texts, str(max_length)])
        return text_batches(texts, tokenizer, max_length=max_length), fingerprint
    if tokenizer is not None:
        raise ConfigurationError("tokenizer is for plain texts, and these are batches. Leave it out.")
    return texts, None
