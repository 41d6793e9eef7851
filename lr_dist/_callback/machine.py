"""The properties of a machine that change the last bits of a computation, and so prevent an exact resume."""

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
    """These properties, as plain data. Other threads or instructions add numbers in another order.

    Args:
        device: the model's device. On a GPU the processor's properties are left out.
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


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """A sentence for each property that both have and that differs; checkpoints of old versions have none."""
    return [
        f"it was written with {name} {saved[key]}, and this run has {current[key]}"
        for key, name in _NAMES.items()
        if key in saved and key in current and saved[key] != current[key]
    ]
