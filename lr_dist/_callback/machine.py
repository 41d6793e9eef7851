"""What of a machine decides the last bits of a computation, so that another one cannot resume a run exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_NAMES = {
    "torch": "torch",
    "device": "the device",
    "threads": "threads (torch.get_num_threads())",
    "instructions": "the processor's instructions",
}


def machine(device: torch.device) -> dict[str, Any]:
    """Facts about this process, as plain data: sums are taken in another order with other threads or instructions.

    Args:
        device: where the model is. Where that is no CPU, the processor's part does not count.
    """
    facts: dict[str, Any] = {"torch": torch.__version__.partition("+")[0]}
    if device.type == "cpu":
        return {
            **facts,
            "device": "cpu",
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
        }
    return {**facts, "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what both have and differs; of a checkpoint without such facts nothing is known."""
    return [
        f"it was written with {name} {then[key]}, and this run has {now[key]}"
        for key, name in _NAMES.items()
        if key in then and key in now and then[key] != now[key]
    ]
