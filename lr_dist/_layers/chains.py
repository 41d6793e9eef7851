"""Which modules apply their children one after the other."""

from __future__ import annotations

from torch import nn

from lr_dist._layers.dataflow import flows_of
from lr_dist._layers.flow_values import IN_TURN
from lr_dist._layers.tree import Stack, Tree, common_prefix


def runs_in_turn(module: nn.Module) -> bool:
    """Whether a module applies its children one after the other, as nn.Sequential does."""
    if type(module).forward is nn.Sequential.forward:
        return True
    return _runs_itself(module) and (IN_TURN, IN_TURN) in flows_of(type(module)).edges


def _runs_itself(module: nn.Module) -> bool:
    # nn.ModuleList has no `forward` of its own, although its other methods iterate over its entries.
    return type(module).forward is not nn.Module.forward


def is_chained(tree: Tree, stack: Stack) -> bool | None:
    """Whether each layer's output enters the next layer; None if the source does not show it."""
    if runs_in_turn(stack.module):
        return True
    if _runs_itself(stack.module) and IN_TURN in flows_of(type(stack.module)).used:
        return False
    used = False
    for path in stack.paths:
        parts = path.split(".")
        for end in range(len(parts) - 1, -1, -1):
            parent, rest = ".".join(parts[:end]), parts[end:]
            flows = flows_of(type(tree.modules[parent]))
            inside = {t for t in flows.used if t.split(".")[: len(rest)] == rest}
            if any(source in inside and target in inside for source, target in flows.edges):
                return True
            used = used or bool(inside)
    return False if used else None


def stages_around(tree: Tree, first: str, second: str) -> str | None:
    """The path of a list, applied entry after entry, that holds two names in different entries; None without one."""
    one, two = first.split("."), second.split(".")
    shared = common_prefix(one, two)
    if shared >= min(len(one), len(two)):
        return None
    path = ".".join(one[:shared])
    module = tree.modules.get(path)
    if (
        not isinstance(module, nn.ModuleList | nn.Sequential)
        or not {one[shared], two[shared]} <= module._modules.keys()
    ):
        return None
    return path if is_chained(tree, Stack((path,), module, tuple(module._modules))) else None
