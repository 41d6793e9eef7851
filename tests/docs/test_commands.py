"""Every `lr-dist` command that the README and the documentation show is one: its options are read, nothing is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lr_dist.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
ASSIGNMENT = re.compile(r"[A-Z_]+=\S+")


def commands_of(page: Path) -> Iterator[str]:
    """The commands in a page's blocks of code, with their continuation lines joined."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            words = line.split()
            while words and ASSIGNMENT.fullmatch(words[0]):
                words.pop(0)
            if words[:1] == ["lr-dist"] and "..." not in line:
                yield line.strip()


COMMAND_LINES = [(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands_of(page)]


def test_commands_are_found() -> None:
    assert len(COMMAND_LINES) > 25
    assert len({page for page, _ in COMMAND_LINES}) > 8


@pytest.mark.parametrize("page", sorted({page for page, _ in COMMAND_LINES}))
def test_every_command_of_a_page_is_read(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    read: list[Any] = []
    for path in COMMANDS.values():
        monkeypatch.setattr(import_module(path), "run", lambda settings: read.append(settings) or 0)
    commands = [command for where, command in COMMAND_LINES if where == page]
    for command in commands:
        words = shlex.split(command, comments=True)
        while ASSIGNMENT.fullmatch(words[0]):
            words.pop(0)
        # A file of the reader's own.
        if "--config" in words and not Path(words[words.index("--config") + 1]).exists():
            place = words.index("--config")
            del words[place : place + 2]
        assert main(words[1:]) == 0, f"{page}: {command}\n{capsys.readouterr().err}"
    assert len(read) == len(commands)


def test_a_wrong_option_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(import_module(COMMANDS["plan"]), "run", lambda settings: 0)
    assert main(["plan", "flat:lr=1e-4", "--layers", "6"]) == 0
    with pytest.raises(SystemExit):
        main(["plan", "flat:lr=1e-4", "--depth", "6"])
