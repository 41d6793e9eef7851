"""The abstract values of the interpreter of `forward`: how they are merged, and assigned to names."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import NamedTuple

# Suffixes of paths in flows whose meaning depends on the model (`resolved` in paths.py): a value computed from the
# path, if that is a parameter; a method or child, if the path belongs to a module.
PARAMETER_MARK, MODULE_MARK = "()", "!"
# Each child in turn, by a loop over the module itself.
IN_TURN = "*in_turn"


class Flows(NamedTuple):
    """The data flow between the children of one class, as dotted paths relative to an instance.

    Attributes:
        edges: (source, target) -> rank; data from `source` entered `target`, first at that point in time.
        used: every child path that the source reads. `*` stands for a child chosen at run time.
        inside: (source, loop) -> in which iteration of a loop over the children of `loop` a child outside of `loop` is
            called: its number (`if i == 0`), `each`, or `some`.
        entries: (source, target) -> the arguments of `target` through which it entered: a position, a keyword, or `*`
            for a starred argument. Here a source can also be an argument of `forward` itself, as `@input_ids`.
    """

    edges: dict[tuple[str, str], int]
    used: frozenset[str]
    entries: dict[tuple[str, str], set[int | str]]
    inside: dict[tuple[str, str], int | str]


class Value(NamedTuple):
    """The value of an expression.

    Attributes:
        taint: the children whose outputs flowed into it.
        direct: the children that it is, not yet applied.
        parts: the elements, if it is a tuple.
    """

    taint: frozenset[str] = frozenset()
    direct: frozenset[str] = frozenset()
    parts: tuple[Value, ...] = ()

    def whole(self) -> Value:
        return Value(self.taint, self.direct)

    def is_computed(self) -> bool:
        """Whether it was computed from children, rather than being children."""
        return bool(self.direct) and all(path.endswith(PARAMETER_MARK) for path in self.direct)

    def is_pure(self) -> bool:
        """Whether it contains only the children's own data."""
        return self.taint <= {path.removesuffix(PARAMETER_MARK) for path in self.direct}


def computed(direct: frozenset[str]) -> frozenset[str]:
    return frozenset(path.removesuffix(PARAMETER_MARK) + PARAMETER_MARK for path in direct if path)


def union(values: Iterable[Value], keep_direct: bool = False) -> Value:
    values = list(values)
    taint = frozenset[str]().union(*(value.taint for value in values))
    direct = frozenset[str]().union(*(value.direct for value in values)) if keep_direct else frozenset[str]()
    parts: tuple[Value, ...] = ()
    if values and len({len(value.parts) for value in values}) == 1:
        columns = zip(*(value.parts for value in values), strict=True)
        parts = tuple(union(column, keep_direct) for column in columns)
    return Value(taint, direct, parts)


def tuple_of(values: list[Value]) -> Value:
    return union(values, keep_direct=True)._replace(parts=tuple(values))


NOTHING = Value()
Env = dict[str, Value]


def merge(env: Env, others: Iterable[Env]) -> None:
    for other in others:
        for name, value in other.items():
            env[name] = union([env[name], value], keep_direct=True) if name in env else value


def assign(target: ast.expr, value: Value, env: Env) -> None:
    match target:
        case ast.Name(id=name):
            env[name] = value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            fits = len(value.parts) == len(elements) and not any(isinstance(e, ast.Starred) for e in elements)
            for element, part in zip(elements, value.parts if fits else [value.whole()] * len(elements), strict=True):
                assign(element, part, env)
        case ast.Starred(value=inner):
            assign(inner, value, env)
        case ast.Subscript(value=ast.Name(id=name)) | ast.Attribute(value=ast.Name(id=name)) if name != "self":
            env[name] = union([env.get(name, NOTHING), value], keep_direct=True).whole()


def bind(spec: ast.arguments, args: list[Value], keywords: dict[str, Value], rest: Value, static: bool) -> Env:
    names = [arg.arg for arg in (*spec.posonlyargs, *spec.args)]
    env: Env = {}
    if names and not static:
        env[names.pop(0)] = Value(frozenset(), frozenset({""}))
    env |= dict(zip(names, args, strict=False))
    allowed = {*names, *(arg.arg for arg in spec.kwonlyargs)}
    env |= {name: value for name, value in keywords.items() if name in allowed}
    for name in allowed - env.keys():
        env[name] = rest
    if spec.vararg is not None:
        env[spec.vararg.arg] = union([*args[len(names) :], rest], keep_direct=True)
    if spec.kwarg is not None:
        extra = [value for name, value in keywords.items() if name not in allowed]
        env[spec.kwarg.arg] = union([*extra, rest], keep_direct=True)
    return env
