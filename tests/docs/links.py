"""Links of Markdown pages: what they lead to, as GitHub shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LINK = re.compile(r"!?\[(?:[^\[\]\n]|\[[^\]\n]*\])*\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(r"[a-z]+:", re.IGNORECASE)
FENCE = re.compile(r"^\s*(```|~~~)")


@dataclass(frozen=True)
class Link:
    """A link in a page, with its line."""

    page: Path
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}: {self.target}"


def lines_of(page: Path) -> Iterator[tuple[int, str]]:
    """The lines outside of blocks of code, numbered from 1, without inline code."""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield number, line


def links_of(page: Path) -> list[Link]:
    """Every link that leads to a file of the repository or to an anchor."""
    found = []
    for number, line in lines_of(page):
        for target in LINK.findall(re.sub(r"`[^`]*`", "code", line)):
            if not ELSEWHERE.match(target):
                found.append(Link(page, number, target))
    return found


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives to the page's headings: lower case, no punctuation, hyphens for spaces."""
    anchors: dict[str, int] = {}
    for _, line in lines_of(page):
        if heading := re.match(r"#{1,6} +(.*)", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).strip().lower()
            slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            count = anchors.get(slug, 0)
            anchors[slug] = count + 1
            if count:
                anchors[f"{slug}-{count}"] = 1
    return set(anchors)


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere, with the reason."""
    failures = []
    for link in links_of(page):
        path, _, anchor = link.target.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            failures.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors_of(target):
            failures.append(f"{link}: no such heading; {target.name} has {sorted(anchors_of(target))}")
    return failures
