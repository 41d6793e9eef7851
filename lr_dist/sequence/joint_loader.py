"""Batches of several tasks in random order, for joint training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

HEAD = "head"


class JointLoader:
    """Every batch of every loader once an epoch, shuffled; each has the head of its task under the key `head`.

    Args:
        loaders: one a task; each shuffles its own rows.
        heads: of the tasks.
        seed: of the order in which tasks take turns.
    """

    def __init__(self, loaders: Sequence[DataLoader[Any]], heads: Sequence[str], seed: int) -> None:
        self._loaders = list(loaders)
        self._heads = list(heads)
        self._seed = seed
        self._epoch = 0
        # Lightning and the runner look for `set_epoch` there.
        self.batch_sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self._epoch = epoch
        for loader in self._loaders:
            loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]

    def __len__(self) -> int:
        return sum(len(loader) for loader in self._loaders)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        turns = np.repeat(np.arange(len(self._loaders)), [len(loader) for loader in self._loaders])
        order = np.random.default_rng([self._seed, self._epoch]).permutation(turns)
        self._epoch += 1
        batches = [iter(loader) for loader in self._loaders]
        for index in order:
            yield {**next(batches[index]), HEAD: self._heads[index]}
