"""Finds the stack of transformer layers in a module tree, and on which side of it a parameter acts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from lr_dist._layers.dataflow import IN_TURN, MODULE_MARK, PARAMETER_MARK, flows_of, returns_data
from lr_dist.errors import LayersNotFoundError

_WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}
# What configurations call the depth. ALBERT's layers share the weights of `num_hidden_groups` groups.
_DEPTH_KEYS = [
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_hidden_groups", "depth"),
    *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
]
_DEPTHS_KEY = "depths"  # one for each stage, as in Swin
_ATTENTION = re.compile(r"attn|attention|(^|_)mha($|_)|qkv|q_proj", re.IGNORECASE)

Side = Literal["before", "after", "reused", "between", "unrelated"]


def clean_name(name: str) -> str:
    """A parameter's name without what torch.compile, FSDP and activation checkpointing put into it.

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
        # Parents come first, so what a wrapper wraps replaces it under their common clean name.
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


# Stacks --------------------------------------------------------------------------------------------------


class SeveralStacksError(LayersNotFoundError):
    """Stacks of layers whose order in depth is not known."""

    def __init__(self, stacks: list[Stack]) -> None:
        super().__init__(f"{len(stacks)} stacks of layers: {', '.join(map(str, stacks))}")
        self.stacks = stacks


def find_stacks(
    tree: Tree, is_overridden: Callable[[Parameter], bool], root: str = ""
) -> tuple[list[Stack], list[Stack]]:
    """The model's stack of layers, or its encoder's and its decoder's, or those of its stages.

    Args:
        tree: The model.
        is_overridden: Whether an override places this parameter; a stack of nothing else is no stack.
        root: Path of the submodule in which to look.

    Returns:
        One stack, or several that follow each other, in the order of depth; and the frozen ones that were passed over
        (a teacher, a frozen image tower), whose parameters have no depth here.

    Raises:
        LayersNotFoundError: There is none.
        SeveralStacksError: There are several, and their order in depth is not known.
    """
    found = _drop_nested(tree, _candidates(tree, root, needs_attention=True))
    found = found or _drop_nested(
        tree, [s for s in _candidates(tree, root, needs_attention=False) if _is_of_whole(tree, s, root)]
    )
    stacks = [s for s in found if not all(is_overridden(p) for p in tree.below(s.paths[0]))]
    ignored = _bystanders(tree, stacks)
    stacks = [s for s in stacks if s not in ignored]
    if len(stacks) == 1 and _is_layered(tree, stacks[0]):
        return stacks, ignored
    if len(stacks) < 2:
        beside = [s for s in found if s not in stacks]
        raise LayersNotFoundError(
            f"no stack of transformer layers found in {type(tree.modules[root]).__name__}: there is no nn.ModuleList "
            "or nn.Sequential, applied layer after layer, of layers of one class that hold attention, or of sublayers "
            "that alternate, nor one as long as its config's depth"
            + (f"; {stacks[0]} is a list of other modules" if stacks else "")
            + (f" (beside the overridden {', '.join(map(str, beside))})" if beside else "")
            + ". Pass the transformer itself."
        )
    ordered = sorted(stacks, key=lambda stack: sum(follows(tree, other, stack) for other in stacks))
    if all(follows(tree, first, then) for k, first in enumerate(ordered) for then in ordered[k + 1 :]):
        return ordered, ignored
    raise SeveralStacksError(stacks)


def _bystanders(tree: Tree, stacks: list[Stack]) -> list[Stack]:
    """Frozen stacks that are no part of the depth of what learns: a teacher, averaged weights, an image tower."""
    trained = [s for s in stacks if any(p.value.requires_grad for p in tree.below(s.paths[0]))]

    def stands_by(frozen: Stack, learner: Stack) -> bool:
        if follows(tree, frozen, learner) or follows(tree, learner, frozen):
            return False
        # Idefics' frozen layers alternate with its trained ones, and then they are its depth too.
        return side_of(tree, frozen.paths[0], learner.paths[0]) in ("before", "unrelated", None)

    return [s for s in stacks if trained and s not in trained and all(stands_by(s, other) for other in trained)]


def _candidates(tree: Tree, root: str, needs_attention: bool) -> list[Stack]:
    by_module: dict[int, list[str]] = {}
    for path, module in tree.modules.items():
        if isinstance(module, nn.ModuleList | nn.Sequential) and is_below(path, root):
            by_module.setdefault(id(module), []).append(path)
    stacks = []
    for paths in by_module.values():
        module = tree.modules[paths[0]]
        stack = Stack(tuple(paths), module, tuple(module._modules))
        period = _period(tree, stack) if needs_attention and not _matches_config(tree, stack) else 0
        if period:
            stacks.append(replace(stack, period=period, sublayers=True))
        elif _is_stack(tree, stack, needs_attention):
            stacks.append(stack)
    return stacks


def _is_stack(tree: Tree, stack: Stack, needs_attention: bool) -> bool:
    layers = [unwrap(layer) for layer in stack.module.children()]
    if not layers or not all(any(True for _ in x.children()) and any(True for _ in x.parameters()) for x in layers):
        return False
    if not needs_attention:
        return _is_layered(tree, stack)
    attention = [_has_attention(layer) for layer in layers]
    # Several modules with attention in one list are suspect even if they turn out to be no layers.
    return sum(attention) > 1 or (any(attention) and (len(layers) == 1 or _matches_config(tree, stack)))


def _is_layered(tree: Tree, stack: Stack) -> bool:
    """Whether the list is a stack of layers: as long as the config says, or alike, with attention, and chained."""
    return (
        _matches_config(tree, stack) or stack.sublayers or (_is_alike(stack) and _is_chained(tree, stack) is not False)
    )


def _period(tree: Tree, stack: Stack) -> int:
    """After how many entries a list of sublayers repeats: 2 for attention, feed-forward, attention, feed-forward, ...

    Where attention and feed-forward sublayers follow each other without such a rhythm (x-transformers' sandwich), each
    is a layer of its own: depth is relative. 0 where the list is something else.
    """
    entries = [unwrap(entry) for entry in stack.module.children()]
    kinds = [tuple((name, type(module)) for name, module in entry.named_modules()) for entry in entries]
    attention = [_has_attention(entry) for entry in entries]
    if sum(attention) < 2 or all(attention) or _is_chained(tree, stack) is False:
        return 0
    if any(isinstance(unwrap(entry), nn.Embedding) for entry in entries):
        return 0
    for period in range(2, len(kinds) // 2 + 1):
        if len(kinds) % period == 0 and all(kind == kinds[at % period] for at, kind in enumerate(kinds)):
            return period
    return 1 if all(kinds.count(kind) > 1 for kind in kinds) else 0


def _is_alike(stack: Stack) -> bool:
    layers = [unwrap(layer) for layer in stack.module.children()]
    return len({type(layer) for layer in layers}) == 1 and all(_has_attention(layer) for layer in layers)


def _has_attention(layer: nn.Module) -> bool:
    return any(
        _ATTENTION.search(name.rpartition(".")[2]) or _ATTENTION.search(type(module).__name__)
        for name, module in layer.named_modules()
        if not isinstance(module, nn.Embedding)  # `relative_attention_bias`: a table
    )


def _matches_config(tree: Tree, stack: Stack) -> bool:
    """Whether the configuration of the nearest module around the stack names its length as the depth."""
    for path in stack.paths:
        config = _config_around(tree, path)
        stage = next((int(part) for part in path.split(".") if part.isdigit()), -1)
        if len(stack.keys) in _depths(config) or _depths_of_stages(config)[stage : stage + 1] == [len(stack.keys)]:
            return True
    return False


def is_below(path: str, root: str) -> bool:
    """Whether a dotted path is `root` or leads into it."""
    return not root or path == root or path.startswith(root + ".")


def _is_of_whole(tree: Tree, stack: Stack, root: str) -> bool:
    """Whether the config that names a stack's length is that of the whole model, not that of a backbone in it."""
    configs = (getattr(module, "config", None) for path, module in tree.modules.items() if is_below(path, root))
    outermost = next((config for config in configs if _depths(config) or _depths_of_stages(config)), None)
    return _config_around(tree, stack.paths[0]) is outermost


def _config_around(tree: Tree, path: str) -> object | None:
    """The configuration of the nearest module around a stack that says how deep it is."""
    parts = path.split(".")
    for end in range(len(parts) - 1, -1, -1):
        config = getattr(tree.modules[".".join(parts[:end])], "config", None)
        if _depths(config) or _depths_of_stages(config):
            return config
    return None


def _depths(config: object) -> set[int]:
    values = [_read(config, key) for key in _DEPTH_KEYS]
    return {value for value in values if isinstance(value, int) and not isinstance(value, bool)}


def _depths_of_stages(config: object) -> list[int]:
    values = _read(config, _DEPTHS_KEY)
    return list(values) if isinstance(values, list | tuple) and all(type(value) is int for value in values) else []


def _read(config: object, key: str) -> object:
    if config is None:
        return None
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def _is_chained(tree: Tree, stack: Stack) -> bool | None:
    """Whether one layer's output enters the next; None if the source does not say."""
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


def _drop_nested(tree: Tree, stacks: list[Stack]) -> list[Stack]:
    """Of stacks inside each other: the outer one, unless it is a list of whole models (an ensemble, a cascade)."""

    def inner_of(outer: Stack) -> list[Stack]:
        prefixes = tuple(path + "." if path else "" for path in outer.paths)
        return [s for s in stacks if s is not outer and s.paths[0].startswith(prefixes)]

    def is_wrapper(outer: Stack) -> bool:
        inner = inner_of(outer)
        if _is_list_of_stages(tree, outer, inner):
            return True
        if _matches_config(tree, outer):
            return False
        if len(outer.keys) == 1:
            return bool(inner)
        return any(_matches_config(tree, s) or (len(s.keys) > 1 and _is_alike(s)) for s in inner)

    kept = [s for s in stacks if not is_wrapper(s)]
    nested = [s for outer in kept for s in inner_of(outer)]
    return [s for s in kept if s not in nested]


def _is_list_of_stages(tree: Tree, outer: Stack, inner: list[Stack]) -> bool:
    """Whether each entry of a list holds layers of its own: as many as the config's depths say, or with attention."""
    stages: dict[str, list[Stack]] = {}
    for stack in inner:
        key = stack.paths[0].removeprefix(outer.paths[0] + "." if outer.paths[0] else "").partition(".")[0]
        if not any(stack.paths[0].startswith(other.paths[0] + ".") for other in inner):
            stages.setdefault(key, []).append(stack)
    if len(stages) < 2 or any(len(stacks) != 1 for stacks in stages.values()):
        return False
    layers = [stages[key][0] for key in outer.keys if key in stages]
    config = _config_around(tree, outer.paths[0])
    if [len(stack.keys) for stack in layers] == _depths_of_stages(config):
        return True
    return len(layers) == len(outer.keys) and any(_has_equals_with_attention(stack) for stack in layers)


def _has_equals_with_attention(stack: Stack) -> bool:
    kinds = [type(layer) for layer in map(unwrap, stack.module.children()) if _has_attention(layer)]
    return len(kinds) > len(set(kinds))


def follows(tree: Tree, first: Stack, then: Stack) -> bool:
    """Whether two stacks are known to be one after the other in depth."""
    if _is_encoder_decoder(tree, first, then):
        return True
    if side_of(tree, first.paths[0], then.paths[0]) != "before":
        return False
    if not (_is_layered(tree, first) and _is_layered(tree, then)):
        return False
    if stages_around(tree, first.paths[0], then.paths[0]) is not None:
        return True
    # Of one class, in one model with a config of its own. Two towers, or a model on top of another, are not.
    kinds = {type(unwrap(layer)) for stack in (first, then) for layer in stack.module.children()}
    parts = first.paths[0].split(".")
    around = [".".join(parts[:end]) for end in range(common_prefix(parts, then.paths[0].split(".")) + 1)]
    return len(kinds) == 1 and any(getattr(tree.modules[path], "config", None) is not None for path in around)


def stages_around(tree: Tree, first: str, second: str) -> str | None:
    """The list, applied entry after entry, in different entries of which two names are; None if there is none."""
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
    return path if _is_chained(tree, Stack((path,), module, tuple(module._modules))) else None


def _is_encoder_decoder(tree: Tree, encoder: Stack, decoder: Stack) -> bool:
    first, second = encoder.paths[0].split("."), decoder.paths[0].split(".")
    depth = common_prefix(first, second)
    if depth >= min(len(first), len(second)):
        return False
    # The same name but for the one word: an image encoder and a mask decoder are two models, not one.
    if "enc" not in first[depth] or first[depth].replace("enc", "dec") != second[depth]:
        return False
    return side_of(tree, encoder.paths[0], decoder.paths[0]) in ("before", None)


# Sides ---------------------------------------------------------------------------------------------------


def joins_after(tree: Tree, path: str, stack: str) -> bool:
    """Whether the output of a module or parameter only meets that of a stack: what takes the one takes the other."""
    parts, stack_parts = path.split("."), stack.split(".") if stack else []
    shared = common_prefix(parts, stack_parts)
    if shared == len(stack_parts):
        return False
    parent = ".".join(parts[:shared])
    edges = flows_of(type(tree.modules[parent])).edges
    kinds = {
        token: _kind(tree, parent, token, parts[shared:], stack_parts[shared:]) for edge in edges for token in edge
    }
    taken = {target for source, target in edges if kinds[source] == "path" and kinds[target] is None}
    return bool(taken) and taken <= {target for source, target in edges if kinds[source] == "stack"}


def side_of(tree: Tree, path: str, stack: str) -> Side | None:
    """On which side of a stack a module or parameter acts, after the order of nn.Sequential and the data flow.

    Args:
        tree: The model.
        path: Clean name of the module or parameter, outside the stack.
        stack: Clean name of the stack.

    Returns:
        `before`: its output enters the stack. `after`: the stack's output enters it. `reused`: first the one,
        then the other. `between`: first the other, so it acts between two layers. `unrelated`: both are used,
        and neither feeds the other. None: the source does not say.
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
        kinds = {token: _kind(tree, parent, token, rest, stack_rest) for token in tokens}
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


def runs_in_turn(module: nn.Module) -> bool:
    """Whether a module applies its children one after the other, as nn.Sequential does."""
    if type(module).forward is nn.Sequential.forward:
        return True
    return _runs_itself(module) and (IN_TURN, IN_TURN) in flows_of(type(module)).edges


def _runs_itself(module: nn.Module) -> bool:
    # nn.ModuleList has no forward; its other methods go through its entries too.
    return type(module).forward is not nn.Module.forward


def layer_beside(tree: Tree, path: str, stack: str) -> int | str | None:
    """Inside a loop over a stack's layers, beside which of them a module is called.

    Args:
        tree: The model.
        path: Clean name of the module or parameter, outside the stack.
        stack: Clean name of the stack.

    Returns:
        The layer's number, `each` of them, or `some` that the source does not tell; None if it is not called there.
    """
    parts, stack_parts = path.split("."), stack.split(".")
    shared = common_prefix(parts, stack_parts)
    for end in range(shared, -1, -1):
        parent = ".".join(parts[:end])
        for (source, loop), where in flows_of(type(tree.modules[parent])).inside.items():
            if _kind(tree, parent, source, parts[end:], stack_parts[end:]) != "path":
                continue
            if _kind(tree, parent, loop, parts[end:], stack_parts[end:]) == "stack":
                return where
    return None


def receives(tree: Tree, path: str, stack: str) -> bool | None:
    """Whether data that has passed a stack enters a module or parameter, followed argument by argument.

    `side_of` sees one module enter another; this looks into it: of a decoder that is called with token ids and with the
    encoder's output, the embedding receives the one, and the projection of the other.

    Args:
        tree: The model.
        path: Clean name of the module or parameter, outside the stack.
        stack: Clean name of the stack.

    Returns:
        None if the source does not say.
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
        if not source.startswith("@") and _kind(tree, parent, source, parts[shared:], stack_parts[shared:]) == "stack"
    }
    return _enters(tree, parent, sources, parts[shared:]) if sources else None


def _enters(tree: Tree, parent: str, sources: set[str], rest: list[str]) -> bool:
    """Whether one of these sources of a module's flows reaches the path `rest` below it."""
    flows = flows_of(type(tree.modules[parent]))
    for (source, target), labels in flows.entries.items():
        steps = _resolved(tree, parent, target) if source in sources else None
        if steps is None or common_prefix(steps, rest) < min(len(steps), len(rest)):
            continue
        below = _joined(parent, steps)
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


def _kind(tree: Tree, parent: str, token: str, rest: list[str], stack_rest: list[str]) -> str | None:
    """Whether a child path that the source names leads to the parameter or to the stack, and not to both."""
    parts = _resolved(tree, parent, token)
    if parts is None:
        return None
    to_path = common_prefix(parts, rest) == min(len(parts), len(rest))
    to_stack = common_prefix(parts, stack_rest) == min(len(parts), len(stack_rest))
    if to_path == to_stack:
        return None
    return "path" if to_path else "stack"


def _resolved(tree: Tree, parent: str, token: str) -> list[str] | None:
    """The parts of a child path in flows that lead to a module or parameter; None if it holds no data of theirs."""
    parts = token.removesuffix(PARAMETER_MARK).removesuffix(MODULE_MARK).split(".")
    known = len(parts)
    while known and _joined(parent, parts[:known]) not in tree.paths:
        known -= 1
    if known == 0:
        return None
    owner = tree.modules.get(_joined(parent, parts[:known]))
    if token.endswith(MODULE_MARK if owner is None or _holds_parameters(owner) else PARAMETER_MARK):
        return None
    if owner is not None and known < len(parts):
        member = inspect.getattr_static(type(owner), parts[known], None)
        if member is None:
            return None  # a setting that it keeps (`self.bert.num_labels`), no data that went through it
        if not isinstance(owner, nn.ModuleList | nn.Sequential) and not returns_data(type(owner), parts[known]):
            return None  # a question (`self.blocks.get_cast_dtype()`)
    return parts[:known]


def _holds_parameters(module: nn.Module) -> bool:
    return isinstance(module, nn.ParameterList | nn.ParameterDict)


def _joined(parent: str, parts: list[str]) -> str:
    return ".".join([parent, *parts] if parent else parts)


def common_prefix(first: list[str], second: list[str]) -> int:
    """The number of leading parts that two dotted names share."""
    return next(
        (k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
