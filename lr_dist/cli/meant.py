"""What was probably meant, added to what the parser says of a typing error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser

from lr_dist.names import did_you_mean


def meant(said: str, arguments: Sequence[str], parser: ArgumentParser) -> str:
    """A line with the option, command or value that was probably meant; empty if there is none.

    Args:
        said: what the parser has printed.
        arguments: of the command line.
        parser: of `lr-dist`, with all its commands.
    """
    if not said:
        return ""
    actions = list(_actions(parser, arguments))
    options = [name for action in actions for name in action.option_strings]
    for argument in arguments:
        name = argument.partition("=")[0]
        # What follows an unknown option is taken for a command or a value, so this is looked at first.
        if name.startswith("--") and len(name) > 2 and name not in options:
            hint = did_you_mean(name[2:], [option[2:] for option in options]).replace("mean ", "mean --")
            return _line(f"There is no option {name} here; see --help.{hint}")
    if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", said):
        return _line(did_you_mean(found[1], re.findall(r"[\w.-]+", found[2])))
    return next((_line(hint) for hint in _values_meant(actions, arguments) if hint), "")


def _values_meant(actions: Sequence[Any], arguments: Sequence[str]) -> Iterable[str]:
    """For each option with a choice of words, the word that was probably meant if another one was given."""
    for action in actions:
        words = _words(getattr(action, "_typehint", None))
        for option in action.option_strings if words else ():
            given = [after for each, after in pairwise(arguments) if each == option]
            given += [each.partition("=")[2] for each in arguments if each.startswith(f"{option}=")]
            yield from (did_you_mean(word, words) for word in given if word not in words)


def _words(hint: Any) -> list[str]:
    """The words of a `Literal`, alone or in a union."""
    if get_origin(hint) is Literal:
        return [word for word in get_args(hint) if isinstance(word, str)]
    return [word for part in get_args(hint) for word in _words(part)]


def _actions(parser: ArgumentParser, arguments: Sequence[str]) -> Iterable[Any]:
    """What the command that the arguments name takes, and the command within it."""
    while True:
        inner: dict[str, ArgumentParser] = {}
        for action in parser._actions:
            yield action
            inner.update(_commands(action))
        name = next((argument for argument in arguments if argument in inner), None)
        if name is None:
            return
        parser, arguments = inner[name], arguments[list(arguments).index(name) + 1 :]


def _commands(action: Any) -> dict[str, ArgumentParser]:
    return dict(getattr(action, "_name_parser_map", None) or {})


def forbid_abbreviations(parser: ArgumentParser) -> None:
    """Let no option be cut short: `--mode relative` was read as `--model relative`."""
    parser.allow_abbrev = False
    for action in parser._actions:
        for inner in _commands(action).values():
            forbid_abbreviations(inner)


def _line(hint: str) -> str:
    return f"{hint.strip()}\n" if hint else ""
