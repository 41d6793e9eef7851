"""Resolves the child paths in a module's flows to modules and parameters of a model."""

from __future__ import annotations

import inspect

from torch import nn

from lr_dist._layers.dataflow import returns_data
from lr_dist._layers.flow_values import MODULE_MARK, PARAMETER_MARK
from lr_dist._layers.tree import Tree, common_prefix


def kind_of(tree: Tree, parent: str, token: str, rest: list[str], stack_rest: list[str]) -> str | None:
    """Whether a child path in the source leads to the parameter ("path") or to the stack; None if to both or none."""
    parts = resolved(tree, parent, token)
    if parts is None:
        return None
    to_path = common_prefix(parts, rest) == min(len(parts), len(rest))
    to_stack = common_prefix(parts, stack_rest) == min(len(parts), len(stack_rest))
    if to_path == to_stack:
        return None
    return "path" if to_path else "stack"


def resolved(tree: Tree, parent: str, token: str) -> list[str] | None:
    """The leading parts of a child path that name a module or parameter; None if the path carries no data of it."""
    parts = token.removesuffix(PARAMETER_MARK).removesuffix(MODULE_MARK).split(".")
    known = len(parts)
    while known and joined(parent, parts[:known]) not in tree.paths:
        known -= 1
    if known == 0:
        return None
    owner = tree.modules.get(joined(parent, parts[:known]))
    if token.endswith(MODULE_MARK if owner is None or _holds_parameters(owner) else PARAMETER_MARK):
        return None
    if owner is not None and known < len(parts):
        member = inspect.getattr_static(type(owner), parts[known], None)
        if member is None:
            return None  # a setting (`self.bert.num_labels`), not data
        if not isinstance(owner, nn.ModuleList | nn.Sequential) and not returns_data(type(owner), parts[known]):
            return None  # a query (`self.blocks.get_cast_dtype()`), not data
    return parts[:known]


def _holds_parameters(module: nn.Module) -> bool:
    return isinstance(module, nn.ParameterList | nn.ParameterDict)


def joined(parent: str, parts: list[str]) -> str:
    return ".".join([parent, *parts] if parent else parts)
