"""Pages from templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lr_dist.extras import require_libraries

# Where the text of an arm or a distribution may break: behind these characters, and at spaces.
_BREAK = re.compile(r"(?<=[,/:])|(?<=\.\.)|(?<=\s)(?=\S)")


def render(package: str, template: str, **values: Any) -> str:
    """A page's HTML; it loads nothing from the network, and all texts in `values` are escaped.

    Args:
        package: that holds the template, such as `lr_dist.report`.
        template: name of its file; it extends `base.html` of this package.
        values: its variables.

    Raises:
        MissingExtraError: jinja2 is not installed (extra `report`).
    """
    require_libraries("report", "jinja2")
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("lr_dist.runs.pages", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(pieces=pieces, plain=plain)
    return environment.get_template(template).render(**values)


def pieces(label: str) -> list[str]:
    """The parts of a name between which a line may end: `decay:lr=4e-4,factor=0.7` has three."""
    return [piece for piece in _BREAK.split(str(label)) if piece]


def plain(value: Any) -> str:
    """A setting as people write it: no quotes, `none` for None, `a, b` for lists, `key: value; ...` for mappings."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_inner(each)}" for key, each in value.items()) or "none"
    if isinstance(value, Sequence):
        return ", ".join(map(_inner, value)) or "none"
    return json.dumps(value, default=str)


def _inner(value: Any) -> str:
    """A value in another one, with brackets where its commas could be taken for those around it."""
    if isinstance(value, Mapping):
        return f"{{{plain(value)}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{plain(value)}]"
    return plain(value)
