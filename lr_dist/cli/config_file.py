"""Read the file of `--config` with our strict loader, because jsonargparse's expands aliases without a limit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jsonargparse import set_loader

from lr_dist.errors import PATH, ConfigurationError, InvalidYAMLError, UnreadableFileError, shown
from lr_dist.presets.schema import read_data
from lr_dist.yaml_io import parse_yaml

# jsonargparse's name for the way in which values on the command line are read.
MODE = "lr-dist"


def use_strict_loader() -> str:
    """Register the loader for values such as `--fixed '{embeddings: 0}'`; returns the parser's mode."""
    set_loader(MODE, _value, exceptions=(InvalidYAMLError,))
    return MODE


def config_text(path: str) -> str:
    """The content of a configuration file as JSON, which jsonargparse accepts instead of the file.

    Raises:
        UnreadableFileError: no such file, a folder, or a pipe without data.
        InvalidYAMLError: not YAML, or YAML that is not allowed (aliases, tags, more than 50,000 nodes).
        ConfigurationError: not a mapping, or a storage that is not a text.
    """
    try:
        data = read_data(path)
    except UnreadableFileError as error:
        raise UnreadableFileError(f"--config: {error}") from error
    if not isinstance(data, Mapping):
        raise ConfigurationError(
            f"--config {shown(path, PATH)} must hold options, one a line, such as `epochs: 3`; it holds "
            f"{'nothing' if data is None else f'a {type(data).__name__}'}."
        )
    # Reported here, without the value: the usage error would quote it, with the password.
    if not isinstance(data.get("storage"), str | None):
        raise ConfigurationError(
            f"--config {shown(path, PATH)}: storage must be one text, such as postgresql://USER:PASSWORD@HOST/DB, "
            f"not a {type(data['storage']).__name__}."
        )
    return json.dumps(data)


def _value(text: str) -> Any:
    # As jsonargparse's own loader does: `name:` and `{a, b}` on a command line are texts.
    value = parse_yaml(text, source="the value")
    if isinstance(value, dict) and value and all(item is None for item in value.values()):
        return text
    return value
