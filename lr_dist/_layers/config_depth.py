"""The depth in a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping

from lr_dist._layers.tree import Stack, Tree, is_below
from lr_dist.checks import is_whole

# Keys for the depth in configurations. ALBERT's layers share the weights of `num_hidden_groups` groups.
_DEPTH_KEYS = [
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_hidden_groups", "depth"),
    *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
]
_DEPTHS_KEY = "depths"  # one for each stage, as in Swin


def matches_config(tree: Tree, stack: Stack) -> bool:
    """Whether the stack is as long as the depth in the configuration of the nearest module around it."""
    for path in stack.paths:
        config = config_around(tree, path)
        stage = next((int(part) for part in path.split(".") if part.isdigit()), -1)
        if len(stack.keys) in _depths(config) or depths_of_stages(config)[stage : stage + 1] == [len(stack.keys)]:
            return True
    return False


def is_of_whole(tree: Tree, stack: Stack, root: str) -> bool:
    """Whether the configuration around a stack is that of the whole model, not that of a backbone in it."""
    configs = (getattr(module, "config", None) for path, module in tree.modules.items() if is_below(path, root))
    outermost = next((config for config in configs if _depths(config) or depths_of_stages(config)), None)
    return config_around(tree, stack.paths[0]) is outermost


def config_around(tree: Tree, path: str) -> object | None:
    """The configuration, with a depth, of the nearest module around a stack; None if there is none."""
    parts = path.split(".")
    for end in range(len(parts) - 1, -1, -1):
        config = getattr(tree.modules[".".join(parts[:end])], "config", None)
        if _depths(config) or depths_of_stages(config):
            return config
    return None


def _depths(config: object) -> set[int]:
    values = [_read(config, key) for key in _DEPTH_KEYS]
    return {value for value in values if is_whole(value)}


def depths_of_stages(config: object) -> list[int]:
    values = _read(config, _DEPTHS_KEY)
    return list(values) if isinstance(values, list | tuple) and all(map(is_whole, values)) else []


def _read(config: object, key: str) -> object:
    if config is None:
        return None
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
