"""What a real forward pass says about the depth of each parameter, to hold `assign_layers` against.

Nothing of `lr_dist` is used. Which modules are the layers is seen by building the model once more with one layer more
and looking which list of modules has grown. Where a parameter acts is read off the graph that autograd records while
the model runs: a parameter from which a layer's input is reached acts before it, one that first meets data that
has passed the last layer acts after it. Names, and the text of `forward`, play no part.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain, pairwise
from operator import or_
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node
from transformers import PreTrainedConfig

_DEPTH_FIELD = re.compile(r"layer|depth|block|group")
_LOOKUP_NODE = re.compile(r"Embedding|Index|Gather")  # what is looked up is data, though no edge of the graph says so
_TABLE_NODE = re.compile(r"^(Add|Sub|Cat|Stack)Backward")
_ATTENTION_NODE = re.compile(r"ScaledDotProduct|Softmax|Attention")


@dataclass(frozen=True)
class Truth:
    """What was seen in one run.

    Attributes:
        num_layers: layers in all stacks that follow each other.
        stacks: paths of the lists of layers, in the order in which data passes them.
        depths: parameter -> the depths (0 embeddings, 1.. layers, num_layers + 1 head) that fit what was seen.
        unused: parameters that had no part in the outputs, whose depth cannot be seen.
        beside: parameters that neither feed a layer nor receive anything from one.
        doubts: what makes the stacks themselves doubtful: parallel stacks, layers that do not follow each other.
    """

    num_layers: int
    stacks: tuple[tuple[str, ...], ...]
    depths: dict[str, range]
    unused: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


# Stacks: what grows with the config's depth -----------------------------------------------------------------


def growing_lists(config: PreTrainedConfig, build: Callable[[PreTrainedConfig], nn.Module]) -> dict[str, set[str]]:
    """The lists of modules whose length follows a number in the config.

    Args:
        config: A model's config.
        build: Makes the model of it (on the meta device, to be quick).

    Returns:
        Path of the list -> the fields that it follows, as `text_config.num_hidden_layers`.
    """
    model = build(config)
    before = _lengths(model)
    found: dict[str, set[str]] = defaultdict(set)
    for name, changed, step in _with_one_layer_more(config):
        try:
            after = _lengths(build(changed))
        except Exception:
            continue
        for path in before.keys() & after.keys():
            if after[path] - before[path] == step:
                found[path].add(name)
    # A list of the same layers that does not grow (Canine's encoders of characters) is one of layers all the same.
    kinds = {_kind(model, path) for path in found}
    return {path: found.get(path, set()) for path in before if path in found or _kind(model, path) in kinds}


def _kind(model: nn.Module, path: str) -> type | None:
    kinds = {type(child) for child in model.get_submodule(path).children()}
    return kinds.pop() if len(kinds) == 1 else None


def all_lists(model: nn.Module) -> dict[str, set[str]]:
    """Every list of modules, for a model whose depth its config does not say: the run alone then tells its layers."""
    return {path: set() for path in _lengths(model)}


def _lengths(model: nn.Module) -> dict[str, int]:
    lengths = {}
    for path, module in model.named_modules():
        numbered = sum(key.isdigit() for key in (*module._modules, *module._parameters))
        if numbered:
            lengths[path] = numbered
    return lengths


def _with_one_layer_more(config: PreTrainedConfig) -> Iterator[tuple[str, PreTrainedConfig, int]]:
    for where, name, index, value in list(_depth_fields(config, ())):
        for step in (1, -1):
            if value + step < 1:
                continue
            changed = copy.deepcopy(config)
            part = changed
            for key in where:
                part = getattr(part, key)
            try:
                if index is None:
                    setattr(part, name, value + step)
                    _fit_lists(part, value, step)
                else:
                    values = list(getattr(part, name))
                    values[index] += step
                    setattr(part, name, type(getattr(part, name))(values))
            except Exception:
                continue
            label = ".".join((*where, name)) + ("" if index is None else f"[{index}]")
            yield label, changed, step


def _depth_fields(
    config: PreTrainedConfig, where: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str, int | None, int]]:
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _depth_fields(value, (*where, name))
        elif name.startswith("_") or not _DEPTH_FIELD.search(name) or isinstance(value, bool):
            continue
        elif isinstance(value, int) and 1 <= value <= 64:
            yield where, name, None, value
        elif isinstance(value, list | tuple) and 1 < len(value) <= 6 and all(type(x) is int for x in value):
            for index, entry in enumerate(value):
                if 1 <= entry <= 64:
                    yield where, name, index, entry


def _fit_lists(config: PreTrainedConfig, depth: int, step: int) -> None:
    """Lists with an entry for each layer get one more, or one less."""
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == depth and not name.startswith("_"):
            setattr(config, name, [*value, value[-1]] if step > 0 else value[:-1])


# The run ---------------------------------------------------------------------------------------------------


@dataclass
class _Unit:
    """One layer: a child of a list of layers, and what was seen of its calls."""

    path: str
    stack: str
    index: int
    intervals: list[tuple[int, int]] = field(default_factory=list)
    entered: list[list[Node]] = field(default_factory=list)
    left: list[Node] = field(default_factory=list)


def observe(model: nn.Module, run: Callable[[], Any], lists: dict[str, set[str]]) -> Truth:
    """Runs a model once and reads off the depth of every parameter.

    Args:
        model: A model with real weights.
        run: Calls it, and returns its outputs.
        lists: The lists of modules that may be layers (`growing_lists`, or else `all_lists`).

    Returns:
        The truth.

    Raises:
        NothingSeen: No layer was called, or no output depends on a parameter.
    """
    units = [_Unit(f"{path}.{k}" if path else str(k), path, k) for path in lists for k in _keys(model, path)]
    with torch.enable_grad(), _watched(model, units):
        outputs = run()
    called = {unit.stack for unit in units if unit.intervals}
    units = [unit for unit in units if unit.stack in called]
    if not units:
        raise NothingSeen("no list that grows with the config's depth was called")
    roots = [t.grad_fn for t in _tensors(outputs) if t.grad_fn is not None]
    graph = _Graph(model, roots, units)
    if not any(graph.passed[root] for root in roots):
        raise NothingSeen("no output depends on a layer: the graph is cut")
    stacks, doubts = _order(graph, units, lists)
    return _place(model, graph, stacks, doubts)


class NothingSeen(Exception):
    """A run from which no depth can be read."""


def _keys(model: nn.Module, path: str) -> list[int]:
    module = model.get_submodule(path)
    return sorted(int(key) for key in (*module._modules, *module._parameters) if key.isdigit())


class _watched:
    """Hooks that note when each unit is called, on what, and what it returns."""

    def __init__(self, model: nn.Module, units: list[_Unit]) -> None:
        self.clock = nn.Parameter(torch.zeros(()))
        self.handles: list[Any] = []
        modules = dict(model.named_modules(remove_duplicate=False))
        for unit in units:
            module = modules.get(unit.path)
            if module is None:
                continue
            inner = _Unit(unit.path, unit.stack, unit.index)
            self._watch(module, unit)
            for child in module.modules():
                if child is not module:
                    self._watch(child, inner)
            self.handles.append((unit, inner))

    def _watch(self, module: nn.Module, unit: _Unit) -> None:
        started: list[int] = []

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            started.append(self._now())
            unit.entered.append([t.grad_fn for t in _tensors((args, kwargs)) if t.grad_fn is not None])

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            unit.intervals.append((started.pop(), self._now()))
            unit.left += [t.grad_fn for t in _tensors(output) if t.grad_fn is not None]

        self.handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        self.handles.append(module.register_forward_hook(leave))

    def _now(self) -> int:
        """Autograd numbers its nodes in the order of their creation, so a node of our own tells the time."""
        with torch.enable_grad():
            return (self.clock * 1).grad_fn._sequence_nr()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            if not isinstance(handle, tuple):
                handle.remove()
                continue
            unit, inner = handle
            if not unit.intervals:  # driven from outside, by its children
                unit.intervals, unit.entered, unit.left = inner.intervals, inner.entered, inner.left


def _tensors(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth > 6:
        return
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth + 1)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item, depth + 1)
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
        for item in vars(value).values():
            yield from _tensors(item, depth + 1)


# The graph -------------------------------------------------------------------------------------------------


class _Graph:
    """The recorded graph: for each node, the units and parameters upstream of it, as bits."""

    def __init__(self, model: nn.Module, roots: list[Node], units: list[_Unit]) -> None:
        self.units = units
        names = {id(p): name for name, p in model.named_parameters()}
        self.parameters = list(names.values())
        index = {name: k for k, name in enumerate(self.parameters)}

        left: dict[Node, int] = defaultdict(int)
        for k, unit in enumerate(units):
            for node in unit.left:
                left[node] |= 1 << k
        self.passed: dict[Node, int] = {}
        self.fed_by: dict[Node, int] = {}
        self.constant: dict[Node, bool] = {}  # nothing but parameters goes in
        self.consumers: dict[Node, list[Node]] = defaultdict(list)
        self.leaf: dict[int, Node] = {}
        self.outputs = roots
        self.attention: list[int] = []
        for node in _children_first([*roots, *(n for u in units for n in (*chain(*u.entered), *u.left))]):
            if _ATTENTION_NODE.search(node.name()):
                self.attention.append(node._sequence_nr())
            inputs = [child for child, _ in node.next_functions]
            passed, fed_by = left.get(node, 0), 0
            constant = (None not in inputs or _only_scaled(node)) and not _LOOKUP_NODE.search(node.name())
            variable = getattr(node, "variable", None)
            if variable is not None and not inputs:
                constant = id(variable) in names
                if constant:
                    k = index[names[id(variable)]]
                    self.leaf[k], fed_by = node, 1 << k
            for child in inputs:
                if child is None:
                    continue
                passed |= self.passed[child]
                fed_by |= self.fed_by[child]
                constant = constant and self.constant[child]
                self.consumers[child].append(node)
            self.passed[node], self.fed_by[node], self.constant[node] = passed, fed_by, constant and not passed

    def passed_on_entry(self, node: Node) -> int:
        """The units that the data passed before it came to this node."""
        return reduce(or_, (self.passed[child] for child, _ in node.next_functions if child is not None), 0)

    def met_outside(self, node: Node, layers: Collection[int]) -> set[int]:
        """The layers that other data has passed which this node's output meets before it enters a layer."""
        intervals = [interval for k in layers for interval in self.units[k].intervals]
        met, seen, queue = set(), set(), [node]
        while queue:
            here = queue.pop()
            if here in seen or any(start <= here._sequence_nr() < end for start, end in intervals):
                continue
            seen.add(here)
            passed = {k for k in _bits(self.passed[here]) if k in layers}
            met |= passed
            if not passed:
                queue += self.consumers[here]
        return met

    def is_bare(self, k: int, node: Node) -> bool:
        """Whether parameter k comes to this node as itself, not as the weight of an operation on data."""
        return any(c is not None and self.constant[c] and self.fed_by[c] >> k & 1 for c, _ in node.next_functions)

    def joins(self, k: int) -> list[Node]:
        """Where parameter k first meets data: past what is made of parameters alone (a transpose, 1 + w), by time."""
        found, seen, queue = [], set(), list(self.consumers[self.leaf[k]])
        while queue:
            node = queue.pop()
            if node in seen:
                continue
            seen.add(node)
            if self.constant[node] and self.consumers[node]:
                queue += self.consumers[node]
            else:
                found.append(node)
        return sorted(found, key=lambda node: node._sequence_nr())


def _only_scaled(node: Node) -> bool:
    """Whether an operation takes one tensor of the graph and keeps its shape: `1 + weight`, and no data beside it."""
    inputs = [(child, output) for child, output in node.next_functions if child is not None]
    return len(inputs) == 1 and inputs[0][0]._input_metadata[inputs[0][1]].shape == node._input_metadata[0].shape


def _children_first(roots: Iterable[Node]) -> Iterator[Node]:
    done: set[Node] = set()
    for root in roots:
        stack = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if node in done:
                continue
            if ready:
                done.add(node)
                yield node
            else:
                stack.append((node, True))
                stack += [(child, False) for child, _ in node.next_functions if child is not None and child not in done]


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


# Order and places ------------------------------------------------------------------------------------------

# The layers of one stack: for each, the units it is made of (several where lists alternate, as in XLM).
_Stack = list[list[int]]


def _order(graph: _Graph, units: list[_Unit], fields: dict[str, set[str]]) -> tuple[list[_Stack], list[str]]:
    """The stacks in the order in which data passes them, and what speaks against it."""
    upstream = [_upstream(graph, k) for k in range(len(units))]
    lists: dict[str, _Stack] = {}
    for k, unit in enumerate(units):
        lists.setdefault(unit.stack, []).append([k])
    chained = {path: stack for path, stack in lists.items() if _is_chain(stack, upstream)}
    stacks = _merge_alternating(_not_nested(graph, chained, fields), upstream)
    stacks = {path: stack for path, stack in stacks.items() if _attends(graph, stack)} or stacks

    doubts = []
    paths = list(stacks)
    for i, first in enumerate(paths):
        for second in paths[i + 1 :]:
            ahead, back = (
                _feeds(stacks[first], stacks[second], upstream),
                _feeds(stacks[second], stacks[first], upstream),
            )
            if ahead == back:
                doubts.append(f"`{first}` and `{second}` {'alternate' if ahead else 'are parallel'}")
    # In a chain, the number of stacks that feed one is its position.
    position = {p: sum(_feeds(stacks[q], stacks[p], upstream) for q in paths if q != p) for p in paths}
    return [stacks[path] for path in sorted(paths, key=lambda path: position[path])], doubts


def _not_nested(graph: _Graph, stacks: dict[str, _Stack], fields: dict[str, set[str]]) -> dict[str, _Stack]:
    """Of stacks inside each other: the outer one, unless it is a list of stages, each of several layers."""
    kept = dict(stacks)
    for path in sorted(stacks, key=len):
        inside = tuple(graph.units[k].path + "." for layer in stacks[path] for k in layer)
        inner = [other for other in kept if f"{other}.".startswith(inside)]
        if path not in kept or not inner:
            continue
        layers = [other for other in inner if _attends(graph, kept[other]) or not _attends(graph, kept[path])]
        if sum(len(kept[other]) for other in layers) > len(stacks[path]):
            # With the stages goes what else there is one of for each stage.
            kept = {p: stack for p, stack in kept.items() if p != path and not fields[p] & fields[path]}
        else:
            kept = {p: stack for p, stack in kept.items() if p not in inner}
    return kept


def _upstream(graph: _Graph, k: int) -> int:
    unit, mask = graph.units[k], 0
    for node in unit.entered[0] if unit.entered else ():
        mask |= graph.passed[node]
    return mask & ~(1 << k)


def _is_chain(stack: _Stack, upstream: list[int]) -> bool:
    return all(upstream[after[0]] >> before[0] & 1 for before, after in pairwise(stack))


def _feeds(first: _Stack, second: _Stack, upstream: list[int]) -> bool:
    return any(upstream[k] >> j & 1 for layer in second for k in layer for other in first for j in other)


def _merge_alternating(lists: dict[str, _Stack], upstream: list[int]) -> dict[str, _Stack]:
    """Lists that alternate, entry by entry, make one stack."""
    merged: dict[str, _Stack] = {}
    for path, stack in lists.items():
        for known in merged.values():
            if len(known) == len(stack) > 1 and all(
                upstream[stack[k + 1][0]] >> known[k][0] & 1 and upstream[known[k + 1][0]] >> stack[k][0] & 1
                for k in range(len(stack) - 1)
            ):
                for layer, units in zip(known, stack, strict=True):
                    layer += units
                break
        else:
            merged[path] = stack
    return merged


def _attends(graph: _Graph, stack: _Stack) -> bool:
    intervals = [interval for layer in stack for k in layer for interval in graph.units[k].intervals]
    return any(start <= time < end for time in graph.attention for start, end in intervals)


def _place(model: nn.Module, graph: _Graph, stacks: list[_Stack], doubts: list[str]) -> Truth:
    units = graph.units
    depth_of = {k: depth for depth, layer in enumerate((x for s in stacks for x in s), start=1) for k in layer}
    first_layers = {k for stack in stacks for k in stack[0]}
    num_layers = sum(len(stack) for stack in stacks)
    aliases: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases[id(parameter)].append(name)

    depths, unused, beside = {}, [], []
    for index, (name, parameter) in enumerate(model.named_parameters()):
        home = {k for k in depth_of for alias in aliases[id(parameter)] if f"{alias}.".startswith(units[k].path + ".")}
        joins = graph.joins(index) if index in graph.leaf else []
        if not joins:
            unused.append(name)
            if home:
                depths[name] = _one(min(depth_of[k] for k in home))
            continue
        time = joins[0]._sequence_nr()
        inside = {k for k in depth_of if any(start <= time < end for start, end in units[k].intervals)}
        fed = {k for k in depth_of if any(graph.fed_by[n] >> index & 1 for call in units[k].entered for n in call)}
        passed = {k for k in _bits(graph.passed_on_entry(joins[0])) if k in depth_of}
        if inside & fed:
            passed = set()  # made outside, and handed to the layer as an argument
        if home & inside:
            depths[name] = _one(min(depth_of[k] for k in home & inside))
        elif inside and not fed:
            depths[name] = _one(min(depth_of[k] for k in inside))
        elif not passed and not fed:
            beside.append(name)
        elif not fed:
            depths[name] = _one(num_layers + 1)
        elif not passed:
            # A looked-up table that meets, on its way to a later stack, what has passed an earlier one is between them.
            met = [depth_of[k] for k in graph.met_outside(joins[0], depth_of)]
            shallowest = min(depth_of[k] for k in fed)
            depths[name] = range(max(met, default=0) + 1) if fed & first_layers else range(shallowest)
        else:
            deepest = max(depth_of[k] for k in passed)
            later = [depth_of[k] for k in fed if depth_of[k] > deepest]
            # A table that is added between two layers takes nothing from those before: it may count as input, too.
            table = _TABLE_NODE.search(joins[0].name()) and graph.is_bare(index, joins[0])
            depths[name] = range(0 if table else deepest, max(deepest + 1, min(later, default=0)))
    paths = tuple(tuple(dict.fromkeys(units[k].stack for k in stack[0])) for stack in stacks)
    return Truth(num_layers, paths, depths, tuple(unused), tuple(beside), tuple(doubts))


def _one(depth: int) -> range:
    return range(depth, depth + 1)
