"""Every relative link of the README and the documentation leads to a file, and every anchor to a heading."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs.links import anchors_of, broken, links_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_links_are_found_at_all() -> None:
    assert sum(len(links_of(page)) for page in PAGES) > 100


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A title: `code`, and more!\n```\n# not one\n```\n## Twice\n## Twice\n")
    assert anchors_of(tmp_path / "other.md") == {"a-title-code-and-more", "twice", "twice-1"}
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#twice-1) [c](#here) [d](https://example.org/x) [`e` f](gone.md)\n"
        "## Here\n`[g](gone.md)` [h](other.md#not-one) ![i](gone.svg)\n```\n[j](gone.md)\n```\n"
    )
    assert [failure.partition(": no such")[0] for failure in broken(page)] == [
        "page.md:1: gone.md",
        "page.md:3: other.md#not-one",
        "page.md:3: gone.svg",
    ]
