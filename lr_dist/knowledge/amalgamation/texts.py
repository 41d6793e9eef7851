"""`Texts`: unlabelled texts, each with an id that its content gives, so that no order can misalign them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lr_dist.errors import PATH, EmptyTextError, UnreadableFileError, listed, shown
from lr_dist.reading import expanded, is_file, lines_of, read_bytes
from lr_dist.tasks.task import Task, text_keys
from lr_dist.tasks.token_cache import FlatRows
from lr_dist.tasks.tokens import TokenSplit

_MOST_BYTES = 2**31
_TYPES = {"input_ids": np.int32, "token_type_ids": np.int8}
# Hexadecimal digits of an id: 128 bits.
ID_LENGTH = 32


@dataclass(frozen=True)
class Texts:
    """Texts, or pairs of texts, without labels.

    Attributes:
        pairs: (text, None), or (first text, second text) for a pair.

    Raises:
        EmptyTextError: no texts, or a text of white space alone.
    """

    pairs: tuple[tuple[str, str | None], ...]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise EmptyTextError("There are no texts. Amalgamation needs unlabelled texts of what the teachers know.")
        blank = [row for row, pair in enumerate(self.pairs) if any(p is not None and not p.strip() for p in pair)]
        if blank:
            rows = ", ".join(map(str, blank[:10])) + (" ..." if len(blank) > 10 else "")
            raise EmptyTextError(
                f"{len(blank)} of {len(self.pairs)} texts hold nothing but white space: rows {rows} (counted from 0). "
                "Remove them."
            )

    @classmethod
    def of(cls, texts: Sequence[str | tuple[str, str]]) -> Texts:
        """From strings, or from pairs of strings."""
        return cls(tuple((each, None) if isinstance(each, str) else (each[0], each[1]) for each in texts))

    @classmethod
    def of_task(cls, task: Task, split: str = "train") -> Texts:
        """The texts of a task's split; its labels are not read."""
        return cls(tuple((key[0], key[1] if len(key) > 1 else None) for key in text_keys(getattr(task, split))))

    @classmethod
    def of_file(cls, path: str | Path) -> Texts:
        """A text a line; empty lines are skipped. In a file *.tsv, a tab separates the two texts of a pair.

        Raises:
            UnreadableFileError: no such file, or one that is not UTF-8.
            EmptyTextError: no texts in it.
        """
        place = expanded(path)
        try:
            if not is_file(place):
                raise OSError("there is no such file")
            lines = lines_of(read_bytes(place, _MOST_BYTES).decode("utf-8-sig"))
        except (OSError, ValueError) as error:
            raise UnreadableFileError(
                f"{shown(str(path), PATH)} cannot be read as text, one a line, in UTF-8: {error}."
            ) from error
        pairs = place.suffix.lower() == ".tsv"
        rows = [line for line in lines if line.strip()]
        cut = [row.split("\t", 1) if pairs and "\t" in row else [row] for row in rows]
        return cls(tuple((parts[0].strip(), parts[1].strip() if len(parts) > 1 else None) for parts in cut))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The id of each text, 32 hexadecimal digits of the SHA-256 of its content; equal texts have equal ids."""
        return tuple(hashlib.sha256(json.dumps(pair).encode()).hexdigest()[:ID_LENGTH] for pair in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __add__(self, other: Texts) -> Texts:
        return Texts(self.pairs + other.pairs)

    def rows_at(self, rows: Sequence[int]) -> Texts:
        """Some of the texts, in this order."""
        return Texts(tuple(self.pairs[row] for row in rows))

    def plain(self) -> list[str | tuple[str, str]]:
        """Strings, and tuples of two strings for pairs."""
        return [first if second is None else (first, second) for first, second in self.pairs]

    def drawn(self, count: int, seed: int) -> Texts:
        """At most `count` of them, drawn by their ids, in the given order; the order of all has no influence."""
        if count >= len(self):
            return self
        ranked = sorted(range(len(self)), key=lambda row: (_ranked(self.ids[row], seed), row))
        return self.rows_at(sorted(ranked[:count]))

    def split(self, share: float, seed: int) -> tuple[Texts, Texts]:
        """The texts to train on, and a share of them held out; equal texts are on one side.

        Raises:
            EmptyTextError: fewer than two different texts.
        """
        distinct = sorted(set(self.ids), key=lambda each: _ranked(each, seed))
        if len(distinct) < 2:
            raise EmptyTextError("All texts are the same. At least two are needed, one of them held out.")
        held = set(distinct[: min(max(1, round(share * len(distinct))), len(distinct) - 1)])
        rows: tuple[list[int], list[int]] = [], []
        for row, each in enumerate(self.ids):
            rows[each in held].append(row)
        return self.rows_at(rows[0]), self.rows_at(rows[1])


def tokenise(texts: Texts, tokenizer: Any, max_length: int) -> TokenSplit:
    """The tokens of texts; the label of each row is its number in `texts`.

    Args:
        texts: single texts and pairs may be mixed.
        tokenizer: a transformers tokenizer.
        max_length: the most tokens of a row; longer ones are cut.

    Raises:
        EmptyTextError: a text of which only special tokens are left.
    """
    rows: list[dict[str, list[int]]] = [{} for _ in range(len(texts))]
    for pairs in (False, True):
        chosen = [row for row, (_, second) in enumerate(texts.pairs) if (second is not None) == pairs]
        if not chosen:
            continue
        columns = [[texts.pairs[row][k] for row in chosen] for k in range(2 if pairs else 1)]
        encoded = tokenizer(
            *columns,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_special_tokens_mask=True,
        )
        for index, row in enumerate(chosen):
            rows[row] = {name: values[index] for name, values in encoded.items()}
    empty = [row for row, each in enumerate(rows) if all(each["special_tokens_mask"])]
    if empty:
        some = listed(texts.plain()[row] for row in empty)
        raise EmptyTextError(
            f"{len(empty)} of {len(rows)} texts become no tokens of {type(tokenizer).__name__}: {some}. Remove them."
        )
    names = [name for name in _TYPES if all(name in each for each in rows)]
    features = {name: np.concatenate([np.asarray(each[name], dtype=_TYPES[name]) for each in rows]) for name in names}
    offsets = np.cumsum([0, *(len(each["input_ids"]) for each in rows)], dtype=np.int64)
    return TokenSplit(FlatRows(features, offsets), torch.arange(len(rows)))


def _ranked(text_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{text_id}".encode()).digest()
