"""Interprets the statements and expressions of `forward` without running them: which data enters which child."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable

import torch
from torch import nn

from lr_dist._layers.flow_source import Loop, counter_of, iteration, method_of, parsed
from lr_dist._layers.flow_values import (
    IN_TURN,
    MODULE_MARK,
    NOTHING,
    Env,
    Flows,
    Value,
    assign,
    bind,
    computed,
    merge,
    tuple_of,
    union,
)

# Attributes that hold no data of a module: reading them is not using it.
_METADATA = {"shape", "ndim", "config", "training", "in_features", "out_features"}
_METADATA |= {"embedding_dim", "num_embeddings", "padding_idx", "normalized_shape", "is_cuda", "requires_grad"}
# `device`, `int8_original_dtype`, `get_cast_dtype()`: properties of the numbers, not the numbers.
METADATA_NAME = re.compile(r"(^|_)(dtype|device)s?$")
# Calls that pass modules on instead of applying them.
_TRANSPARENT = {"enumerate", "zip", "reversed", "list", "tuple", "iter", "next", "sorted", "islice", "chain", "partial"}
_TRANSPARENT_METHODS = {"values", "items", "children", "named_children", "get"}
# Methods of tensors and parameters; a module may have children and methods with the same names.
_TENSOR_METHODS = {name for name in dir(torch.Tensor) if not name.startswith("_")} - set(dir(nn.Module))
# Methods whose arguments are a shape or a type, so that no data enters the tensor.
_SHAPING = {"view", "view_as", "reshape", "reshape_as", "expand", "expand_as", "repeat", "type_as", "new_zeros"}
_SHAPING |= {"new_ones", "new_full", "new_empty", "new_tensor", "unsqueeze", "squeeze", "permute", "transpose", "tile"}
_SHAPING |= {"flatten", "unflatten", "narrow", "contiguous", "clone", "detach", "split", "chunk", "repeat_interleave"}
# Methods of both modules and tensors that return what they are called on.
_CASTS = {"to", "type", "float", "half", "double", "bfloat16", "cpu", "cuda", "requires_grad_", "train", "eval"}
_ABOUT_SHAPE = {"size", "dim", "numel", "ndimension", "get_device", "element_size", "is_floating_point"}
_OF_TENSORS = _TENSOR_METHODS | _CASTS | _ABOUT_SHAPE
_MUTATORS = {"append", "extend", "insert", "add", "update", "setdefault"}
_MAX_INLINE_DEPTH = 6
_MAX_STEPS = 200_000


class OutOfStepsError(Exception):
    """The source is too large to follow to its end."""


class Interpreter:
    def __init__(self, cls: type[nn.Module]) -> None:
        self.cls = cls
        self.edges: dict[tuple[str, str], int] = {}
        self.entries: dict[tuple[str, str], set[int | str]] = {}
        self.used: set[str] = set()
        self.active: list[Callable[..., object]] = []
        self.owner: list[type] = []
        self.returned: list[Value] = []
        self.local: dict[str, ast.FunctionDef | ast.Lambda] = {}
        self.calls: list[ast.AST] = []
        self.loops: list[Loop] = []
        self.inside: dict[tuple[str, str], int | str] = {}
        self.steps = 0

    def run(self, entries: Iterable[str]) -> Flows:
        try:
            for name in entries:
                self._inline(name, [], self._own_arguments(name), NOTHING)
        except (OutOfStepsError, RecursionError):
            return Flows({}, frozenset(), {}, {})
        return Flows(self.edges, frozenset(self.used), self.entries, self.inside)

    def returned_by(self, name: str) -> Value | None:
        """The value that a method returns for unknown arguments; None if it cannot be determined."""
        method = method_of(self.cls, name)
        tree = parsed(method[1]) if method else None
        if tree is None or not any(isinstance(node, ast.Return) and node.value for node in ast.walk(tree)):
            return None
        return self._inline(name, [], self._own_arguments(name), Value(frozenset({"@*"})))

    def _own_arguments(self, name: str) -> dict[str, Value]:
        method = method_of(self.cls, name)
        tree = parsed(method[1]) if method else None
        spec = tree.args if tree else None
        names = [arg.arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)][1:] if spec else []
        return {argument: Value(frozenset({f"@{argument}"})) for argument in names}

    # Functions ---------------------------------------------------------------------------------------------

    def _inline(
        self, name: str, args: list[Value], keywords: dict[str, Value], rest: Value, after: type | None = None
    ) -> Value | None:
        """Interprets the method `name` with these arguments; None if it has no source that can be followed."""
        method = method_of(self.cls, name, after)
        if method is None:
            return None
        owner, function = method
        tree = parsed(function)
        if tree is None or function in self.active or len(self.active) >= _MAX_INLINE_DEPTH:
            return None
        env = bind(tree.args, args, keywords, rest, static=isinstance(owner.__dict__.get(name), staticmethod))
        self.active.append(function)
        self.owner.append(owner)
        outer, self.returned = self.returned, []
        local, self.local = self.local, {}
        try:
            self._body(tree.body, env)
            return union(self.returned, keep_direct=True)
        finally:
            self.returned = outer
            self.local = local
            self.active.pop()
            self.owner.pop()

    # Statements --------------------------------------------------------------------------------------------

    def _body(self, statements: Iterable[ast.stmt], env: Env) -> None:
        for statement in statements:
            self._statement(statement, env)

    def _statement(self, node: ast.stmt, env: Env) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                result = self._eval(value, env)
                for target in targets:
                    assign(target, result, env)
                    if isinstance(target, ast.Name) and isinstance(value, ast.Lambda):
                        self.local[target.id] = value
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                assign(target, self._eval(value, env), env)
            case ast.AugAssign(target=target, value=value):
                assign(target, self._combine([self._eval(target, env), self._eval(value, env)]), env)
            case ast.Expr(value=value):
                self._eval(value, env)
            case ast.Return(value=ast.expr() as value):
                self.returned.append(self._eval(value, env))
            case ast.If(test=test, body=body, orelse=orelse):
                self._eval(test, env)
                self._branches([body, orelse], env, test)
            case ast.For() | ast.AsyncFor() | ast.While():
                # Twice, because the values at the end of the body enter the next iteration.
                over = frozenset[str]()
                for _ in range(2):
                    before = dict(env)
                    if isinstance(node, ast.While):
                        self._eval(node.test, env)
                        self._body(node.body, env)
                    else:
                        element = self._element(node.iter, env)
                        assign(node.target, element, env)
                        self.loops.append(Loop(element.direct | over, counter_of(node)))
                        self._body(node.body, env)
                        over = self.loops.pop().over
                    merge(env, [before])
                self._body(node.orelse, env)
            case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
                for context in items:
                    opened = self._eval(context.context_expr, env)
                    if context.optional_vars is not None:
                        assign(context.optional_vars, opened, env)
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
                env[name] = Value(union(self.returned).taint)
                self.returned = outer

    def _branches(self, bodies: list[list[ast.stmt]], env: Env, test: ast.expr | None = None) -> None:
        """Interprets each body separately; the first is run if `test` holds, the others if it does not."""
        results = []
        loop = self.loops[-1] if self.loops else None
        for number, body in enumerate(bodies):
            branch = dict(env)
            if loop is not None and test is not None and loop.where == "each":
                self.loops[-1] = loop._replace(where=iteration(test, loop.counter, holds=number == 0))
            self._body(body, branch)
            results.append(branch)
        if loop is not None and test is not None:
            self.loops[-1] = loop._replace(over=self.loops[-1].over)
        env.clear()
        merge(env, results)

    def _element(self, iterated: ast.expr, env: Env) -> Value:
        """The value of the loop variable; for `enumerate` and `zip` a tuple, so that an index carries no data."""
        match iterated:
            case ast.Call(func=ast.Name(id="enumerate"), args=[inner, *_]):
                return tuple_of([NOTHING, self._element(inner, env)])
            case ast.Call(func=ast.Name(id="zip"), args=sources) if sources:
                match sources:
                    case [ast.Starred(value=several)] if parts := self._eval(several, env).parts:
                        return tuple_of([part.whole() for part in parts])
                return tuple_of([self._element(source, env) for source in sources])
            case ast.Call(func=ast.Attribute(value=inner, attr="named_children" | "items")):
                return tuple_of([NOTHING, self._children(self._eval(inner, env).whole())])
            case ast.Call(func=ast.Name(id="reversed")):
                return self._eval(iterated, env).whole()
        return self._children(self._eval(iterated, env).whole())

    def _children(self, value: Value) -> Value:
        """The elements of this value in a loop; those of the module itself are its children in turn."""
        if "" not in value.direct:
            return value
        self.used.add(IN_TURN)
        return Value(value.taint | {IN_TURN}, (value.direct - {""}) | {IN_TURN})

    # Expressions -------------------------------------------------------------------------------------------

    def _eval(self, node: ast.expr | None, env: Env) -> Value:
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise OutOfStepsError
        match node:
            case None | ast.Constant() | ast.JoinedStr():
                return NOTHING
            case ast.Name(id=name):
                return env.get(name, NOTHING)
            case ast.Attribute(value=value, attr=attr):
                return self._attribute(self._eval(value, env), attr)
            case ast.Subscript(value=value, slice=index):
                return self._subscript(self._eval(value, env), index, env)
            case ast.Call():
                return self._call(node, env)
            case ast.Tuple(elts=elements) if not any(isinstance(element, ast.Starred) for element in elements):
                return tuple_of([self._eval(element, env) for element in elements])
            case ast.BinOp(left=left, right=right):
                return self._combine([self._eval(left, env), self._eval(right, env)])
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                values = [self._eval(item, env) for item in (left, *comparators)]
                if all(isinstance(op, ast.Is | ast.IsNot) for op in ops):
                    return NOTHING
                return union(values)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self._eval(test, env)
                return union([self._eval(body, env), self._eval(orelse, env)], keep_direct=True)
            case ast.NamedExpr(target=target, value=value):
                result = self._eval(value, env)
                assign(target, result, env)
                return result
            case ast.Lambda(body=body):
                return Value(self._eval(body, dict(env)).taint)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                inner = dict(env)
                match node:
                    case ast.ListComp(elt=elt, generators=[only]) | ast.GeneratorExp(elt=elt, generators=[only]):
                        parts = self._eval(only.iter, inner).parts
                        if parts and not only.ifs:  # over a tuple: entry by entry
                            return tuple_of([self._eval_with(only.target, part, elt, env) for part in parts])
                for generator in node.generators:
                    assign(generator.target, self._element(generator.iter, inner), inner)
                    for test in generator.ifs:
                        self._eval(test, inner)
                element = node.value if isinstance(node, ast.DictComp) else node.elt
                return self._eval(element, inner)
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        return union([self._eval(child, env) for child in children], keep_direct=True)

    def _eval_with(self, target: ast.expr, value: Value, node: ast.expr, env: Env) -> Value:
        inner = dict(env)
        assign(target, value, inner)
        return self._eval(node, inner)

    def _attribute(self, base: Value, attr: str) -> Value:
        base = base.whole()
        if attr in _METADATA or METADATA_NAME.search(attr):
            return NOTHING
        if not base.direct or base.is_computed():
            return base
        if "" in base.direct and attr == "_modules":
            return base
        if "" in base.direct:
            member = inspect.getattr_static(self.cls, attr, None)
            if isinstance(member, property) and member.fget is not None:
                return self._inline(attr, [], {}, NOTHING) or NOTHING
            if callable(member) or isinstance(member, staticmethod | classmethod):
                return NOTHING
        return self._extend(base, attr)

    def _subscript(self, base: Value, index: ast.expr, env: Env) -> Value:
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
        return Value(base.taint | taint, base.direct)

    def _extend(self, base: Value, part: str) -> Value:
        direct = frozenset(f"{path}.{part}" if path else part for path in base.direct)
        self.used |= direct
        return Value((base.taint - base.direct) | direct, direct)

    def _call(self, node: ast.Call, env: Env) -> Value:
        args = [self._eval(arg, env) for arg in node.args if not isinstance(arg, ast.Starred)]
        keywords = {word.arg: self._eval(word.value, env) for word in node.keywords if word.arg is not None}
        starred = [arg.value for arg in node.args if isinstance(arg, ast.Starred)]
        starred += [word.value for word in node.keywords if word.arg is None]
        rest = union([self._eval(item, env) for item in starred])
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
                return NOTHING
            case ast.Attribute(value=receiver, attr=method) if method in _OF_TENSORS:
                base = self._eval(receiver, env).whole()
                # Not `self.norm(x)`, a child of that name, nor `torch.split(x, 2)`.
                if base.taint or (base.direct and "" not in base.direct):
                    return self._tensor_method(base, method, given)
            case ast.Name(id="list" | "tuple") if len(given) == 2 and len(args) == 1:
                return args[0]
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in _TRANSPARENT and name not in env:
                return union(given, keep_direct=True).whole()
            case ast.Attribute(value=receiver, attr=method) if method in _TRANSPARENT_METHODS:
                return union([self._eval(receiver, env), *given], keep_direct=True).whole()
            case ast.Attribute(value=ast.Name(id=name), attr=method) if method in _MUTATORS and name in env:
                env[name] = union([env[name], *given], keep_direct=True).whole()
                return NOTHING
        function = self._eval(node.func, env)
        if not function.direct:
            # `F.layer_norm(x, shape, self.weight)`, `checkpoint(layer, x)`: the function applies its arguments.
            combined = self._combine(given)
            return Value(function.taint | combined.taint, combined.direct if not function.taint else frozenset())
        self._note_loops(function)
        labelled: list[tuple[int | str, Value]] = [*enumerate(args), *keywords.items(), ("*", rest)]
        for label, value in labelled:
            for source in value.taint:
                for target in function.direct:
                    self._flow(source, target, "*" if starred and isinstance(label, int) else label)
        return union([function, *given]).whole()

    def _tensor_method(self, receiver: Value, method: str, given: list[Value]) -> Value:
        """`self.position.view(1, -1)` is still the parameter; on a module it is a child or method of that name."""
        if method in _ABOUT_SHAPE:
            return NOTHING
        if method in _CASTS:
            return receiver
        data = NOTHING if method in _SHAPING else self._combine(given)
        if not receiver.direct or receiver.is_computed():
            met = self._combine([receiver, data])
            return met if data.taint else Value(met.taint, receiver.direct)
        function = self._extend(receiver, method)
        self._note_loops(function)
        mark = MODULE_MARK if method in _SHAPING else ""
        for source in union(given).taint:
            for target in function.direct:
                self._flow(source, target + mark)
        taint = function.taint | (union(given).taint if method in _SHAPING else data.taint)
        pure = method in _SHAPING or all(value.is_pure() for value in given)
        return Value(taint, computed(function.direct) if pure else frozenset())

    def _note_loops(self, function: Value) -> None:
        """Records a call inside a loop over the children of another module."""
        if not self.loops:
            return
        loop = self.loops[-1]
        for source in function.direct - loop.over:
            for over in loop.over:
                known = self.inside.setdefault((source, over), loop.where)
                if known != loop.where:
                    self.inside[source, over] = "each" if "each" in (known, loop.where) else "some"

    def _inlined_call(
        self, func: ast.expr, args: list[Value], keywords: dict[str, Value], rest: Value, env: Env
    ) -> Value | None:
        """A call of a method of the module, of the module itself, or of its parent class's method."""
        match func:
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                return self._inline(name, args, keywords, rest, after=self.owner[-1] if self.owner else None)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if "" in env.get(owner, NOTHING).direct:
                return self._inline(name, args, keywords, rest)
            case ast.Name(id=name) if "" in env.get(name, NOTHING).direct:
                return self._inline("forward", args, keywords, rest)
            case ast.Name(id=name) if name in self.local and name in env:
                return self._local_call(self.local[name], args, keywords, rest, env)
        return None

    def _local_call(
        self,
        function: ast.FunctionDef | ast.Lambda,
        args: list[Value],
        keywords: dict[str, Value],
        rest: Value,
        env: Env,
    ) -> Value | None:
        """A call of a function that is defined inside the method."""
        if function in self.calls or len(self.calls) >= _MAX_INLINE_DEPTH:
            return None
        inner = env | bind(function.args, args, keywords, rest, static=True)
        self.calls.append(function)
        outer, self.returned = self.returned, []
        try:
            if isinstance(function, ast.Lambda):
                return self._eval(function.body, inner)
            self._body(function.body, inner)
            return union(self.returned, keep_direct=True)
        finally:
            self.returned = outer
            self.calls.pop()

    def _combine(self, values: list[Value]) -> Value:
        """The result of an operation on several values: a parameter among them receives the data of the others."""
        for position, value in enumerate(values):
            others = union([other for k, other in enumerate(values) if k != position]).taint
            for target in value.direct:
                for source in others:
                    self._flow(source, target)
        # An operation on parameters alone still yields parameters.
        pure = all(value.is_pure() for value in values)
        taint = union(values).taint
        return Value(taint, computed(union(values, keep_direct=True).direct) if pure else frozenset())

    def _flow(self, source: str, target: str, label: int | str = "*") -> None:
        if not source or not target:
            return
        self.entries.setdefault((source, target), set()).add(label)
        if not source.startswith("@"):
            self.edges.setdefault((source, target), len(self.edges))
