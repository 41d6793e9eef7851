"""What docs/site_hooks.py does to pages on their way into the site; `make docs` runs it in mkdocs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
assert spec is not None
assert spec.loader is not None
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)


def page(markdown: str, source: str) -> str:
    return hooks.on_page_markdown(markdown, page=SimpleNamespace(file=SimpleNamespace(src_uri=source)))


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("callback.md", "tasks.md#x", "tasks.md#x"),
        ("callback.md", "../configs/callback.yaml", "files/configs/callback.yaml"),
        ("callback.md", "../README.md#install", "index.md#install"),
        ("callback.md", "../CHANGELOG.md", "changelog.md"),
        ("reference/index.md", "../callback.md", "../callback.md"),
        ("reference/index.md", "../../configs/callback.yaml", "../files/configs/callback.yaml"),
        ("index.md", "docs/callback.md#x", "callback.md#x"),
        ("index.md", "docs/images/plan.svg", "images/plan.svg"),
        ("index.md", "examples/second_task.py", "files/examples/second_task.py"),
        ("index.md", "examples", "examples.md"),
        ("start.md", "../examples/README.md", "examples.md"),
        ("examples.md", "second_task.py", "files/examples/second_task.py"),
        ("examples.md", "../docs/methods.md", "methods.md"),
        ("changelog.md", "docs/versions.md", "versions.md"),
        ("index.md", "https://example.org/docs/a.md", "https://example.org/docs/a.md"),
        ("index.md", "#install", "#install"),
    ],
)
def test_a_link_leads_to_the_same_thing_in_the_site(source: str, link: str, expected: str) -> None:
    assert page(f"see [a `b`]({link}) and ![c]({link})", source) == f"see [a `b`]({expected}) and ![c]({expected})\n"


def test_a_folder_becomes_text_and_code_stays() -> None:
    assert page("in [configs](../configs)\n", "a.md") == "in configs\n"
    code = "```\n[x](../configs/callback.yaml)\ntext\n- y\n```\n\n    [z](../configs/callback.yaml)\n"
    assert page(code, "a.md") == code


def test_a_list_is_separated_from_the_paragraph_above_it_only() -> None:
    assert page("text\n- a\n  more\n- b\n\nend\n1. c\n2. d\n", "a.md") == (
        "text\n\n- a\n  more\n- b\n\nend\n\n1. c\n2. d\n"
    )


def test_pages_that_do_not_exist_leave_the_navigation_with_their_heading() -> None:
    nav = [{"A": "a.md"}, {"B": [{"C": "c.md"}, "d.md"]}, {"E": [{"F": "f.md"}]}]
    assert hooks.kept(nav, {"a.md", "d.md"}.__contains__) == [{"A": "a.md"}, {"B": ["d.md"]}]


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script async src="https://cdn.example.org/x.js"></script>', True),
        ("<link href=//fonts.example.org/a rel=preconnect>", True),
        ('<link rel="stylesheet" href="https://example.org/a.css">', True),
        ('<style>@import url("https://example.org/a.css")</style>', True),
        ('<img alt="x" src="//example.org/x.png">', True),
        ('<a href="https://example.org">x</a>', False),
        ('<link rel="canonical" href="https://example.org">', False),
        ('<img src="images/plan.svg"><script src="../assets/x.js"></script>', False),
    ],
)
def test_what_a_page_would_load_from_another_host_is_found(html: str, found: bool) -> None:
    assert bool(hooks.LOADS.search(html)) is found
