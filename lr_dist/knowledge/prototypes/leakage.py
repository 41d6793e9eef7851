"""Whether prototypes occur in texts that a model is tested on."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# Shorter prototypes, such as single words, are in almost any text.
_LEAST_WORDS = 3
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Leakage:
    """What was found.

    Attributes:
        checked: number of texts (or pairs) that prototypes were compared with.
        removed: prototypes with the same words, in the same order, as one of these; they were left out.
        contained: prototypes of at least three words that are a part of one of these; they are kept.
        examples: up to five of the removed ones, then of the contained ones.
    """

    checked: int = 0
    removed: int = 0
    contained: int = 0
    examples: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "checked": self.checked,
            "removed": self.removed,
            "contained": self.contained,
            "examples": list(self.examples),
        }


@functools.lru_cache(maxsize=2**17)
def words_of(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, without punctuation."""
    return tuple(_WORD.findall(text.casefold()))


def key_of(texts: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """A key that is equal for texts (or pairs) with the same words."""
    return tuple(words_of(text) for text in texts)


class Tested:
    """The texts that a model is tested on.

    Args:
        rows: one text or a pair each.
    """

    def __init__(self, rows: Iterable[Sequence[str]] = ()) -> None:
        self.keys = {key_of(row) for row in rows}
        self._joined = [" " + " ".join(" ".join(part) for part in key) + " " for key in self.keys]

    def has(self, texts: Sequence[str]) -> bool:
        """Whether one of them has the same words."""
        return key_of(texts) in self.keys

    def contains(self, texts: Sequence[str]) -> bool:
        """Whether a text of at least three words is a part of one of them."""
        words = [words_of(text) for text in texts]
        phrases = [" " + " ".join(each) + " " for each in words if len(each) >= _LEAST_WORDS]
        return any(phrase in joined for phrase in phrases for joined in self._joined)
