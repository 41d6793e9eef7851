"""The source of a method as a syntax tree, and the counters of its loops."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from torch import nn


def method_of(cls: type, name: str, after: type | None = None) -> tuple[type, Callable[..., object]] | None:
    """The class that defines `name` and the function, along the MRO (after the class `after`, for `super()`)."""
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
def parsed(function: Callable[..., object]) -> ast.FunctionDef | None:
    """A function's source as a syntax tree; None if it cannot be read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    first = tree.body[0] if tree.body else None
    return first if isinstance(first, ast.FunctionDef) else None


class Loop(NamedTuple):
    """A loop that is being interpreted: the children it iterates over, its counter, and the current iterations."""

    over: frozenset[str]
    counter: str | None
    where: int | str = "each"


def counter_of(loop: ast.For | ast.AsyncFor) -> str | None:
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


def iteration(test: ast.expr, counter: str | None, holds: bool) -> int | str:
    """The iterations of a loop in which a test of its counter holds, or (`holds` False) does not."""
    if not any(isinstance(node, ast.Name) and node.id == counter for node in ast.walk(test)):
        return "each"
    match test:
        case ast.Compare(left=ast.Name(), ops=[ast.Eq()], comparators=[ast.Constant(value=int() as number)]) if holds:
            return number
        case ast.BoolOp(op=ast.And(), values=values) if holds:
            chosen = [iteration(value, counter, holds) for value in values]
            return next((number for number in chosen if isinstance(number, int)), "some")
    return "some"
