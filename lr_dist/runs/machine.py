"""This machine: its processor, the cores this process may use, and the device that a fit runs on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# A container's CPU quota and its period, in microseconds (cgroup v2; v1 has them in two files).
QUOTA = Path("/sys/fs/cgroup/cpu.max")
QUOTA_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
THREADS_VARIABLE = "OMP_NUM_THREADS"
# Instruction sets that determine the speed of a matrix product.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def processor_name() -> str:
    """The processor's name and its instruction sets among `_FLAGS`; from /proc/cpuinfo if there is one."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or "unknown"
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    by_name = {key.strip(): value.strip() for key, value in fields.items()}
    flags = by_name.get("flags", by_name.get("Features", "")).split()
    return " ".join([by_name.get("model name", "unknown"), *(f"[{flag}]" for flag in _FLAGS if flag in flags)])


def usable_cores() -> int:
    """The number of cores that this process may use: those it is bound to, or fewer if its container has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, quota))


def threads_of(workers: int) -> int:
    """Threads for each of `workers` processes, so that together they use every core once; at most OMP_NUM_THREADS."""
    threads = max(1, usable_cores() // workers)
    most = _asked_threads()
    return threads if most is None else min(threads, most)


def use_usable_cores() -> str | None:
    """Lower torch's number of threads to the cores that this process may use, unless the user has set it.

    torch counts the machine's cores. In a container that may use one core of 64, it would start 64 threads.

    Returns:
        A line that says so, or None if nothing was changed.
    """
    import torch

    threads, cores = torch.get_num_threads(), usable_cores()
    if _asked_threads() is not None or threads <= cores:
        return None
    torch.set_num_threads(cores)
    return f"threads: {cores} (this process may use {cores} core(s); torch would start {threads} threads)"


def training_device() -> str:
    """The kind of device that Lightning's `accelerator="auto"` takes: `mps`, `cuda` or `cpu`."""
    import torch

    if torch.backends.mps.is_available():
        return "mps"
    return "cuda" if torch.cuda.is_available() else "cpu"


def _asked_threads() -> int | None:
    asked = os.environ.get(THREADS_VARIABLE, "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else None


def _quota() -> int | None:
    """The container's quota in whole cores; None without a quota."""
    try:
        if QUOTA.exists():
            share, period = QUOTA.read_text(encoding="ascii").split()
        else:
            share, period = (path.read_text(encoding="ascii").strip() for path in QUOTA_V1)
        # Without a quota v2 says "max" and v1 says -1.
        return int(share) // int(period) if int(share) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
