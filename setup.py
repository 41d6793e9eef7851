"""What pyproject.toml cannot say: the README for a package index, where its relative links would lead nowhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
# [text](target) or ![text](target), the target neither absolute nor an anchor of the page itself.
RELATIVE = re.compile(r"(!?)\[([^\]\n]+)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def long_description() -> str:
    """The README; its relative links lead into the repository named in [project.urls], and without one become text."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = project.get("urls", {}).get("Source")

    def replaced(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        if source is not None:
            return f"{image}[{text}]({source}/{'raw' if image else 'blob'}/main/{target})"
        path = target.partition("#")[0]
        return text if text == path else f"{text} (`{path}`)"

    readme = RELATIVE.sub(replaced, (ROOT / "README.md").read_text(encoding="utf-8"))
    if source is None:
        readme += "\nPaths in parentheses are files of the source distribution.\n"
    return readme


setup(long_description=long_description(), long_description_content_type="text/markdown")
