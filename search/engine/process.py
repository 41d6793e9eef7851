"""Identify the process that runs a trial, so that others can check whether it is still alive."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """This process: `machine`, `host` (the name, for people), `pid`, and its start time `started`."""
    pid = os.getpid()
    return {"machine": machine(), "host": socket.gethostname(), "pid": pid, "started": _started(pid)}


def is_gone_here(process: Mapping[str, Any]) -> bool:
    """Whether a process of this machine has ended; its pid may have been reused since."""
    return _started(process["pid"]) != process["started"]


@functools.cache
def machine() -> str:
    """An id of the pid namespace: this machine since its last boot, and this container on it.

    The host name is not enough: containers may share their host's, and it need not be unique.
    """
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # not Linux
        pass
    return " ".join(parts)


def _started(pid: int) -> float | None:
    """A process's start time; None if it does not exist or is a zombie.

    On Linux in clock ticks since boot. A wall-clock time would be computed from a clock that can be adjusted, so that
    two calls could give different times for one process.
    """
    if Path("/proc/self/stat").exists():
        try:
            # The process name, in brackets, can contain any character.
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
