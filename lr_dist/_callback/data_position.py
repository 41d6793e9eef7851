"""Restores the position in the training data for loaders that do not save it themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lr_dist._callback.internals import uncount


def is_stateful(loaders: Iterable[Any]) -> bool:
    """Whether every loader saves its own position (`state_dict`, `load_state_dict`); Lightning restores those."""
    return all(hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict") for loader in loaders)


def move_to(
    fetcher: Any, batches: int, *, at_epoch_start: Callable[[], None] | None, at_first_batch: Callable[[], None]
) -> None:
    """Read an epoch's first `batches` batches again and drop them, so that the next batch is the right one.

    They have to be read, not only counted: workers draw random numbers for each batch, and a dataset may change its
    state with every item.

    Args:
        fetcher: Lightning's data fetcher, its iterator made for the first epoch.
        batches: how many batches the stopped run had used.
        at_epoch_start: restores the random state in which the epoch's iterator was made; None in the first epoch, for
            which the fetcher's iterator is already right.
        at_first_batch: restores the random state in which the first batch was read.
    """
    if at_epoch_start is not None:
        at_epoch_start()
        iter(fetcher)
    at_first_batch()
    for _ in range(batches):
        batch = next(fetcher)
        # A `training_step(self, dataloader_iter)` receives an iterator and takes the batch from it itself.
        if isinstance(batch, Iterator):
            next(batch)
    uncount(fetcher, batches)
