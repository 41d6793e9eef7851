"""Where a run is in its training data, for loaders that do not keep it themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lr_dist._callback.internals import uncount


def is_stateful(loaders: Iterable[Any]) -> bool:
    """Whether each loader keeps its position itself (`state_dict` and `load_state_dict`); Lightning restores those."""
    return all(hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict") for loader in loaders)


def move_to(
    fetcher: Any, batches: int, *, at_epoch_start: Callable[[], None] | None, at_first_batch: Callable[[], None]
) -> None:
    """Read an epoch's first `batches` batches again and drop them, so that the next one is what it would have been.

    They have to be read, not counted: workers draw random numbers of their own for each batch, and a dataset may
    change with every item that is taken from it.

    Args:
        fetcher: Lightning's data fetcher, its iterator made for the first epoch.
        batches: how many batches were used.
        at_epoch_start: brings back the random numbers of the moment at which the epoch's iterator was made; None if
            that was before the first epoch, in which case the fetcher has the right one.
        at_first_batch: brings back those of the moment at which its first batch was read.
    """
    if at_epoch_start is not None:
        at_epoch_start()
        iter(fetcher)
    at_first_batch()
    for _ in range(batches):
        batch = next(fetcher)
        # A `training_step(self, dataloader_iter)` is handed an iterator, and takes a batch from it itself.
        if isinstance(batch, Iterator):
            next(batch)
    uncount(fetcher, batches)
