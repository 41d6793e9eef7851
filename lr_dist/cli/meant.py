"""What was probably meant, added to what the parser says of a typing error."""

from __future__ import annotations

import re
from argparse import SUPPRESS
from collections.abc import Iterable, Sequence
from typing import Any

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
    options = list(_options(parser, arguments))
    for argument in arguments:
        name = argument.partition("=")[0]
        # What follows an unknown option is taken for a command or a value, so this is looked at first.
        if name.startswith("--") and len(name) > 2 and name not in options:
            hint = did_you_mean(name[2:], [option[2:] for option in options]).replace("mean ", "mean --")
            return _line(f"There is no option {name} here; see --help.{hint}")
    if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", said):
        return _line(did_you_mean(found[1], re.findall(r"[\w.-]+", found[2])))
    if (literal := re.search(r"Expected a typing\.Literal\[(.*?)\]", said)) and (
        given := re.search(r"Given value: (\S+)", said)
    ):
        return _line(did_you_mean(given[1], re.findall(r"'([^']*)'", literal[1])))
    return ""


def _options(parser: ArgumentParser, arguments: Sequence[str]) -> Iterable[str]:
    """The options of the command that the arguments name, and of the command within it."""
    while True:
        inner: dict[str, ArgumentParser] = {}
        for action in parser._actions:
            yield from (name for name in action.option_strings if action.help != SUPPRESS or name == "--help")
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
