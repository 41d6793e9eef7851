"""Delay Ctrl-C and SIGTERM while they must not interrupt.

If a signal's exception is raised inside a database driver, a transaction stays open. So code that uses a database
delays signals, and allows them while it waits or computes.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _Keeper:
    """Receives signals instead of the previous handlers."""

    def __init__(self) -> None:
        self.open = False
        self._came: list[int] = []
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._handlers: dict[int, Any] = {number: handler for number, handler in found.items() if callable(handler)}
        for number in self._handlers:
            signal.signal(number, self._take)

    def end(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def deliver(self) -> None:
        came, self._came = self._came, []
        for number in came:
            signal.raise_signal(number)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self.open:
            self._came.append(number)
            return
        # What the handler raises ends the open stretch here, before any other code can be interrupted a second time.
        self.open = False
        self._handlers[number](number, frame)
        self.open = True


# Signals are the main thread's business, so there is one at a time; others wait for their turn on the stack.
_keeper: _Keeper | None = None


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Delay signals that have a Python handler, and deliver them at the end.

    If an exception ends the block, the delayed signals are dropped. Nesting it has no effect.
    """
    global _keeper
    before = _keeper
    if not _is_main() or (before is not None and not before.open):
        yield
        return
    _keeper = keeper = _Keeper()
    try:
        yield
    finally:
        _keeper = before
        keeper.end()
    keeper.deliver()


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside `interrupts_held_back`, handle signals as usual for a while, starting with the delayed ones."""
    keeper = _keeper
    if not _is_main() or keeper is None or keeper.open:
        yield
        return
    try:
        keeper.open = True
        keeper.deliver()
        yield
    finally:
        keeper.open = False


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
