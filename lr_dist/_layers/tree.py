"""A model's modules and parameters by clean name, and a list of layers among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

_WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}


def clean_name(name: str) -> str:
    """A parameter's name without the parts that torch.compile, FSDP and activation checkpointing insert.

    Args:
        name: A dotted name, as `_orig_mod.layers.0._fsdp_wrapped_module.weight`.

    Returns:
        The name in the unwrapped model, here `layers.0.weight`.
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


@dataclass(frozen=True)
class Parameter:
    """One parameter: its name in `named_parameters()`, all its clean names (several if tied)."""

    name: str
    aliases: tuple[str, ...]
    value: nn.Parameter


@dataclass(frozen=True)
class Stack:
    """One list of layers: where it is (several paths if registered twice) and how many layers it has.

    Attributes:
        period: Entries of the list that make up a layer: 2 where attention and feed-forward sublayers alternate.
        sublayers: Whether the entries are known to be sublayers.
    """

    paths: tuple[str, ...]
    module: nn.Module
    keys: tuple[str, ...]
    period: int = 1
    sublayers: bool = False

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self.keys) // self.period

    def layer(self, key: str) -> int:
        """The layer that an entry of the list belongs to, from 0."""
        return self.keys.index(key) // self.period

    def __str__(self) -> str:
        kinds = sorted({type(unwrap(layer)).__name__ for layer in self.module.children()})
        return f"`{self.paths[0] or '(the model itself)'}` ({self.depth} x {'/'.join(kinds)})"


class Tree:
    """A model's modules and parameters by clean name."""

    def __init__(self, model: nn.Module) -> None:
        # Parents come first, so a wrapped module replaces its wrapper, which has the same clean name.
        self.modules = {clean_name(path): m for path, m in model.named_modules(remove_duplicate=False)}
        aliases: dict[int, list[str]] = {}
        for name, value in model.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(value), []).append(clean_name(name))
        self.parameters = [
            Parameter(name, tuple(dict.fromkeys(aliases[id(value)])), value) for name, value in model.named_parameters()
        ]
        self.paths = {*self.modules, *(alias for p in self.parameters for alias in p.aliases)}

    def below(self, path: str) -> Iterator[Parameter]:
        """Parameters that have a name below `path`."""
        prefix = path + "." if path else ""
        return (p for p in self.parameters if any(alias.startswith(prefix) for alias in p.aliases))


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside any torch.compile, FSDP or activation-checkpointing wrapper."""
    while inner := next((module._modules[key] for key in _WRAPPERS if key in module._modules), None):
        module = inner
    return module


def is_below(path: str, root: str) -> bool:
    """Whether a dotted path is `root` or leads into it."""
    return not root or path == root or path.startswith(root + ".")


def common_prefix(first: list[str], second: list[str]) -> int:
    """The number of leading parts that two dotted names share."""
    return next(
        (k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
