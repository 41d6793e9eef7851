"""The site's navigation and reference name what there is; `make docs` (in CI) builds it and checks the rest."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import lr_dist
import lr_dist.methods

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags name functions of Python, without calling them."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
NAMES = [name for page in REFERENCE for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)]


def pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in pages(entry)]


def test_every_page_is_in_the_navigation_once() -> None:
    found = pages(SITE["nav"])
    assert len(found) == len(set(found))
    assert {"index.md", "changelog.md", "contributing.md", "examples.md"} <= set(found)
    missing = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - set(found)
    assert missing == set(), "add the page to `nav` in mkdocs.yml"


def test_the_reference_has_every_public_name_once() -> None:
    assert len(NAMES) == len(set(NAMES))
    public = {name for name in lr_dist.__all__ if not name.startswith("__")}
    assert {f"lr_dist.{name}" for name in public} - set(NAMES) == set(), "add the name to a page of docs/reference"
    methods = {f"lr_dist.methods.{method.__name__}" for method in lr_dist.methods.METHODS.values()}
    assert methods - set(NAMES) == set(), "add the method to docs/reference/methods.md"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_reference_names_exists_and_has_a_docstring(name: str) -> None:
    if name == "lr_dist.errors":
        assert import_module(name).__doc__
        return
    module, _, attribute = name.rpartition(".")
    assert len((getattr(import_module(module), attribute).__doc__ or "").strip()) > 20


def test_nothing_is_loaded_from_another_host() -> None:
    """Fonts would come from Google; what else a theme loads from elsewhere, somebody would have to name here."""
    assert SITE["theme"]["font"] is False
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.findall(r"^(?!\s*#).*https?://.*$", text, re.MULTILINE) == []
    assert {"extra_javascript", "extra_css", "repo_url"} & set(SITE) == set()
