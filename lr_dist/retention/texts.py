"""Plain text as rows of tokens, with the places that can be masked."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lr_dist.checks import check_whole
from lr_dist.errors import PATH, RetentionTextError, shown
from lr_dist.reading import expanded, lines_of, read_bytes

# WikiText-103's training text has half a gigabyte.
_MOST_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class TokenRow:
    """The tokens of a text, or of a piece of a long one.

    Attributes:
        ids: int64 [tokens], with special tokens.
        ordinary: int64 [D], places of the tokens that can be masked: neither special nor unknown.
    """

    ids: Tensor
    ordinary: Tensor

    def __len__(self) -> int:
        return len(self.ordinary)


def read_texts(path: str | Path) -> list[str]:
    """The lines of a text file, each a text; empty ones are left out.

    Raises:
        RetentionTextError: no such file, not UTF-8, or without any text.
    """
    name = shown(str(path), PATH)
    try:
        data = read_bytes(expanded(path), _MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise RetentionTextError(f"{name} is larger than {_MOST_BYTES:,} bytes; give a part of it.")
        lines = [line.strip() for line in lines_of(data.decode("utf-8"))]
    except UnicodeDecodeError as error:
        raise RetentionTextError(f"{name} is not text in UTF-8: {error.reason} at byte {error.start}.") from error
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise RetentionTextError(f"{name} cannot be read: {reason}. Give a text file, one text a line.") from error
    if not any(lines):
        raise RetentionTextError(f"{name} is empty. Give a text file, one text a line.")
    return [line for line in lines if line]


def token_rows(
    texts: Iterable[str],
    tokenizer: Any,
    *,
    max_length: int = 64,
    least: int = 8,
    limit: int | None = None,
    seed: int = 0,
) -> list[TokenRow]:
    """Tokenise texts; a text with more than `max_length` tokens becomes several rows.

    Args:
        texts: plain texts.
        tokenizer: a fast tokenizer of transformers.
        max_length: most tokens of a row, with special ones; at most the tokenizer's.
        least: rows with fewer tokens that can be masked (headings, rests of long texts) are left out.
        limit: most rows, drawn at random in the texts' order; None for all.
        seed: of the draw.

    Raises:
        RetentionTextError: no text, only texts that are too short, or only tokens that the tokenizer does not know.
    """
    texts = list(texts)
    check_whole("least", least, 1, error=RetentionTextError)
    lowest = tokenizer.num_special_tokens_to_add() + least
    check_whole("max_length", max_length, lowest, error=RetentionTextError, hint="It counts tokens of a row.")
    max_length = min(max_length, tokenizer.model_max_length)
    if not any(text.strip() for text in texts):
        raise RetentionTextError("There is no text: every text is empty.")
    encoded = tokenizer(
        texts, truncation=True, max_length=max_length, return_overflowing_tokens=True, return_attention_mask=False
    )
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
    every = [torch.tensor(ids, dtype=torch.int64) for ids in encoded["input_ids"]]
    rows = [TokenRow(ids, (~torch.isin(ids, special)).nonzero().flatten()) for ids in every]
    kept = [row for row in rows if len(row) >= least]
    if not kept:
        unknown = tokenizer.unk_token_id
        if unknown is not None and not any(map(len, rows)) and any(bool((row.ids == unknown).any()) for row in rows):
            raise RetentionTextError(
                f"The tokenizer knows no token of the text: all are {tokenizer.unk_token}. Give a text in the "
                "language and script that the model was trained on."
            )
        raise RetentionTextError(
            f"The longest text has {max(map(len, rows))} tokens that can be masked, and {least} are needed. Give "
            "longer texts, or a lower `least`."
        )
    if limit is not None:
        check_whole("limit", limit, 1, error=RetentionTextError)
        if limit < len(kept):
            kept = [kept[i] for i in sorted(random.Random(seed).sample(range(len(kept)), limit))]
    return kept


def rows_fingerprint(rows: Sequence[TokenRow]) -> str:
    """SHA-256 (hex) of the tokens, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{len(row.ids)}:{len(row)}:".encode())
        digest.update(row.ids.numpy().tobytes())
    return digest.hexdigest()


def padded(rows: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as one batch: ids and attention mask, int64 [rows, longest]."""
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()
