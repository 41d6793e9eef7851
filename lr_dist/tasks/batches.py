"""Batches of rows of similar length, padded to the longest row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError
from lr_dist.tasks.tokens import TokenSplit

_WINDOW = 50


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of row numbers. Each row is in exactly one batch per epoch; the last batch may be smaller.

    Rows are shuffled, sorted by length within windows of up to 50 batches, cut into batches, and the batches
    shuffled. A window holds a quarter of the batches at most, so that a small data set does not get the same
    batches each epoch.

    The order depends only on (seed, epoch). Every iteration starts the next epoch; `set_epoch` sets which one, and
    Lightning calls it automatically.

    Args:
        lengths: Number of tokens of each row.
        batch_size: Rows per batch.
        seed: Seed of the order.
        shuffle: False gives one fixed order, from the longest rows to the shortest.

    Raises:
        ConfigurationError: A batch size below 1.
    """

    def __init__(
        self, lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int = 0, shuffle: bool = True
    ) -> None:
        check_whole("batch_size", batch_size, 1, error=ConfigurationError)
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    @property
    def sampler(self) -> BucketBatchSampler:
        """This object, because Lightning calls `dataloader.batch_sampler.sampler.set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.epoch_batches(self.epoch)
        self.epoch += 1
        return iter(batches)

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch."""
        size = self.batch_size
        if not self.shuffle:
            order = np.argsort(-self.lengths, kind="stable")
            return [order[start : start + size].tolist() for start in range(0, len(order), size)]
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths))
        window = size * max(1, min(_WINDOW, len(self) // 4))
        batches: list[list[int]] = []
        for begin in range(0, len(order), window):
            rows = order[begin : begin + window]
            # Stable, so that rows of equal length stay in random order.
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            batches += [rows[start : start + size].tolist() for start in range(0, len(rows), size)]
        return [batches[index] for index in rng.permutation(len(batches))]


class Collator:
    """Pads the rows of a batch to the longest one.

    Args:
        pad_token_id: Pads `input_ids`; token types and the attention mask are padded with 0.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, any `token_type_ids` (int64 [rows, longest]) and `labels` [rows]."""
        lengths = np.array([len(row["input_ids"]) for row in rows])
        shape = (len(rows), int(lengths.max()))
        filled = np.arange(shape[1]) < lengths[:, None]
        batch: dict[str, torch.Tensor] = {}
        for name in rows[0]:
            if name == "label":
                continue
            padded = np.full(shape, self.pad_token_id if name == "input_ids" else 0, dtype=np.int64)
            # Boolean indexing goes row by row, which is the order of the concatenated rows.
            padded[filled] = np.concatenate([row[name] for row in rows])
            batch[name] = torch.from_numpy(padded)
        batch["attention_mask"] = torch.from_numpy(filled.astype(np.int64))
        batch["labels"] = torch.stack([row["label"] for row in rows])
        return batch


def train_loader(split: TokenSplit, batch_size: int, seed: int, pad_token_id: int) -> DataLoader[dict[str, Any]]:
    """Shuffled batches of rows of similar length; seed and epoch determine the order."""
    sampler = BucketBatchSampler(split.lengths, batch_size, seed)
    return DataLoader(split, batch_sampler=sampler, collate_fn=Collator(pad_token_id))


def eval_loader(split: TokenSplit, batch_size: int, pad_token_id: int) -> DataLoader[dict[str, Any]]:
    """All rows in a fixed order, from the longest to the shortest, so that a lack of memory shows at once."""
    sampler = BucketBatchSampler(split.lengths, batch_size, shuffle=False)
    return DataLoader(split, batch_sampler=sampler, collate_fn=Collator(pad_token_id))
