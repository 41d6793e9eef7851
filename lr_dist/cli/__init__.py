"""The command `lr-dist`: one file a subcommand.

The subcommands' modules import nothing heavy at the top, so that `lr-dist --help` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lr_dist import __version__
from lr_dist.cli.arguments import prepared
from lr_dist.cli.boundary import OPTION, guarded
from lr_dist.cli.terminal import accept_any_text, clean, ignore_impossible_sizes
from lr_dist.errors import ConfigurationError, LRDistError, shown
from lr_dist.runs.redact import redact_usage

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

# More options than this have a usage of a screen.
_MANY_OPTIONS = 12
# In the order of use; each module has `parser()` and `run(settings)`, and `nest` for further levels.
COMMANDS = {
    "compare": "lr_dist.cli.compare",
    "evidence": "lr_dist.cli.evidence",
    "influence": "lr_dist.cli.influence",
    "informed": "lr_dist.cli.informed",
    "interpolate": "lr_dist.cli.interpolate",
    "amalgamate": "lr_dist.cli.amalgamate",
    "layers": "lr_dist.cli.layers",
    "methods": "lr_dist.cli.methods",
    "plan": "lr_dist.cli.plan",
    "presets": "lr_dist.cli.presets",
    "prototypes": "lr_dist.cli.prototypes",
    "recommend": "lr_dist.cli.recommend",
    "report": "lr_dist.cli.report",
    "retention": "lr_dist.cli.retention",
    "search": "lr_dist.cli.search",
    "combine": "lr_dist.cli.combine",
    "dashboard": "lr_dist.cli.dashboard",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: see `lr_dist.cli.boundary`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Tokenizers fork badly and warn about it; every loader here is single-process.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    accept_any_text()
    ignore_impossible_sizes()
    whole = OPTION in arguments
    arguments = prepared([argument for argument in arguments if argument != OPTION])
    command = " ".join(["lr-dist", *[argument for argument in arguments if argument in COMMANDS][:1]])
    return guarded(command, lambda: _run(arguments), arguments=arguments, whole=whole)


def _run(arguments: list[str]) -> int:
    from jsonargparse import ArgumentParser

    from lr_dist.cli.config_file import use_strict_loader
    from lr_dist.cli.meant import forbid_abbreviations

    parser = ArgumentParser(
        prog="lr-dist",
        description="Fine-tune transformers with a learning rate for each layer; measure and reduce what they forget.",
        version=__version__,
    )
    parser.add_argument(OPTION, action="store_true", help="If a command fails, show the whole traceback.")
    modules = {name: import_module(path) for name, path in COMMANDS.items()}
    subcommands = parser.add_subcommands(title="commands", metavar="COMMAND")
    for name, module in modules.items():
        subparser = module.parser()
        subparser.usage = _short_usage(name, subparser)
        subcommands.add_subcommand(name, subparser, help=subparser.description)
        if hasattr(module, "nest"):
            module.nest(subparser)
    forbid_abbreviations(parser)
    parser.parser_mode = use_strict_loader()
    ordered = _config_first(arguments)
    with _usage_errors_redacted(arguments, parser):
        try:
            settings = parser.parse_args(ordered)
        except LRDistError:
            raise
        # jsonargparse raises other exceptions for values of another shape, such as a mapping instead of a list.
        except Exception as error:
            raise ConfigurationError(
                f"The options cannot be read ({type(error).__name__}: {shown(str(error), 300)}). Check the shape of "
                "the values in --config: lists are written [a, b], mappings {a: b}."
            ) from error
    command = settings.subcommand
    with warnings.catch_warnings():
        warnings.showwarning = functools.partial(_show_warning, warnings.showwarning, command)
        return modules[command].run(settings[command])


def _short_usage(name: str, parser: ArgumentParser) -> str | None:
    """One line where the whole usage would fill the screen above the help; otherwise argparse's own."""
    if len(parser._actions) <= _MANY_OPTIONS or not all(action.option_strings for action in parser._actions):
        return None
    return f"lr-dist {name} [--config FILE] [options]"


def _show_warning(other: Callable[..., None], command: str, message: Any, category: type[Warning], *where: Any) -> None:
    """Print a warning of lr-dist in one line, as its errors; the place in the code does not help a command's user."""
    if category.__module__ == "lr_dist.errors":
        print(clean(f"lr-dist {command}: {category.__name__}: {message}"), file=sys.stderr)
    else:
        other(message, category, *where)


@contextlib.contextmanager
def _usage_errors_redacted(arguments: Sequence[str], parser: ArgumentParser) -> Iterator[None]:
    """Hide passwords in what the parser prints: it quotes invalid values, and a storage URL may hold a password.

    Adds the option, command or value that was probably meant.
    """
    from lr_dist.cli.meant import meant

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    finally:
        text = said.getvalue()
        sys.stderr.write(clean(redact_usage(text, arguments)) + clean(meant(text, arguments, parser)))


def _config_first(arguments: list[str]) -> list[str]:
    """Move `--config FILE` before the other options, so that the command line takes precedence, and read it.

    Raises:
        UnreadableFileError, InvalidYAMLError, ConfigurationError: see `config_text`.
    """
    from lr_dist.cli.config_file import config_text

    configs: list[str] = []
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        if item == "--config":
            configs += [item, *([config_text(value)] if (value := next(items, None)) is not None else [])]
        elif item.startswith("--config="):
            configs += ["--config", config_text(item.removeprefix("--config="))]
        else:
            rest.append(item)
    command = next((i + 1 for i, item in enumerate(rest) if item in COMMANDS), 0)
    return rest[:command] + configs + rest[command:]
