"""Which submodule of a module feeds which, read from the source of its `forward`.

The order in which a module registers its children says nothing about the order in which data passes through them,
and a name such as `layer_norm` is a final norm in one model and an embedding norm in the next (Wav2Vec2 has both).
The source of `forward` says it. This is an abstract interpretation of that source: every local variable carries the
set of children whose outputs flowed into it, and each call of a child on such a variable is a flow into that child.
Nothing is executed, so it needs no inputs and works on the meta device. What it cannot follow leaves no flow, never
an error: the caller then falls back on names, or refuses.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

# Reading these from a module is not using it.
_METADATA = {"shape", "ndim", "config", "training", "in_features", "out_features"}
_METADATA |= {"embedding_dim", "num_embeddings", "padding_idx", "normalized_shape", "is_cuda", "requires_grad"}
# `device`, `int8_original_dtype`, `get_cast_dtype()`: the kind of the numbers, not the numbers.
_METADATA_NAME = re.compile(r"(^|_)(dtype|device)s?$")
# Calls that hand on the modules they were given instead of applying them.
_TRANSPARENT = {"enumerate", "zip", "reversed", "list", "tuple", "iter", "next", "sorted", "islice", "chain", "partial"}
_TRANSPARENT_METHODS = {"values", "items", "children", "named_children", "get"}
# What can be called on a tensor, and on a parameter; a module may have children and methods of the same names.
_TENSOR_METHODS = {name for name in dir(torch.Tensor) if not name.startswith("_")} - set(dir(nn.Module))
# Whose arguments are a shape or a type: no data of theirs enters the tensor.
_SHAPING = {"view", "view_as", "reshape", "reshape_as", "expand", "expand_as", "repeat", "type_as", "new_zeros"}
_SHAPING |= {"new_ones", "new_full", "new_empty", "new_tensor", "unsqueeze", "squeeze", "permute", "transpose", "tile"}
_SHAPING |= {"flatten", "unflatten", "narrow", "contiguous", "clone", "detach", "split", "chunk", "repeat_interleave"}
# The same for modules and tensors: they hand on what they are called on.
_CASTS = {"to", "type", "float", "half", "double", "bfloat16", "cpu", "cuda", "requires_grad_", "train", "eval"}
_ABOUT_SHAPE = {"size", "dim", "numel", "ndimension", "get_device", "element_size", "is_floating_point"}
_OF_TENSORS = _TENSOR_METHODS | _CASTS | _ABOUT_SHAPE
# Marks of paths in flows, which only the model can resolve (`resolved` in stacks.py): a value computed from this
# path if it is a parameter; this method or child if it is a module's.
PARAMETER_MARK, MODULE_MARK = "()", "!"
# Each child in turn, by a loop over the module itself.
IN_TURN = "*in_turn"
_MUTATORS = {"append", "extend", "insert", "add", "update", "setdefault"}
_MAX_INLINE_DEPTH = 6
_MAX_STEPS = 200_000


class Flows(NamedTuple):
    """What the source of one class says about its children, as dotted paths relative to an instance.

    Attributes:
        edges: (source, target) -> rank; data from `source` entered `target`, first at that point in time.
        used: every child path that the source reads. `*` stands for a child chosen at run time.
        inside: (source, loop) -> where a child is called inside a loop over the children of `loop`, beside these: the
            number of the iteration (`if i == 0`), `each` of them, or `some`.
        entries: (source, target) -> the arguments of `target` by which it entered: a position, a keyword, or `*` for
            what is spread over several. Here a source can also be an argument of `forward` itself, as `@input_ids`.
    """

    edges: dict[tuple[str, str], int]
    used: frozenset[str]
    entries: dict[tuple[str, str], set[int | str]]
    inside: dict[tuple[str, str], int | str]


class _Value(NamedTuple):
    """An expression: children whose output is in it, children that it *is* (not yet applied), a tuple's elements."""

    taint: frozenset[str] = frozenset()
    direct: frozenset[str] = frozenset()
    parts: tuple[_Value, ...] = ()

    def whole(self) -> _Value:
        return _Value(self.taint, self.direct)

    def is_computed(self) -> bool:
        """Whether it was computed from children, rather than being children."""
        return bool(self.direct) and all(path.endswith(PARAMETER_MARK) for path in self.direct)

    def is_pure(self) -> bool:
        """Whether no data but the children's own is in it."""
        return self.taint <= {path.removesuffix(PARAMETER_MARK) for path in self.direct}


class _Loop(NamedTuple):
    """A loop that is being read: the children it goes through, its counter, and in which iterations we are."""

    over: frozenset[str]
    counter: str | None
    where: int | str = "each"


def _computed(direct: frozenset[str]) -> frozenset[str]:
    return frozenset(path.removesuffix(PARAMETER_MARK) + PARAMETER_MARK for path in direct if path)


_NOTHING = _Value()
_Env = dict[str, _Value]


_CACHE: WeakKeyDictionary[type[nn.Module], Flows] = WeakKeyDictionary()
_RETURNS: WeakKeyDictionary[type[nn.Module], dict[str, bool]] = WeakKeyDictionary()


def flows_of(cls: type[nn.Module]) -> Flows:
    """Flows between the children of `cls`, from `forward` and any `*_step` (LightningModule).

    Args:
        cls: A module class.

    Returns:
        The flows; empty where the source cannot be read (built at run time, TorchScript).
    """
    if cls not in _CACHE:
        _CACHE[cls] = _read_flows(cls)
    return _CACHE[cls]


def _read_flows(cls: type[nn.Module]) -> Flows:
    names = [name for name in dir(cls) if name == "forward" or name.endswith("_step")]
    entries = [name for name in sorted(names, key=lambda n: n != "forward") if _method(cls, name) is not None]
    flows = _Interpreter(cls).run(entries)
    if flows.edges:
        return flows
    # A module driven from outside, through methods of its own (`encode`, `features`).
    own = [name for name, value in vars(cls).items() if isinstance(value, types.FunctionType)]
    return _Interpreter(cls).run([name for name in own if not name.startswith("__")])


def returns_data(cls: type[nn.Module], name: str) -> bool:
    """Whether what a method or property returns can hold data of the module or of its arguments.

    `return self.blocks[0].weight.dtype` does not. True where the source does not say.
    """
    if _METADATA_NAME.search(name):
        return False
    known = _RETURNS.setdefault(cls, {})
    if name not in known:
        try:
            value = _Interpreter(cls).returned_by(name)
        except (_OutOfSteps, RecursionError):
            value = None
        known[name] = value is None or bool(value.taint | value.direct)
    return known[name]


class _OutOfSteps(Exception):
    """The source is too large to follow to its end."""


class _Interpreter:
    def __init__(self, cls: type[nn.Module]) -> None:
        self.cls = cls
        self.edges: dict[tuple[str, str], int] = {}
        self.entries: dict[tuple[str, str], set[int | str]] = {}
        self.used: set[str] = set()
        self.active: list[Callable[..., object]] = []
        self.owner: list[type] = []
        self.returned: list[_Value] = []
        self.local: dict[str, ast.FunctionDef | ast.Lambda] = {}
        self.calls: list[ast.AST] = []
        self.loops: list[_Loop] = []
        self.inside: dict[tuple[str, str], int | str] = {}
        self.steps = 0

    def run(self, entries: Iterable[str]) -> Flows:
        try:
            for name in entries:
                self._inline(name, [], self._own_arguments(name), _NOTHING)
        except (_OutOfSteps, RecursionError):
            return Flows({}, frozenset(), {}, {})
        return Flows(self.edges, frozenset(self.used), self.entries, self.inside)

    def returned_by(self, name: str) -> _Value | None:
        """What a method returns, called with arguments that are not known; None if that is not known either."""
        found = _method(self.cls, name)
        tree = _parse(found[1]) if found else None
        if tree is None or not any(isinstance(node, ast.Return) and node.value for node in ast.walk(tree)):
            return None
        return self._inline(name, [], self._own_arguments(name), _Value(frozenset({"@*"})))

    def _own_arguments(self, name: str) -> dict[str, _Value]:
        found = _method(self.cls, name)
        tree = _parse(found[1]) if found else None
        spec = tree.args if tree else None
        names = [arg.arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)][1:] if spec else []
        return {argument: _Value(frozenset({f"@{argument}"})) for argument in names}

    # Functions ---------------------------------------------------------------------------------------------

    def _inline(
        self, name: str, args: list[_Value], keywords: dict[str, _Value], rest: _Value, after: type | None = None
    ) -> _Value | None:
        """Interprets the method `name` on these arguments; None if there is no source to follow."""
        found = _method(self.cls, name, after)
        if found is None:
            return None
        owner, function = found
        tree = _parse(function)
        if tree is None or function in self.active or len(self.active) >= _MAX_INLINE_DEPTH:
            return None
        env = _bind(tree.args, args, keywords, rest, static=isinstance(owner.__dict__.get(name), staticmethod))
        self.active.append(function)
        self.owner.append(owner)
        outer, self.returned = self.returned, []
        local, self.local = self.local, {}
        try:
            self._body(tree.body, env)
            return _union(self.returned, keep_direct=True)
        finally:
            self.returned = outer
            self.local = local
            self.active.pop()
            self.owner.pop()

    # Statements --------------------------------------------------------------------------------------------

    def _body(self, statements: Iterable[ast.stmt], env: _Env) -> None:
        for statement in statements:
            self._statement(statement, env)

    def _statement(self, node: ast.stmt, env: _Env) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                result = self._eval(value, env)
                for target in targets:
                    _assign(target, result, env)
                    if isinstance(target, ast.Name) and isinstance(value, ast.Lambda):
                        self.local[target.id] = value
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                _assign(target, self._eval(value, env), env)
            case ast.AugAssign(target=target, value=value):
                _assign(target, self._combine([self._eval(target, env), self._eval(value, env)]), env)
            case ast.Expr(value=value):
                self._eval(value, env)
            case ast.Return(value=ast.expr() as value):
                self.returned.append(self._eval(value, env))
            case ast.If(test=test, body=body, orelse=orelse):
                self._eval(test, env)
                self._branches([body, orelse], env, test)
            case ast.For() | ast.AsyncFor() | ast.While():
                # Twice, so that what the body leaves behind enters it again.
                over = frozenset[str]()
                for _ in range(2):
                    before = dict(env)
                    if isinstance(node, ast.While):
                        self._eval(node.test, env)
                        self._body(node.body, env)
                    else:
                        element = self._element(node.iter, env)
                        _assign(node.target, element, env)
                        self.loops.append(_Loop(element.direct | over, _counter(node)))
                        self._body(node.body, env)
                        over = self.loops.pop().over
                    _merge(env, [before])
                self._body(node.orelse, env)
            case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
                for context in items:
                    opened = self._eval(context.context_expr, env)
                    if context.optional_vars is not None:
                        _assign(context.optional_vars, opened, env)
                self._body(body, env)
            case ast.Try():
                self._body(node.body, env)
                self._branches([handler.body for handler in node.handlers] + [[]], env)
                self._body([*node.orelse, *node.finalbody], env)
            case ast.Match(subject=subject, cases=cases):
                self._eval(subject, env)
                self._branches([case.body for case in cases] + [[]], env)
            case ast.FunctionDef(name=name, body=body):
                self.local[name] = node
                outer, self.returned = self.returned, []
                self._body(body, dict(env))
                env[name] = _Value(_union(self.returned).taint)
                self.returned = outer

    def _branches(self, bodies: list[list[ast.stmt]], env: _Env, test: ast.expr | None = None) -> None:
        """Reads each body on its own; the first is run where `test` holds, the others where it does not."""
        results = []
        loop = self.loops[-1] if self.loops else None
        for number, body in enumerate(bodies):
            branch = dict(env)
            if loop is not None and test is not None and loop.where == "each":
                self.loops[-1] = loop._replace(where=_iteration(test, loop.counter, holds=number == 0))
            self._body(body, branch)
            results.append(branch)
        if loop is not None and test is not None:
            self.loops[-1] = loop._replace(over=self.loops[-1].over)
        env.clear()
        _merge(env, results)

    def _element(self, iterated: ast.expr, env: _Env) -> _Value:
        """What a loop over this binds: of `enumerate` and `zip` a tuple, so that an index stays clean."""
        match iterated:
            case ast.Call(func=ast.Name(id="enumerate"), args=[inner, *_]):
                return _tuple([_NOTHING, self._element(inner, env)])
            case ast.Call(func=ast.Name(id="zip"), args=sources) if sources:
                match sources:
                    case [ast.Starred(value=several)] if parts := self._eval(several, env).parts:
                        return _tuple([part.whole() for part in parts])
                return _tuple([self._element(source, env) for source in sources])
            case ast.Call(func=ast.Attribute(value=inner, attr="named_children" | "items")):
                return _tuple([_NOTHING, self._children(self._eval(inner, env).whole())])
            case ast.Call(func=ast.Name(id="reversed")):
                return self._eval(iterated, env).whole()
        return self._children(self._eval(iterated, env).whole())

    def _children(self, value: _Value) -> _Value:
        """What a loop over this value meets: of the module itself, its children in turn."""
        if "" not in value.direct:
            return value
        self.used.add(IN_TURN)
        return _Value(value.taint | {IN_TURN}, (value.direct - {""}) | {IN_TURN})

    # Expressions -------------------------------------------------------------------------------------------

    def _eval(self, node: ast.expr | None, env: _Env) -> _Value:
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise _OutOfSteps
        match node:
            case None | ast.Constant() | ast.JoinedStr():
                return _NOTHING
            case ast.Name(id=name):
                return env.get(name, _NOTHING)
            case ast.Attribute(value=value, attr=attr):
                return self._attribute(self._eval(value, env), attr)
            case ast.Subscript(value=value, slice=index):
                return self._subscript(self._eval(value, env), index, env)
            case ast.Call():
                return self._call(node, env)
            case ast.Tuple(elts=elements) if not any(isinstance(element, ast.Starred) for element in elements):
                return _tuple([self._eval(element, env) for element in elements])
            case ast.BinOp(left=left, right=right):
                return self._combine([self._eval(left, env), self._eval(right, env)])
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                values = [self._eval(item, env) for item in (left, *comparators)]
                if all(isinstance(op, ast.Is | ast.IsNot) for op in ops):
                    return _NOTHING
                return _union(values)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self._eval(test, env)
                return _union([self._eval(body, env), self._eval(orelse, env)], keep_direct=True)
            case ast.NamedExpr(target=target, value=value):
                result = self._eval(value, env)
                _assign(target, result, env)
                return result
            case ast.Lambda(body=body):
                return _Value(self._eval(body, dict(env)).taint)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                inner = dict(env)
                match node:
                    case ast.ListComp(elt=elt, generators=[only]) | ast.GeneratorExp(elt=elt, generators=[only]):
                        parts = self._eval(only.iter, inner).parts
                        if parts and not only.ifs:  # over a tuple: entry by entry
                            return _tuple([self._eval_with(only.target, part, elt, env) for part in parts])
                for generator in node.generators:
                    _assign(generator.target, self._element(generator.iter, inner), inner)
                    for test in generator.ifs:
                        self._eval(test, inner)
                element = node.value if isinstance(node, ast.DictComp) else node.elt
                return self._eval(element, inner)
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        return _union([self._eval(child, env) for child in children], keep_direct=True)

    def _eval_with(self, target: ast.expr, value: _Value, node: ast.expr, env: _Env) -> _Value:
        inner = dict(env)
        _assign(target, value, inner)
        return self._eval(node, inner)

    def _attribute(self, base: _Value, attr: str) -> _Value:
        base = base.whole()
        if attr in _METADATA or _METADATA_NAME.search(attr):
            return _NOTHING
        if not base.direct or base.is_computed():
            return base
        if "" in base.direct and attr == "_modules":
            return base
        if "" in base.direct:
            member = inspect.getattr_static(self.cls, attr, None)
            if isinstance(member, property) and member.fget is not None:
                return self._inline(attr, [], {}, _NOTHING) or _NOTHING
            if callable(member) or isinstance(member, staticmethod | classmethod):
                return _NOTHING
        return self._extend(base, attr)

    def _subscript(self, base: _Value, index: ast.expr, env: _Env) -> _Value:
        taint = self._eval(index, env).taint
        if (
            isinstance(index, ast.Constant)
            and isinstance(index.value, int)
            and -len(base.parts) <= index.value < len(base.parts)
        ):
            return base.parts[index.value]
        if "" in base.direct and not isinstance(index, ast.Constant):
            base = self._children(base)
        if self.loops and isinstance(index, ast.Name) and index.id == self.loops[-1].counter:
            self.loops[-1] = self.loops[-1]._replace(over=self.loops[-1].over | base.direct)
        if base.direct and isinstance(index, ast.Constant) and isinstance(index.value, str | int):
            base = self._extend(base, str(index.value))
        return _Value(base.taint | taint, base.direct)

    def _extend(self, base: _Value, part: str) -> _Value:
        direct = frozenset(f"{path}.{part}" if path else part for path in base.direct)
        self.used |= direct
        return _Value((base.taint - base.direct) | direct, direct)

    def _call(self, node: ast.Call, env: _Env) -> _Value:
        args = [self._eval(arg, env) for arg in node.args if not isinstance(arg, ast.Starred)]
        keywords = {word.arg: self._eval(word.value, env) for word in node.keywords if word.arg is not None}
        starred = [arg.value for arg in node.args if isinstance(arg, ast.Starred)]
        starred += [word.value for word in node.keywords if word.arg is None]
        rest = _union([self._eval(item, env) for item in starred])
        given = [*args, *keywords.values(), rest]

        inlined = self._inlined_call(node.func, args, keywords, rest, env)
        if inlined is not None:
            return inlined
        match node.func:
            case ast.Name(id="getattr") if len(args) >= 2:
                key = node.args[1]
                constant = isinstance(key, ast.Constant) and isinstance(key.value, str)
                return self._extend(args[0], key.value if constant else "*") if args[0].direct else args[0]  # type: ignore[attr-defined]
            case ast.Name(id="len" | "isinstance" | "hasattr" | "type" | "id"):
                return _NOTHING
            case ast.Attribute(value=receiver, attr=method) if method in _OF_TENSORS:
                base = self._eval(receiver, env).whole()
                # Not `self.norm(x)`, a child of that name, nor `torch.split(x, 2)`.
                if base.taint or (base.direct and "" not in base.direct):
                    return self._tensor_method(base, method, given)
            case ast.Name(id="list" | "tuple") if len(given) == 2 and len(args) == 1:
                return args[0]
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in _TRANSPARENT and name not in env:
                return _union(given, keep_direct=True).whole()
            case ast.Attribute(value=receiver, attr=method) if method in _TRANSPARENT_METHODS:
                return _union([self._eval(receiver, env), *given], keep_direct=True).whole()
            case ast.Attribute(value=ast.Name(id=name), attr=method) if method in _MUTATORS and name in env:
                env[name] = _union([env[name], *given], keep_direct=True).whole()
                return _NOTHING
        function = self._eval(node.func, env)
        if not function.direct:
            # `F.layer_norm(x, shape, self.weight)`, `checkpoint(layer, x)`: what is handed over is applied.
            combined = self._combine(given)
            return _Value(function.taint | combined.taint, combined.direct if not function.taint else frozenset())
        self._note_loops(function)
        labelled: list[tuple[int | str, _Value]] = [*enumerate(args), *keywords.items(), ("*", rest)]
        for label, value in labelled:
            for source in value.taint:
                for target in function.direct:
                    self._flow(source, target, "*" if starred and isinstance(label, int) else label)
        return _union([function, *given]).whole()

    def _tensor_method(self, receiver: _Value, method: str, given: list[_Value]) -> _Value:
        """`self.position.view(1, -1)`: still the parameter; or, of a module, a child or method of that name."""
        if method in _ABOUT_SHAPE:
            return _NOTHING
        if method in _CASTS:
            return receiver
        data = _NOTHING if method in _SHAPING else self._combine(given)
        if not receiver.direct or receiver.is_computed():
            met = self._combine([receiver, data])
            return met if data.taint else _Value(met.taint, receiver.direct)
        function = self._extend(receiver, method)
        self._note_loops(function)
        mark = MODULE_MARK if method in _SHAPING else ""
        for source in _union(given).taint:
            for target in function.direct:
                self._flow(source, target + mark)
        taint = function.taint | (_union(given).taint if method in _SHAPING else data.taint)
        pure = method in _SHAPING or all(value.is_pure() for value in given)
        return _Value(taint, _computed(function.direct) if pure else frozenset())

    def _note_loops(self, function: _Value) -> None:
        """Notes what is called inside a loop over the children of something else."""
        if not self.loops:
            return
        loop = self.loops[-1]
        for source in function.direct - loop.over:
            for over in loop.over:
                known = self.inside.setdefault((source, over), loop.where)
                if known != loop.where:
                    self.inside[source, over] = "each" if "each" in (known, loop.where) else "some"

    def _inlined_call(
        self, func: ast.expr, args: list[_Value], keywords: dict[str, _Value], rest: _Value, env: _Env
    ) -> _Value | None:
        """A call of one of the module's own methods, of itself, or of its parent class's method."""
        match func:
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                return self._inline(name, args, keywords, rest, after=self.owner[-1] if self.owner else None)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if "" in env.get(owner, _NOTHING).direct:
                return self._inline(name, args, keywords, rest)
            case ast.Name(id=name) if "" in env.get(name, _NOTHING).direct:
                return self._inline("forward", args, keywords, rest)
            case ast.Name(id=name) if name in self.local and name in env:
                return self._local_call(self.local[name], args, keywords, rest, env)
        return None

    def _local_call(
        self,
        function: ast.FunctionDef | ast.Lambda,
        args: list[_Value],
        keywords: dict[str, _Value],
        rest: _Value,
        env: _Env,
    ) -> _Value | None:
        """A call of a function that the method itself defines."""
        if function in self.calls or len(self.calls) >= _MAX_INLINE_DEPTH:
            return None
        inner = env | _bind(function.args, args, keywords, rest, static=True)
        self.calls.append(function)
        outer, self.returned = self.returned, []
        try:
            if isinstance(function, ast.Lambda):
                return self._eval(function.body, inner)
            self._body(function.body, inner)
            return _union(self.returned, keep_direct=True)
        finally:
            self.returned = outer
            self.calls.pop()

    def _combine(self, values: list[_Value]) -> _Value:
        """Values that meet in one operation: a parameter among them receives the data of the others."""
        for position, value in enumerate(values):
            others = _union([other for k, other in enumerate(values) if k != position]).taint
            for target in value.direct:
                for source in others:
                    self._flow(source, target)
        # Of parameters alone, without data: still theirs.
        pure = all(value.is_pure() for value in values)
        taint = _union(values).taint
        return _Value(taint, _computed(_union(values, keep_direct=True).direct) if pure else frozenset())

    def _flow(self, source: str, target: str, label: int | str = "*") -> None:
        if not source or not target:
            return
        self.entries.setdefault((source, target), set()).add(label)
        if not source.startswith("@"):
            self.edges.setdefault((source, target), len(self.edges))


def _union(values: Iterable[_Value], keep_direct: bool = False) -> _Value:
    values = list(values)
    taint = frozenset[str]().union(*(value.taint for value in values))
    direct = frozenset[str]().union(*(value.direct for value in values)) if keep_direct else frozenset[str]()
    parts: tuple[_Value, ...] = ()
    if values and len({len(value.parts) for value in values}) == 1:
        columns = zip(*(value.parts for value in values), strict=True)
        parts = tuple(_union(column, keep_direct) for column in columns)
    return _Value(taint, direct, parts)


def _tuple(values: list[_Value]) -> _Value:
    return _union(values, keep_direct=True)._replace(parts=tuple(values))


def _merge(env: _Env, others: Iterable[_Env]) -> None:
    for other in others:
        for name, value in other.items():
            env[name] = _union([env[name], value], keep_direct=True) if name in env else value


def _assign(target: ast.expr, value: _Value, env: _Env) -> None:
    match target:
        case ast.Name(id=name):
            env[name] = value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            fits = len(value.parts) == len(elements) and not any(isinstance(e, ast.Starred) for e in elements)
            for element, part in zip(elements, value.parts if fits else [value.whole()] * len(elements), strict=True):
                _assign(element, part, env)
        case ast.Starred(value=inner):
            _assign(inner, value, env)
        case ast.Subscript(value=ast.Name(id=name)) | ast.Attribute(value=ast.Name(id=name)) if name != "self":
            env[name] = _union([env.get(name, _NOTHING), value], keep_direct=True).whole()


def _counter(loop: ast.For | ast.AsyncFor) -> str | None:
    """The variable that counts a loop's iterations from 0."""
    match loop:
        case ast.For(
            iter=ast.Call(func=ast.Name(id="enumerate"), args=[_], keywords=[]),
            target=ast.Tuple(elts=[ast.Name(id=name), *_]),
        ):
            return name
        case ast.For(iter=ast.Call(func=ast.Name(id="range")), target=ast.Name(id=name)):
            return name
    return None


def _iteration(test: ast.expr, counter: str | None, holds: bool) -> int | str:
    """In which iterations of a loop a test of its counter holds, or does not."""
    if not any(isinstance(node, ast.Name) and node.id == counter for node in ast.walk(test)):
        return "each"
    match test:
        case ast.Compare(left=ast.Name(), ops=[ast.Eq()], comparators=[ast.Constant(value=int() as number)]) if holds:
            return number
        case ast.BoolOp(op=ast.And(), values=values) if holds:
            chosen = [_iteration(value, counter, holds) for value in values]
            return next((number for number in chosen if isinstance(number, int)), "some")
    return "some"


def _bind(spec: ast.arguments, args: list[_Value], keywords: dict[str, _Value], rest: _Value, static: bool) -> _Env:
    names = [arg.arg for arg in (*spec.posonlyargs, *spec.args)]
    env: _Env = {}
    if names and not static:
        env[names.pop(0)] = _Value(frozenset(), frozenset({""}))
    env |= dict(zip(names, args, strict=False))
    allowed = {*names, *(arg.arg for arg in spec.kwonlyargs)}
    env |= {name: value for name, value in keywords.items() if name in allowed}
    for name in allowed - env.keys():
        env[name] = rest
    if spec.vararg is not None:
        env[spec.vararg.arg] = _union([*args[len(names) :], rest], keep_direct=True)
    if spec.kwarg is not None:
        extra = [value for name, value in keywords.items() if name not in allowed]
        env[spec.kwarg.arg] = _union([*extra, rest], keep_direct=True)
    return env


def _method(cls: type, name: str, after: type | None = None) -> tuple[type, Callable[..., object]] | None:
    """The class that defines `name` and the function, along the MRO (behind `after`, for `super()`)."""
    mro = list(cls.__mro__)
    for owner in mro[mro.index(after) + 1 if after in mro else 0 :]:
        if name in owner.__dict__:
            member = owner.__dict__[name]
            if isinstance(member, property):
                member = member.fget
            elif isinstance(member, staticmethod | classmethod):
                member = member.__func__
            # nn.Module's own methods (register_buffer, apply, ...) move no data.
            if owner in (nn.Module, object) or not isinstance(member, types.FunctionType):
                return None
            return owner, inspect.unwrap(member)
    return None


@lru_cache(maxsize=8192)
def _parse(function: Callable[..., object]) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    first = tree.body[0] if tree.body else None
    return first if isinstance(first, ast.FunctionDef) else None
