"""Which process works on a trial, so that others can tell whether it still lives."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """This process: `machine`, `host` (to be read by people), `pid`, and when it `started`."""
    pid = os.getpid()
    return {"machine": machine(), "host": socket.gethostname(), "pid": pid, "started": _started(pid)}


def is_gone_here(process: Mapping[str, Any]) -> bool:
    """Whether a process of this machine has ended; another one may have its number by now."""
    return _started(process["pid"]) != process["started"]


@functools.cache
def machine() -> str:
    """Where process numbers mean the same: this machine since it was switched on, and this container on it.

    A name is not enough: containers may share their host's, and many machines are called alike.
    """
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # not Linux
        pass
    return " ".join(parts)


def _started(pid: int) -> float | None:
    """When a process began; None where there is none, or only what its parent has not collected yet.

    On Linux in ticks since the machine was switched on: seconds of the calendar are computed from a clock that is set
    now and then, so that one process would be told two times.
    """
    if Path("/proc/self/stat").exists():
        try:
            # The name, in brackets, may hold anything.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else float(fields[19])
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 2)
    except psutil.NoSuchProcess:
        return None
