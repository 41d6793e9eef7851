"""What is done to the words of a command line before they are parsed."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import pairwise

_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
# A range of more seeds than this is a typing error.
_MOST = 10_000
# Commands whose --output was a file before it was a folder in all commands.
_FILES = ("combine", "plan", "plot", "report")


def prepared(arguments: Sequence[str]) -> list[str]:
    """The arguments with ranges of seeds written out, and with the present names of options.

    Args:
        arguments: of `lr-dist`, the command included.
    """
    return _renamed(_seeds_written_out(arguments))


def _seeds_written_out(arguments: Sequence[str]) -> list[str]:
    """`--seeds 0..4` as `--seeds 0 1 2 3 4`, and the same for every option whose name ends with seeds."""
    written: list[str] = []
    of_seeds = False
    for argument in arguments:
        if argument.startswith("--"):
            of_seeds = argument.endswith("seeds")
        found = _RANGE.fullmatch(argument) if of_seeds else None
        if found and 0 <= int(found[2]) - int(found[1]) < _MOST:
            written += map(str, range(int(found[1]), int(found[2]) + 1))
        else:
            written.append(argument)
    return written


def _renamed(arguments: list[str]) -> list[str]:
    """`combine ... --output FILE` as `--output-file FILE`, and `--search-output` as `--output`, with a word on it."""
    command, nested, *_ = [*(each for each in arguments if not each.startswith("-")), "", ""]
    if command not in _FILES and (command, nested) != ("presets", "plot"):
        return arguments
    names = {"--search-output": "--output"}
    # combine has a folder, too.
    if command != "combine" or "--search-output" in arguments or _is_preset(arguments):
        names["--output"] = "--output-file"
    said = [old for old in names if any(each.partition("=")[0] == old for each in arguments)]
    for old in said:
        print(f"lr-dist {command}: {old} is now {names[old]}: --output is a folder in all commands.", file=sys.stderr)
    return [_with_name(each, names) for each in arguments]


def _is_preset(arguments: list[str]) -> bool:
    """Whether the value of `--output` is a YAML file."""
    values = [after for each, after in pairwise(arguments) if each == "--output"]
    values += [each.partition("=")[2] for each in arguments if each.startswith("--output=")]
    return any(value.endswith((".yaml", ".yml")) for value in values)


def _with_name(argument: str, names: dict[str, str]) -> str:
    name, equals, value = argument.partition("=")
    return f"{names[name]}{equals}{value}" if name in names else argument
