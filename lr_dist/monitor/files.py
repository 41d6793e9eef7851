"""The kept weights, and the state of a monitor, as safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lr_dist.errors import ConfigurationError, ResumeMismatchError, shown
from lr_dist.extras import require_libraries
from lr_dist.runs.atomic import write_bytes


def save_weights(path: str | Path, weights: Mapping[str, Tensor] | None, step: int | None) -> Path:
    """Write weights as safetensors, with their step as metadata.

    Raises:
        ConfigurationError: there are none.
        MissingExtraError: safetensors is not installed (extra `tasks`).
        UnwritableFileError: the file cannot be written.
    """
    if weights is None:
        raise ConfigurationError(
            "No weights were kept. Give ForgettingMonitor a rule, such as keep='old >= 0.98'; if it has one, no "
            "measurement fulfilled it."
        )
    require_libraries("tasks", "safetensors")
    from safetensors.torch import save

    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    return write_bytes(path, save(whole, metadata={"format": "pt", "step": str(step)}))


def save_state(path: Path, plain: Mapping[str, Any], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a monitor's state: tensors as `part/name`, the rest as JSON in the metadata.

    Raises:
        UnwritableFileError: the file cannot be written.
    """
    from safetensors.torch import save

    flat = {f"{part}/{name}": t.contiguous() for part, tensors in weights.items() for name, t in tensors.items()}
    write_bytes(path, save(flat, metadata={"format": "pt", "state": json.dumps({**plain, "parts": list(weights)})}))


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
    """The inverse of `save_state`; None if there is no such file.

    Raises:
        ResumeMismatchError: a file that was not written by `save_state`, or is damaged.
    """
    if not path.exists():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads(file.metadata()["state"])
            weights: dict[str, dict[str, Tensor]] = {part: {} for part in plain.pop("parts")}
            for key in list(file.keys()):  # it is no mapping
                part, _, name = key.partition("/")
                weights[part][name] = file.get_tensor(key)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ResumeMismatchError(
            f"{shown(str(path))} cannot be read ({error!r}). Remove it to resume: the scores then count from that step."
        ) from error
    return plain, weights
