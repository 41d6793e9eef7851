"""The environment of a result: versions, machine, memory."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from lr_dist.runs.machine import processor_name, usable_cores

PACKAGES = ("lr-dist", "torch", "lightning", "transformers", "datasets", "torchmetrics", "numpy")


def versions_text(environment: Mapping[str, Any]) -> str:
    """The versions in an environment, as pages and presets write them: `lr-dist 0.2.0, torch 2.13.0, ...`."""
    return ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())


def describe_environment(choices: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Versions of Python and the libraries, processor, cores and threads: plain data for a result file.

    Args:
        choices: the choices made for this machine, see `lr_dist.sequence.bench.Bench.choices`; added to the result.
    """
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    versions["torch"] = torch.__version__
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        **(choices or {}),
        "versions": versions,
    }


def peak_memory_mb() -> float | None:
    """The largest resident memory of this process so far, in MiB; None if the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
