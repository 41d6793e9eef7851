"""A classifier's weights in a checkpoint file, such as Lightning's, which holds no configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.errors import PATH, ModelLoadError, shown

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


def is_checkpoint(name: str) -> bool:
    """Whether it is a file with weights, not a folder or a hub name."""
    path = Path(name).expanduser()
    return path.suffix in SUFFIXES and path.is_file()


def load_weights(model: nn.Module, name: str) -> None:
    """Load the weights of a checkpoint into a model, whatever the module is called that held it there.

    Args:
        model: of the checkpoint's architecture.
        name: a file of Lightning (`state_dict`), of torch (a state dict), or of safetensors. No code in it is run.

    Raises:
        ModelLoadError: it cannot be read, or lacks weights of the model.
    """
    weights = {_present_name(key): weight for key, weight in _read(Path(name).expanduser()).items()}
    wanted = model.state_dict()
    # Of `model.bert.pooler.dense.weight` the part that the checkpoint's module put before.
    first = next(iter(wanted))
    prefixes = {key[: -len(first)] for key in weights if key == first or key.endswith(f".{first}")}
    complete = [each for each in prefixes if all(each + key in weights for key in wanted)]
    if not complete:
        prefix = min(prefixes, key=len, default="")
        missing = [prefix + key for key in wanted if prefix + key not in weights]
        raise ModelLoadError(
            f"{shown(name, PATH)} does not hold a {type(model).__name__} of this size: it lacks "
            f"{', '.join(missing[:3])} and {max(0, len(missing) - 3)} more. The architecture must be the one "
            "that was trained."
        )
    prefix = min(complete, key=len)
    try:
        model.load_state_dict({key: weights[prefix + key] for key in wanted})
    except RuntimeError as error:
        raise ModelLoadError(
            f"The weights of {shown(name, PATH)} have other shapes than a {type(model).__name__} of this architecture "
            f"and task: {' '.join(str(error).split())[:300]}"
        ) from error


def _present_name(key: str) -> str:
    """BERT's norms were called gamma and beta, and transformers before version 5 can save them so."""
    for old, new in ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")):
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file leads torch and safetensors to
        raise ModelLoadError(
            f"Cannot read the checkpoint {shown(str(path), PATH)}: {' '.join(str(error).split())[:300]}"
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(each, Tensor) for each in weights.values()):
        raise ModelLoadError(f"{shown(str(path), PATH)} holds no state dict, neither itself nor under `state_dict`.")
    return weights
