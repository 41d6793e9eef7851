"""Command-line options from a frozen dataclass: each field is an option, and the docstring under it is its help.

jsonargparse can add a dataclass's options too, but only as `--settings.batch_size`, and a list only as one value in
brackets. Name, type, default and help of an option are written in the dataclass only:

    batch_size: int = 32
    '''Training examples per optimizer step.'''

becomes `--batch-size`. The fields of a dataclass in a field become options beside the others. Keys of a field's
`metadata` change its option: `option` is another name for it, `brackets` makes a list one value, `[1, 2]`, and `group`
is the heading under which it, or all options of a dataclass in it, stand in the help.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache, reduce
from itertools import pairwise
from operator import or_
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One option of a command."""

    name: str
    """Key in a YAML file, such as batch_size."""

    type: Any
    """Type of the value; of each value, if there are several."""

    default: Any
    """Plain data: lists, not tuples."""

    help: str
    """Docstring of the field, as plain text."""

    nargs: str | None = None
    """Number of values in argparse's notation; None for one."""

    group: str | None = None
    """Heading in the help; None for the first list."""

    @property
    def flag(self) -> str:
        """The option as it is typed: --batch-size."""
        return "--" + self.name.replace("_", "-")


def add_config(parser: ArgumentParser) -> None:
    """Add `--config`, in whose file all other options may stand."""
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="YAML file with any of these options. The command line takes precedence.",
    )


def add_options(parser: ArgumentParser, config: type, only: Collection[str] | None = None) -> None:
    """Add an option for each field.

    Args:
        parser: of the command.
        config: a dataclass.
        only: names of the options to add; by default all.
    """
    # What all commands have comes first: `fields` begins with those of the base class.
    titles = dict.fromkeys(each.metadata["group"] for each in fields(config) if "group" in each.metadata)
    groups: dict[str | None, Any] = {None: parser, **{title: parser.add_argument_group(title) for title in titles}}
    for option in options_of(config):
        if only is None or option.name in only:
            several: dict[str, Any] = {} if option.nargs is None else {"nargs": option.nargs}
            groups[option.group].add_argument(
                option.flag, type=option.type, default=option.default, help=option.help, **several
            )


def options_of(config: type, defaults: Any = None, group: str | None = None) -> Iterator[Option]:
    """The options of a dataclass, in the order of its constructor.

    Args:
        config: a dataclass, all of whose fields have a default and a docstring.
        defaults: an instance with other defaults, as a field that holds a dataclass may have.
        group: heading of those that name none.
    """
    hints, helps = get_type_hints(config), field_docstrings(config)
    for each in _in_order(config):
        hint, default = hints[each.name], _default(each) if defaults is None else getattr(defaults, each.name)
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from options_of(hint, default, each.metadata.get("group", group))
            continue
        several = get_origin(hint) is tuple and not each.metadata.get("brackets")
        several = several and get_origin(get_args(hint)[0]) is not tuple
        yield Option(
            name=_name(each),
            type=_plain_type(get_args(hint)[0] if several else hint),
            default=_plain(default),
            help=helps[each.name].replace("`", ""),
            nargs=None if not several else "+" if default else "*",
            group=each.metadata.get("group", group),
        )


def read_options(config: type[T], settings: Namespace) -> T:
    """The dataclass with the values that the parser has read.

    Raises:
        LRDistError: what the dataclass raises for invalid values.
    """
    hints = get_type_hints(config)
    return config(
        **{
            each.name: (
                read_options(hints[each.name], settings)
                if is_dataclass(hints[each.name])
                else _value(hints[each.name], settings[_name(each)])
            )
            for each in _in_order(config)
        }
    )


@cache
def field_docstrings(config: type) -> Mapping[str, str]:
    """Name of a field -> the docstring under it, in one line; those of base classes included.

    Python does not keep these docstrings, so they are read from the source. Without it (a frozen application), they
    are empty.
    """
    texts = {each.name: "" for each in fields(config)}  # type: ignore[arg-type]
    for cls in reversed(config.__mro__):
        try:
            tree = ast.parse(inspect.getsource(inspect.getmodule(cls) or cls))
        # TypeError: a builtin, such as object.
        except (OSError, TypeError):
            continue
        body = next(
            node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__
        )
        for node, after in pairwise(body):
            match node, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def _in_order(config: type) -> list[Field[Any]]:
    # As the constructor: fields that are named come last, those of the base class too.
    return sorted(fields(config), key=lambda each: bool(each.kw_only))


def _name(each: Field[Any]) -> str:
    return str(each.metadata.get("option", each.name))


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _plain_type(hint: Any) -> Any:
    """`hint` with the types that YAML has: lists for tuples, dicts for mappings."""
    origin, parts = get_origin(hint), [_plain_type(part) for part in get_args(hint) if part is not Ellipsis]
    if origin in (Union, UnionType):
        return reduce(or_, parts)
    if origin is tuple:
        return list[parts[0]]  # type: ignore[valid-type]
    if origin is Mapping:
        return dict[parts[0], parts[1]]  # type: ignore[valid-type]
    return hint


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return dict(value) if isinstance(value, Mapping) else value


def _value(hint: Any, value: Any) -> Any:
    """`value` as the field holds it; a list that is `null` in YAML is empty."""
    if get_origin(hint) is not tuple:
        return value
    return tuple(_value(get_args(hint)[0], each) for each in value or ())
