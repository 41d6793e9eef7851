"""Reads YAML from untrusted sources: no code runs, no duplicate keys, no aliases that expand without limit.

Stricter than `yaml.safe_load`: duplicate keys, tags, anchors and aliases are refused, and so are files above
1 MB or 50,000 nodes, nesting above 32 and texts that are not UTF-8. Scalars follow YAML 1.2's core schema, in
which `1e-5` is a number (PyYAML reads it as text by default) and `12:30` or `2024-04-01` are texts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from lr_dist.errors import InvalidYAMLError, shown
from lr_dist.reading import read_bytes

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 50_000


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader` would read as something else, such as `1e-5`."""


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Line breaks that PyYAML leaves unescaped outside of double quotes, such as U+0085, are read back as spaces.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {shown(key)} is not a text", key_node.start_mark
            )
        if key in result:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {shown(key)} occurs twice", key_node.start_mark
            )
        result[key] = loader.construct_object(value_node, deep=True)
    return result


# Decimal only: YAML 1.1 would read 010 as 8.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    number = loader.construct_yaml_float(node)
    # A rate that is rounded to 0 would freeze a layer by mistake.
    if number == 0 and re.match(r"[-+]?[.0]*[1-9]", node.value):
        raise yaml.constructor.ConstructorError(
            None, None, f"{shown(node.value)} is too small for a floating-point number", node.start_mark
        )
    return number


_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def load_yaml(path: str | Path) -> Any:
    """Read one YAML document from a file.

    Raises:
        FileNotFoundError: no such file.
        UnreadableFileError: a pipe without data.
        InvalidYAMLError: too large, not UTF-8, malformed, or with something that is not allowed.
    """
    return parse_yaml(read_bytes(Path(path), MAX_BYTES + 1), source=str(path))


def parse_yaml(text: str | bytes, *, source: str) -> Any:
    """Read one YAML document; `source` names it in errors."""
    if not isinstance(text, (str, bytes)):
        raise InvalidYAMLError(f"{source} must be YAML text, not {shown(text)}.")
    try:
        if isinstance(text, bytes):
            _check_size(len(text), source)
            text = text.decode("utf-8")
        _check_size(len(text.encode("utf-8")), source)
        _check_events(text, source)
        return yaml.load(text, Loader=_Loader)  # _Loader is a SafeLoader
    except yaml.YAMLError as error:
        message = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        # PyYAML quotes invalid text at any length.
        message = message if len(message) <= 600 else f"{message[:300]} ... {message[-300:]}"
        raise InvalidYAMLError(f"{source} is not valid YAML: {message}") from error
    except (ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, InvalidYAMLError):
            raise
        raise InvalidYAMLError(f"{source} cannot be read as YAML: {error}") from error


def dump_yaml(data: Any) -> str:
    """YAML text of plain data (dicts, lists, texts, numbers), keys in their given order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100)


def _check_size(size: int, source: str) -> None:
    if size > MAX_BYTES:
        raise InvalidYAMLError(f"{source} is larger than {MAX_BYTES:,} bytes, the limit for a distribution or preset.")


def _check_events(text: str, source: str) -> None:
    """Check the limits on the flat stream of events, before any object is built."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if number > MAX_NODES:
            raise InvalidYAMLError(f"{source}, line {line}: more than {MAX_NODES:,} nodes.")
        if isinstance(event, yaml.ScalarEvent):
            event.value.encode("utf-8")  # ValueError for a lone surrogate, as in "\ud800"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise InvalidYAMLError(f"{source}, line {line}: anchors and aliases are not allowed; write it out.")
        tag = getattr(event, "tag", None)
        if tag:
            raise InvalidYAMLError(f"{source}, line {line}: the tag {shown(tag)} is not allowed; remove it.")
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidYAMLError(f"{source}, line {line}: nested deeper than {MAX_DEPTH} levels.")
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
