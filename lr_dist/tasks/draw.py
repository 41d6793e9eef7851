"""Draws rows: `dev` from train, and the `limit` rows of train. The draw is the same on every machine and version."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lr_dist.checks import check_whole, is_whole
from lr_dist.errors import ConfigurationError, TaskDataError, shown
from lr_dist.tasks.task import RawTask, Task, column_values, take_rows, text_keys

if TYPE_CHECKING:
    from datasets import Dataset

MAX_DEV_ROWS = 1_000
DEV_FRACTION = 0.1


def draw_task(raw: RawTask, *, limit: int | None, dev_size: int | float | None, seed: int) -> Task:
    """Splits a source's train rows into `dev` and `train`, then keeps `limit` rows of train.

    `dev` depends only on the source's rows and `dev_size`, not on `limit` or `seed`, so that all runs of a
    search are scored on the same rows. Rows of train with the same text as a dev row are dropped.

    Args:
        raw: The source.
        limit: Rows of train to keep; None, or more than exist, keeps all. Every class keeps at least one row.
        dev_size: A number of rows (int), a share of train (float between 0 and 1), or None for
            min(1,000, 10% of train).
        seed: Seed for the rows that `limit` keeps.

    Raises:
        ConfigurationError: A `limit` or `dev_size` that is not positive, or too small for the classes.
        TaskDataError: No row of train is left, or a class has all its rows in `dev`.
    """
    rows = len(raw.train)
    order = draw_order(rows, "dev")
    wanted = dev_rows(rows, dev_size)
    dev = sorted(order[:wanted])
    keys = text_keys(raw.train)
    in_dev = {keys[row] for row in dev}
    rest = [row for row in range(rows) if keys[row] not in in_dev]
    if not rest:
        raise TaskDataError(
            f"task {raw.name!r}: dev takes {wanted} of {rows} train rows and no other row is left to learn; "
            "give a smaller dev_size or more rows"
        )
    train = take_rows(raw.train, rest)
    if limit is not None:
        train = _limited(raw, train, limit, seed)
    return Task(
        name=raw.name,
        kind=raw.kind,
        classes=raw.classes,
        metrics=raw.metrics,
        train=train,
        dev=take_rows(raw.train, dev),
        validation=raw.validation,
        note=raw.note,
        head=raw.head,
    )


def dev_rows(rows: int, dev_size: int | float | None) -> int:
    """Number of rows of `dev` for `rows` rows of train.

    Raises:
        ConfigurationError: Not a positive number of rows, or all of them or more.
    """
    if dev_size is None:
        # A tenth, rounded up, so that a source of five rows still gets a dev row.
        return min(MAX_DEV_ROWS, -(-rows // round(1 / DEV_FRACTION)))
    if isinstance(dev_size, float) and 0 < dev_size < 1:
        return max(1, round(dev_size * rows))
    if not is_whole(dev_size, 1, rows - 1):
        raise ConfigurationError(
            f"dev_size must be a whole number from 1 to {rows - 1} (train has {rows} rows), or a share of train "
            f"between 0 and 1, not {shown(dev_size)}."
        )
    return dev_size


def draw_order(rows: int, key: str) -> list[int]:
    """Row numbers in a random order that depends only on `key`.

    Only `random.Random.random` is used: Python guarantees the same numbers for the same seed in every version, which
    it does not for `shuffle`, nor NumPy for its generators.
    """
    rng = random.Random(f"lr-dist {key}")
    numbers = [rng.random() for _ in range(rows)]
    return sorted(range(rows), key=numbers.__getitem__)


def with_fewer_scored(task: Task, split: str, limit: int) -> Task:
    """The task with at most `limit` rows in one split, always the same ones; its note says so.

    Args:
        task: The task.
        split: "dev" or "validation".
        limit: Rows to keep.

    Raises:
        ConfigurationError: A `limit` below 10, of which a score says nothing.
    """
    check_whole("eval_limit", limit, 10, error=ConfigurationError, hint="It counts examples to score on.")
    rows: Dataset = getattr(task, split)
    if limit >= len(rows):
        return task
    note = f"scored on {limit:,} of {len(rows):,} {split} examples"
    kept = take_rows(rows, sorted(draw_order(len(rows), f"{split} limit")[:limit]))
    changed: dict[str, Any] = {split: kept, "note": f"{task.note}; {note}" if task.note else note}
    return replace(task, **changed)


def limited_rows(name: str, labels: Sequence[int] | None, rows: int, limit: int, seed: int) -> list[int]:
    """The row numbers that a limit keeps, in their order; smaller limits keep a part of what larger ones keep.

    Only for the sake of a class without a row, one row may differ.

    Args:
        name: of the task, for messages.
        labels: of the rows of a classification, so that every class keeps at least one; None for a regression.
        rows: number of rows.
        limit: rows to keep; more than exist keeps all.
        seed: of the draw.

    Raises:
        ConfigurationError: an invalid limit, or fewer rows than classes.
    """
    check_whole("limit", limit, 2, error=ConfigurationError, hint="It counts train rows; leave it out for all of them.")
    if limit >= rows:
        return list(range(rows))
    order = draw_order(rows, f"limit {seed}")
    return sorted(order[:limit] if labels is None else _with_every_class(name, order, limit, labels))


def _limited(raw: RawTask, train: Dataset, limit: int, seed: int) -> Dataset:
    labels = column_values(train, "label") if raw.kind == "classification" else None
    rows = limited_rows(raw.name, labels, len(train), limit, seed)
    return train if len(rows) == len(train) else take_rows(train, rows)


def _with_every_class(name: str, order: Sequence[int], limit: int, labels: Sequence[int]) -> list[int]:
    """The first `limit` rows of `order`; for a missing class, its first row replaces the last row of a larger one."""
    chosen = list(order[:limit])
    counts: dict[int, int] = {}
    for row in chosen:
        counts[labels[row]] = counts.get(labels[row], 0) + 1
    missing: dict[int, int] = {}
    for row in order[limit:]:
        if labels[row] not in counts:
            missing.setdefault(labels[row], row)
    if len(counts) + len(missing) > limit:
        raise ConfigurationError(
            f"task {name!r}: limit is {limit}, but train has {len(counts) + len(missing)} classes and each needs "
            "a row; give a larger limit"
        )
    for row in missing.values():
        largest = max(sorted(counts), key=counts.__getitem__)
        place = max(index for index, other in enumerate(chosen) if labels[other] == largest)
        counts[largest] -= 1
        counts[labels[row]] = 1
        chosen[place] = row
    return chosen
