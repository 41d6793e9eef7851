"""Checks, with transformers' loading report, that a model has the weights of its file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lr_dist.errors import MissingWeightsError, ModelLoadError, UnusedLayersWarning, shown

# Never used here: only the last hidden state is, with a new head.
_UNUSED = re.compile(r"(^|\.)pooler\.")
_NUMBER = re.compile(r"\.(\d+)\.")


def check_loaded(name: str, model: nn.Module, report: Mapping[str, Any]) -> None:
    """Refuse a model with weights that were initialised at random.

    A pooler may be missing, because it is not used. Heads are not part of the loaded model, so it does not
    matter whether the file has them.

    Args:
        name: the model's name, as the user wrote it.
        model: the model that `from_pretrained` returned.
        report: its `output_loading_info`: missing_keys, unexpected_keys, mismatched_keys, error_msgs.

    Raises:
        MissingWeightsError: weights of the model are not in the file, or have other shapes there.
        ModelLoadError: quantised weights, or NaN or infinite ones.

    Warns:
        UnusedLayersWarning: the file holds layers that config.json leaves out.
    """
    missing = sorted(key for key in report.get("missing_keys", ()) if not _UNUSED.search(key))
    mismatched = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in report["mismatched_keys"])
    unexpected = sorted(report.get("unexpected_keys", ()))
    if missing or mismatched or report.get("error_msgs"):
        raise MissingWeightsError(_missing(name, model, missing, mismatched, unexpected, report.get("error_msgs")))
    if getattr(model, "is_quantized", False) or not all(p.is_floating_point() for p in model.parameters()):
        raise ModelLoadError(
            f"The weights of {shown(name)} are quantised, which cannot be fine-tuned. Give the model in float32, "
            "float16 or bfloat16."
        )
    for key, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelLoadError(
                f"The weights of {shown(name)} are damaged: {shown(key)} holds NaN or infinite numbers. Get the file "
                "again."
            )
    left_out = _left_out(model, unexpected)
    if left_out:
        warnings.warn(
            f"The file of {shown(name)} holds layers that its config.json leaves out: {_some(left_out)}. They are not "
            "loaded; set the number of layers in config.json if they should be.",
            UnusedLayersWarning,
            stacklevel=3,
        )


def _missing(
    name: str, model: nn.Module, missing: list[str], mismatched: list[str], unexpected: list[str], messages: Any
) -> str:
    total = len(model.state_dict())
    parts = [f"{shown(name)} cannot be used: a part of {type(model).__name__} would have random weights."]
    if missing:
        parts.append(f"Missing in the file, {len(missing)} of {total}: {_some(missing)}.")
    if mismatched:
        parts.append(f"Of another shape than config.json says: {_some(mismatched)}.")
    if unexpected:
        parts.append(f"In the file, and not in the model: {_some(unexpected)}.")
    if messages:
        parts.append(f"transformers says: {shown(str(messages))}.")
    parts.append("config.json and the weights must belong to one model; compare its model_type and number of layers.")
    return " ".join(parts)


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    return ", ".join(shown(key).strip("'\"") for key in keys[:4]) + more


def _left_out(model: nn.Module, unexpected: list[str]) -> list[str]:
    """Names of layers in the file beyond the length of the model's list of layers."""
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    left_out: dict[str, None] = {}
    for key in unexpected:
        for match in _NUMBER.finditer(key):
            prefix = key[: match.start()]
            for name, length in lists.items():
                # A file of a model with a head has a prefix: `bert.encoder.layer`.
                if (prefix == name or prefix.endswith(f".{name}")) and int(match[1]) >= length:
                    left_out[f"{prefix}.{match[1]}"] = None
    return list(left_out)
