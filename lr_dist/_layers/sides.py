"""On which side of a stack of layers a module acts, from the order of children and the data flow."""

from __future__ import annotations

import inspect
from typing import Literal

from torch import nn

from lr_dist._layers.chains import runs_in_turn, stages_around
from lr_dist._layers.dataflow import flows_of
from lr_dist._layers.paths import joined, kind_of, resolved
from lr_dist._layers.tree import Tree, common_prefix

Side = Literal["before", "after", "reused", "between", "unrelated"]


def joins_after(tree: Tree, path: str, stack: str) -> bool:
    """Whether every module that receives a module's or parameter's output also receives the stack's output."""
    parts, stack_parts = path.split("."), stack.split(".") if stack else []
    shared = common_prefix(parts, stack_parts)
    if shared == len(stack_parts):
        return False
    parent = ".".join(parts[:shared])
    edges = flows_of(type(tree.modules[parent])).edges
    kinds = {
        token: kind_of(tree, parent, token, parts[shared:], stack_parts[shared:]) for edge in edges for token in edge
    }
    taken = {target for source, target in edges if kinds[source] == "path" and kinds[target] is None}
    return bool(taken) and taken <= {target for source, target in edges if kinds[source] == "stack"}


def side_of(tree: Tree, path: str, stack: str) -> Side | None:
    """On which side of a stack a module or parameter acts, from the order in nn.Sequential and the data flow.

    Args:
        tree: The model.
        path: Clean name of the module or parameter, outside the stack.
        stack: Clean name of the stack.

    Returns:
        `before`: its output enters the stack. `after`: the stack's output enters it. `reused`: `before`, and later
        `after`. `between`: `after`, and later `before`, so it acts between two layers. `unrelated`: both are used,
        and neither enters the other. None: the source does not show it.
    """
    parts, stack_parts = path.split("."), stack.split(".") if stack else []
    shared = common_prefix(parts, stack_parts)
    if shared == len(stack_parts):
        return None
    unrelated = False
    for end in range(shared, -1, -1):
        parent = ".".join(parts[:end])
        module, rest, stack_rest = tree.modules[parent], parts[end:], stack_parts[end:]
        if runs_in_turn(module) and rest[0] in module._modules:
            if rest[0] != stack_rest[0]:
                keys = list(module._modules)
                return "before" if keys.index(rest[0]) < keys.index(stack_rest[0]) else "after"
            continue
        if end == shared and stages_around(tree, path, stack) is not None:
            keys = list(module._modules)
            return "before" if keys.index(rest[0]) < keys.index(stack_rest[0]) else "after"
        flows = flows_of(type(module))
        tokens = flows.used.union(*flows.edges)
        kinds = {token: kind_of(tree, parent, token, rest, stack_rest) for token in tokens}
        if "stack" not in kinds.values() and "*" in kinds:
            # `getattr(self, self.base_model_prefix)`: the backbone, under whatever name.
            kinds["*"] = "stack"
        first = {"before": -1, "after": -1}
        for (source, target), rank in sorted(flows.edges.items(), key=lambda edge: -edge[1]):
            pair = kinds.get(source), kinds.get(target)
            if pair == ("path", "stack"):
                first["before"] = rank
            elif pair == ("stack", "path"):
                first["after"] = rank
        before, after = first["before"], first["after"]
        if before >= 0 and after >= 0:
            return "reused" if before < after else "between"
        if before >= 0 or after >= 0:
            return "before" if before >= 0 else "after"
        unrelated = unrelated or {"path", "stack"} <= set(kinds.values())
    return "unrelated" if unrelated else None


def layer_beside(tree: Tree, path: str, stack: str) -> int | str | None:
    """Inside a loop over a stack's layers, beside which of them a module is called.

    Args:
        tree: The model.
        path: Clean name of the module or parameter, outside the stack.
        stack: Clean name of the stack.

    Returns:
        The layer's number, `each`, or `some` (the source does not show which); None if it is not called in such a loop.
    """
    parts, stack_parts = path.split("."), stack.split(".")
    shared = common_prefix(parts, stack_parts)
    for end in range(shared, -1, -1):
        parent = ".".join(parts[:end])
        for (source, loop), where in flows_of(type(tree.modules[parent])).inside.items():
            if kind_of(tree, parent, source, parts[end:], stack_parts[end:]) != "path":
                continue
            if kind_of(tree, parent, loop, parts[end:], stack_parts[end:]) == "stack":
                return where
    return None


def receives(tree: Tree, path: str, stack: str) -> bool | None:
    """Whether a stack's output enters a module or parameter, followed argument by argument.

    `side_of` treats a module as a whole; this function follows the data inside it. In a decoder that is called with
    token ids and with the encoder's output, the embedding receives the ids, and a projection the encoder's output.

    Args:
        tree: The model.
        path: Clean name of the module or parameter, outside the stack.
        stack: Clean name of the stack.

    Returns:
        None if the source does not show it.
    """
    parts, stack_parts = path.split("."), stack.split(".") if stack else []
    shared = common_prefix(parts, stack_parts)
    if stages_around(tree, path, stack) is not None:
        return int(stack_parts[shared]) < int(parts[shared])
    parent = ".".join(parts[:shared])
    flows = flows_of(type(tree.modules[parent]))
    sources = {
        source
        for source, _ in flows.entries
        if not source.startswith("@") and kind_of(tree, parent, source, parts[shared:], stack_parts[shared:]) == "stack"
    }
    return _enters(tree, parent, sources, parts[shared:]) if sources else None


def _enters(tree: Tree, parent: str, sources: set[str], rest: list[str]) -> bool:
    """Whether one of these sources of a module's flows reaches the path `rest` below it."""
    flows = flows_of(type(tree.modules[parent]))
    for (source, target), labels in flows.entries.items():
        steps = resolved(tree, parent, target) if source in sources else None
        if steps is None or common_prefix(steps, rest) < min(len(steps), len(rest)):
            continue
        below = joined(parent, steps)
        if len(steps) >= len(rest) or not _own_flows(tree, below):
            return True
        if _enters(tree, below, _arguments(tree.modules[below], labels), rest[len(steps) :]):
            return True
    return False


def _own_flows(tree: Tree, path: str) -> bool:
    return path in tree.modules and bool(flows_of(type(tree.modules[path])).entries)


def _arguments(module: nn.Module, labels: set[int | str]) -> set[str]:
    """The arguments of a module's forward that these labels of a call stand for, as sources of its flows."""
    names = [name for name in inspect.signature(inspect.unwrap(type(module).forward)).parameters if name != "self"]
    if "*" in labels:
        return {f"@{name}" for name in names}
    return {
        f"@{names[label] if label < len(names) else '*'}" if isinstance(label, int) else f"@{label}" for label in labels
    }
