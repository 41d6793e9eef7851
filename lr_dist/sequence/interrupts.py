"""Ctrl-C and SIGTERM where they must not come in between."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class HeldBack:
    """Signals that are kept back; see `interrupts_held_back`."""

    def __init__(self, handlers: dict[signal.Signals, Any]) -> None:
        self._came: list[int] = []
        self._handlers = handlers
        self._hold()

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Handle signals as before, for a while; those that came already at once."""
        try:
            self._end()
            self._deliver()
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        for number in self._handlers:
            signal.signal(number, lambda came, _: self._came.append(came))

    def _end(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _deliver(self) -> None:
        came, self._came = self._came, []
        for number in came:
            signal.raise_signal(number)


@contextmanager
def interrupts_held_back() -> Iterator[HeldBack]:
    """Keep back the signals that a handler of Python's takes, and deliver them at the end.

    An exception that ends it early goes first; they are dropped then.
    """
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    held = HeldBack({number: signal.getsignal(number) for number in numbers})
    try:
        yield held
    finally:
        held._end()
    held._deliver()
