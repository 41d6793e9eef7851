"""Ctrl-C and SIGTERM where they must not come in between."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held_back() -> Iterator[list[int]]:
    """Keep back the signals that a handler of Python's takes; the list says afterwards which ones came.

    Whoever uses it must look at the list, and raise those signals again or do what they ask for.
    """
    held: list[int] = []
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, lambda came, _: held.append(came)) for number in numbers}
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
