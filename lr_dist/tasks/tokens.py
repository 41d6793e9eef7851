"""Tokenised tasks: made once for (task, tokenizer, length), then memory-mapped by all later runs and processes."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset

from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError
from lr_dist.tasks.task import SPLITS, Task, column_values
from lr_dist.tasks.token_cache import FlatRows, cache_folder, load_entry, save_entry

_FORMAT = 1
_CHUNK = 2_000
_TYPES = {"input_ids": np.int32, "token_type_ids": np.int8}


class TokenSplit(TorchDataset[dict[str, Any]]):
    """The tokens and labels of a split.

    Attributes:
        rows: The tokens: flat arrays, and the start of each row.
        labels: int64 or float32 tensor [rows].
        lengths: Number of tokens of each row, int64 [rows].
    """

    def __init__(self, rows: FlatRows, labels: torch.Tensor) -> None:
        self.rows = rows
        self.labels = labels
        self.lengths: NDArray[Any] = np.diff(rows.offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a split of {len(self)} rows")
        index %= len(self)
        start, stop = self.rows.offsets[index], self.rows.offsets[index + 1]
        row: dict[str, Any] = {name: flat[start:stop] for name, flat in self.rows.features.items()}
        row["label"] = self.labels[index]
        return row

    def rows_at(self, indices: Sequence[int]) -> TokenSplit:
        """A copy of some rows, in this order."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths[list(indices)], dtype=np.int64)])
        starts = [(self.rows.offsets[index], self.rows.offsets[index + 1]) for index in indices]
        features = {
            name: np.concatenate([flat[start:stop] for start, stop in starts] or [flat[:0]])
            for name, flat in self.rows.features.items()
        }
        return TokenSplit(FlatRows(features, offsets), self.labels[list(indices)])

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The rows of a batch in one call, for PyTorch's loader."""
        return [self[index] for index in indices]


@dataclass(frozen=True, eq=False)
class TokenizedTask:
    """A task's three splits as tokens.

    Attributes:
        task: The task.
        train, dev, validation: Its splits.
        pad_token_id: The id with which a collator pads.
    """

    task: Task
    train: TokenSplit
    dev: TokenSplit
    validation: TokenSplit
    pad_token_id: int


def tokenize_task(task: Task, tokenizer: Any, max_length: int, cache_dir: str | Path | None = None) -> TokenizedTask:
    """Tokenises a task, or loads the tokens of an earlier call from the cache.

    Several processes may tokenise the same task at once. An incomplete or damaged entry is made again.

    Args:
        task: What to tokenise.
        tokenizer: A transformers tokenizer.
        max_length: Maximum number of tokens per input, with special tokens; longer inputs are cut.
        cache_dir: Folder of the cache; None: the environment variable LR_DIST_CACHE, or ~/.cache/lr-dist.

    Raises:
        ConfigurationError: A `max_length` that the tokenizer does not support, a tokenizer without a padding token, or
            a cache folder that cannot be written.
    """
    _check_length(task, tokenizer, max_length)
    if tokenizer.pad_token_id is None:
        raise ConfigurationError(
            f"{type(tokenizer).__name__} has no padding token: set one first, such as tokenizer.pad_token = "
            "tokenizer.eos_token"
        )
    key = json.dumps([_FORMAT, task.fingerprint, tokenizer_fingerprint(tokenizer), max_length])
    entry = cache_folder(cache_dir) / f"tokens-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    counts = {split: len(getattr(task, split)) for split in SPLITS}
    rows_by_split = load_entry(entry, counts)
    if rows_by_split is None:
        made = {split: _tokenize(getattr(task, split), tokenizer, max_length) for split in SPLITS}
        save_entry(entry, made)
        # Memory mapped from disk is shared between processes; if that fails, use the copy in memory.
        rows_by_split = load_entry(entry, counts) or made
    dtype = torch.int64 if task.kind == "classification" else torch.float32
    splits = {}
    for split, rows in rows_by_split.items():
        labels = torch.tensor(column_values(getattr(task, split), "label"), dtype=dtype)
        splits[split] = TokenSplit(rows, labels)
    return TokenizedTask(task=task, pad_token_id=int(tokenizer.pad_token_id), **splits)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 (hex) of what determines a tokenizer's output: its vocabulary and rules, not its path."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        # Left over from the last call; not a property of the tokenizer.
        rules.pop("truncation", None)
        rules.pop("padding", None)
    else:
        settings = {
            key: value
            for key, value in tokenizer.init_kwargs.items()
            if isinstance(value, bool | int | float | str) and not key.endswith(("_file", "name_or_path"))
        }
        rules = [tokenizer.get_vocab(), settings]
    parts = [
        type(tokenizer).__name__,
        rules,
        {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        list(tokenizer.model_input_names),
        tokenizer.truncation_side,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_length(task: Task, tokenizer: Any, max_length: int) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=task.num_texts == 2)
    least, most = special + task.num_texts, tokenizer.model_max_length
    # Tokenizers without a limit have a number like 1e30.
    limit = int(most) if most < 10**9 else None
    hint = "The limits are those of the tokenizer."
    check_whole("max_length", max_length, least, limit, error=ConfigurationError, hint=hint)


def _tokenize(split: Any, tokenizer: Any, max_length: int) -> FlatRows:
    texts = [column_values(split, column) for column in ("text_a", "text_b") if column in split.column_names]
    flat: dict[str, list[NDArray[Any]]] = {}
    lengths: list[int] = [0]
    for start in range(0, len(split), _CHUNK):
        chunk = [column[start : start + _CHUNK] for column in texts]
        encoded = tokenizer(*chunk, truncation=True, max_length=max_length, return_attention_mask=False)
        lengths += [len(row) for row in encoded["input_ids"]]
        for name, dtype in _TYPES.items():
            if name in encoded:
                values = np.fromiter(itertools.chain.from_iterable(encoded[name]), dtype)
                flat.setdefault(name, []).append(values)
    features = {name: np.concatenate(parts) for name, parts in flat.items()}
    return FlatRows(features, np.cumsum(lengths, dtype=np.int64))
