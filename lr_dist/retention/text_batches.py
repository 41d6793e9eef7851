"""Texts as batches for a model, tokenised once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError, shown

BATCH_SIZE = 32


def text_batches(
    texts: Sequence[str], tokenizer: Any, *, max_length: int = 128, batch_size: int = BATCH_SIZE
) -> list[dict[str, Tensor]]:
    """Batches of the texts in their order, padded to the longest text of each.

    Args:
        texts: at least one, none of them empty.
        tokenizer: of transformers, the model's.
        max_length: in tokens; longer texts are cut.
        batch_size: texts a batch.

    Raises:
        ConfigurationError: no text, an empty one, or no tokenizer.
    """
    check_whole("max_length", max_length, 1, error=ConfigurationError)
    check_whole("batch_size", batch_size, 1, error=ConfigurationError)
    if tokenizer is None:
        raise ConfigurationError("The texts are plain. Give the model's tokenizer (tokenizer=...), or batches of it.")
    if not texts:
        raise ConfigurationError("There are no texts. Give a few hundred sentences.")
    empty = next((index for index, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise ConfigurationError(f"Text {empty} is empty: {shown(texts[empty])}. Leave it out.")
    return [
        dict(
            tokenizer(
                list(texts[first : first + batch_size]),
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
        )
        for first in range(0, len(texts), batch_size)
    ]


def are_texts(values: Any) -> bool:
    """Whether it is a list of plain texts."""
    return isinstance(values, Sequence) and not isinstance(values, str) and all(isinstance(x, str) for x in values)


def fingerprint_of(texts: Iterable[str]) -> str:
    """SHA-256 (hex) of the texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()
