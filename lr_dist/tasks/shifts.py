"""Shifts of a task: its rows are split into two halves, learned one after the other with a shared head.

After Kenneweg et al. (arXiv 2404.01317): a data shift splits by the length of the text, an embedding shift by 2-means
over the vectors of the pre-trained model. Both are fitted on train only and then applied to dev and validation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lr_dist.errors import TaskDataError
from lr_dist.tasks.task import SPLITS, Task, column_values, take_rows

if TYPE_CHECKING:
    from datasets import Dataset

Encode = Callable[["list[str]", "list[str] | None"], "NDArray[Any]"]


def data_shift(task: Task) -> tuple[Task, Task]:
    """The shorter and the longer half of a task.

    The length is that of the whole input in characters (both texts of a pair). Rows up to train's median are short.

    Returns:
        `NAME@short` and `NAME@long`.

    Raises:
        TaskDataError: A half without rows, or whose train has one class only.
    """
    lengths = {name: _lengths(getattr(task, name)) for name in SPLITS}
    median = float(np.median(lengths["train"]))
    longer = {name: values > median for name, values in lengths.items()}
    return _halves(task, longer, ("short", "long"), f"by length: up to and above {median:g} characters")


def embedding_shift(task: Task, encode: Encode) -> tuple[Task, Task]:
    """The two clusters of a task, by 2-means over the pre-trained model's vectors.

    Args:
        task: The task.
        encode: Returns the vectors [n, hidden] of texts (and second texts, or None); see `cls_encoder`.

    Returns:
        `NAME@cluster0` (the larger one in train) and `NAME@cluster1`.

    Raises:
        TaskDataError: A cluster without rows, or whose train has one class only.
    """
    vectors = {name: _vectors(getattr(task, name), encode) for name in SPLITS}
    centres = two_means(vectors["train"])
    side = {name: _nearest(values, centres) == 1 for name, values in vectors.items()}
    if side["train"].mean() > 0.5:
        side = {name: ~values for name, values in side.items()}
    return _halves(task, side, ("cluster0", "cluster1"), "by 2-means over pre-trained vectors")


def cls_encoder(model: Any, tokenizer: Any, max_length: int = 128, batch_size: int = 64) -> Encode:
    """The vector of the first token (CLS) in a pre-trained model's last layer.

    Args:
        model: A transformers encoder whose output has `last_hidden_state`.
        tokenizer: Its tokenizer.
        max_length: Maximum number of tokens per input.
        batch_size: Inputs per forward pass.

    Returns:
        A function (texts, second texts or None) -> float32 array [n, hidden].
    """
    import torch

    @torch.no_grad()
    def encode(texts_a: list[str], texts_b: list[str] | None) -> NDArray[Any]:
        was_training = model.training
        model.eval()
        device = next(model.parameters()).device
        parts: list[NDArray[Any]] = []
        # Texts of similar length share a batch, so little is padded.
        order = sorted(range(len(texts_a)), key=lambda row: len(texts_a[row]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            first = [texts_a[row] for row in rows]
            second = None if texts_b is None else [texts_b[row] for row in rows]
            batch = tokenizer(first, second, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
            states = model(**batch.to(device)).last_hidden_state
            parts.append(states[:, 0].float().cpu().numpy())
        model.train(was_training)
        vectors = np.concatenate(parts)
        result = np.empty_like(vectors)
        result[order] = vectors
        return result

    return encode


def two_means(points: NDArray[Any], *, restarts: int = 10, iterations: int = 100, seed: int = 0) -> NDArray[Any]:
    """Centres of two clusters: Lloyd's iterations from k-means++ starts, the best of several.

    Args:
        points: [n, d].
        restarts: Number of starts; the result with the least sum of squared distances is used.
        iterations: Maximum number of steps from each start.
        seed: Seed of the starts.

    Returns:
        [2, d].
    """
    points = np.asarray(points, dtype=np.float64)
    rng = np.random.default_rng(seed)
    best, best_cost = points[:1].repeat(2, axis=0), np.inf
    for _ in range(restarts):
        first = points[rng.integers(len(points))]
        distance = ((points - first) ** 2).sum(1)
        if distance.sum() == 0:
            break  # all points are one point
        second = points[rng.choice(len(points), p=distance / distance.sum())]
        centres = np.stack([first, second])
        for _ in range(iterations):
            side = _nearest(points, centres)
            if side.min() == side.max():
                break
            moved = np.stack([points[side == k].mean(0) for k in (0, 1)])
            if np.array_equal(moved, centres):
                break
            centres = moved
        cost = ((points - centres[_nearest(points, centres)]) ** 2).sum()
        if cost < best_cost:
            best, best_cost = centres, cost
    return best


def _nearest(points: NDArray[Any], centres: NDArray[Any]) -> NDArray[Any]:
    distances = [((np.asarray(points, dtype=np.float64) - centre) ** 2).sum(1) for centre in centres]
    return np.argmin(np.stack(distances), axis=0)


def _lengths(split: Dataset) -> NDArray[Any]:
    lengths = np.zeros(len(split), dtype=np.int64)
    for column in split.column_names:
        if column != "label":
            lengths += [len(text) for text in column_values(split, column)]
    return lengths


def _vectors(split: Dataset, encode: Encode) -> NDArray[Any]:
    second = column_values(split, "text_b") if "text_b" in split.column_names else None
    vectors = np.asarray(encode(column_values(split, "text_a"), second))
    if vectors.ndim != 2 or len(vectors) != len(split):
        raise TaskDataError(f"encode returned {vectors.shape} for {len(split)} rows; it must return [rows, hidden]")
    return vectors


def _halves(task: Task, upper: dict[str, NDArray[Any]], names: tuple[str, str], how: str) -> tuple[Task, Task]:
    """Both halves; `upper` holds, for each row of each split, whether it belongs to the second half."""
    halves = []
    for name, wanted in zip(names, (False, True), strict=True):
        splits = {
            split: take_rows(getattr(task, split), np.flatnonzero(upper[split] == wanted).tolist()) for split in SPLITS
        }
        try:
            halves.append(
                Task(
                    name=f"{task.name}@{name}",
                    kind=task.kind,
                    classes=task.classes,
                    metrics=task.metrics,
                    head=task.head,
                    note="; ".join(filter(None, (task.note, f"half of {task.name} {how}"))),
                    **splits,
                )
            )
        except TaskDataError as error:
            raise TaskDataError(
                f"task {task.name!r} cannot be split {how}: {error}. Use a larger limit or dev_size, or another task"
            ) from error
    return halves[0], halves[1]
