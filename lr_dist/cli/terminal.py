"""Safe printing: names and messages from files, models and studies cannot control the terminal.

A name may hold `ESC[2J` (clears the screen), an OSC sequence (sets the window's title, or the clipboard), or a
right-to-left mark that reverses a line. Only the styles that rich itself adds are kept.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderResult

# C0 and C1 controls but line ends and tabs; marks of direction (Unicode annex 9); half characters.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\u061c\ud800-\udfff]")


def clean(text: str) -> str:
    """The text with everything that could control a terminal escaped, as `\\x1b`."""
    return _ACTING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def terminal(*, highlight: bool = True) -> Console:
    """A rich console that prints only `clean` text; `highlight` colours numbers and names."""
    from rich.console import Console, RenderHook

    class Clean(RenderHook):
        def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
            return [_Cleaned(renderable) for renderable in renderables]

    console = Console(highlight=highlight)
    console.push_render_hook(Clean())
    return console


def accept_any_text() -> None:
    """Make standard output and error escape characters that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def ignore_impossible_sizes() -> None:
    """Drop COLUMNS and LINES of more than five characters, which rich would take for the terminal's size."""
    for name in ("COLUMNS", "LINES"):
        if len(os.environ.get(name, "")) > 5:
            del os.environ[name]


class _Cleaned:
    """A renderable, its text cleaned when it is rendered."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(clean(segment.text), segment.style)
