"""Ctrl-C and SIGTERM where they must not come in between."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class HeldBack:
    """The signals that are kept back, and which of them came: as numbers, in their order."""

    def __init__(self, handlers: dict[signal.Signals, Any]) -> None:
        self.came: list[int] = []
        self._handlers = handlers
        self._hold()

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Handle signals as before, for a while; KeyboardInterrupt at once where one came already."""
        try:
            self.end()
            if self.came:
                raise KeyboardInterrupt
            yield
        finally:
            self._hold()

    def end(self) -> None:
        """Handle signals as before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _hold(self) -> None:
        for number in self._handlers:
            signal.signal(number, lambda came, _: self.came.append(came))


@contextmanager
def interrupts_held_back() -> Iterator[HeldBack]:
    """Keep back the signals that a handler of Python's takes; what is yielded says afterwards which ones came.

    Whoever uses it must look at them, and raise those signals again or do what they ask for.
    """
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    held = HeldBack({number: signal.getsignal(number) for number in numbers})
    try:
        yield held
    finally:
        held.end()
