"""Parts of Markdown tables."""

from __future__ import annotations


def code(text: str) -> str:
    """A text as code in a table's cell, where a bar would begin the next cell, also within code: `A \\| B`."""
    return f"`{text.replace('|', chr(92) + '|')}`"
