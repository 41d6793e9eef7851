"""Batches of any form as plain data: count their examples, take some, and undo padding that they do not need.

A batch is a tensor [examples, ...], a list of texts or numbers (one an example), or a mapping, list or tuple of these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lr_dist.errors import ConfigurationError

_PLAIN = (str, int, float, bool, type(None))


def plain(batch: Any) -> Any:
    """The batch in dicts, lists and tuples, its tensors on the CPU: what a checkpoint can hold.

    Raises:
        ConfigurationError: it holds anything but tensors, texts and numbers.
    """
    if isinstance(batch, Tensor):
        return batch.detach().cpu()
    if isinstance(batch, Mapping):
        return {key: plain(value) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(plain(value) for value in batch)
    if isinstance(batch, _PLAIN):
        return batch
    raise ConfigurationError(
        f"The batches hold a {type(batch).__name__}, which cannot be kept as an example. Let the loader's collate_fn "
        "return tensors, texts or numbers, in a dict, list or tuple."
    )


def count(batch: Any) -> int:
    """Number of examples: the length of the first tensor, or of the first list of texts or numbers.

    Raises:
        ConfigurationError: there is none.
    """
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
        if isinstance(leaf, (list, tuple)):
            return len(leaf)
    raise ConfigurationError(
        f"A batch that is a {type(batch).__name__} holds no tensor, so the number of its examples is not known. Let "
        "the loader return tensors [batch, ...], in a dict, list or tuple."
    )


def rows(batch: Any, indices: Tensor) -> Any:
    """The examples at `indices` [n], in this order."""
    return mapped(batch, lambda leaf: _taken(leaf, indices))


def signature(batch: Any) -> Any:
    """What two batches have in common whose examples can be joined: the form, types and all sizes but the first."""
    return str(mapped(batch, _form))


def joined(batches: Sequence[Any]) -> Any:
    """The examples of batches with the same `signature`, one after the other."""
    columns = iter(list(zip(*(list(leaves(batch)) for batch in batches), strict=True)))

    def join(_: Any) -> Any:
        parts = next(columns)
        if isinstance(parts[0], Tensor):
            return torch.cat(parts) if parts[0].ndim else parts[0]
        return [value for part in parts for value in part] if isinstance(parts[0], (list, tuple)) else parts[0]

    return mapped(batches[0], join)


def leaves(batch: Any) -> Iterator[Any]:
    """The tensors, columns and single values of a batch, in a fixed order."""
    if isinstance(batch, Mapping):
        for value in batch.values():
            yield from leaves(value)
    elif isinstance(batch, (list, tuple)) and not _is_column(batch):
        for value in batch:
            yield from leaves(value)
    else:
        yield batch


def mapped(batch: Any, function: Callable[[Any], Any]) -> Any:
    """A batch of the same form, with `function(leaf)` in the place of each leaf."""
    if isinstance(batch, Mapping):
        return {key: mapped(value, function) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)) and not _is_column(batch):
        return type(batch)(mapped(value, function) for value in batch)
    return function(batch)


@dataclass(frozen=True)
class Block:
    """Examples that were padded together, and can be taken apart again.

    Attributes:
        batch: n examples.
        lengths: for each leaf of the batch, the examples' lengths along its second dimension [n]; None where all have
            the same.
        on_the_left: for each leaf, whether padding is on the left.
    """

    batch: Any
    lengths: tuple[Tensor | None, ...]
    on_the_left: tuple[bool, ...]

    def __len__(self) -> int:
        return count(self.batch)

    def take(self, indices: Tensor) -> Any:
        """A batch of the examples at `indices` [n], padded to the longest of them."""
        columns = iter(zip(self.lengths, self.on_the_left, strict=True))

        def cut(leaf: Any) -> Any:
            lengths, left = next(columns)
            taken = _taken(leaf, indices)
            if lengths is None:
                return taken
            longest = int(lengths[indices].max())
            return taken[:, taken.shape[1] - longest :] if left else taken[:, :longest]

        return mapped(self.batch, cut)

    def select(self, indices: Tensor) -> Block:
        """A block of these examples alone."""
        lengths = tuple(None if each is None else each[indices] for each in self.lengths)
        return Block(mapped(rows(self.batch, indices), _copied), lengths, self.on_the_left)

    def state(self) -> dict[str, Any]:
        return {"batch": self.batch, "lengths": list(self.lengths), "on_the_left": list(self.on_the_left)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Block:
        return cls(state["batch"], tuple(state["lengths"]), tuple(state["on_the_left"]))


def block_of(batch: Any) -> Block:
    """A block of examples whose padding is kept as it is."""
    batch = plain(batch)
    number = sum(1 for _ in leaves(batch))
    return Block(batch, (None,) * number, (False,) * number)


def collated_block(examples: Sequence[Any], collate: Callable[[list[Any]], Any]) -> Block:
    """Examples of a dataset as one block; how each was padded is found out by collating it alone.

    Raises:
        ConfigurationError: `collate` does not give tensors [examples, ...].
    """
    batch = plain(collate(_copies(examples)))
    for leaf in leaves(batch):
        has_rows = leaf.ndim > 0 if isinstance(leaf, Tensor) else isinstance(leaf, (list, tuple))
        if has_rows and len(leaf) != len(examples):
            raise ConfigurationError(
                f"The loader's collate_fn makes a tensor or list of length {len(leaf)} of {len(examples)} examples, so "
                "single examples cannot be taken from its batches. Use one that returns tensors [examples, ...]."
            )
    columns = list(leaves(batch))
    wide = [index for index, leaf in enumerate(columns) if isinstance(leaf, Tensor) and leaf.ndim > 1]
    lengths = {index: torch.full((len(examples),), columns[index].shape[1]) for index in wide}
    sides = {index: {False, True} for index in wide}
    for row, example in enumerate(examples if wide else ()):
        alone = list(leaves(plain(collate(_copies([example])))))
        for index in list(lengths):
            length, possible = _padding(columns[index][row], alone[index])
            sides[index] &= possible
            lengths[index][row] = length
            if not sides[index]:  # not only padded: keep it whole
                del lengths[index]
    kept = [lengths.get(index) for index in range(len(columns))]
    differ = [each if each is not None and bool((each < each.max()).any()) else None for each in kept]
    return Block(batch, tuple(differ), tuple(sides.get(index, {False}) == {True} for index in range(len(columns))))


def _padding(row: Tensor, alone: Tensor) -> tuple[int, set[bool]]:
    """The length of a row before it was padded, and on which sides (left: True) the padding can be."""
    if alone.ndim != row.ndim + 1 or alone.shape[2:] != row.shape[1:] or alone.shape[1] > row.shape[0]:
        return 0, set()
    length = alone.shape[1]
    right = torch.equal(row[:length], alone[0])
    left = torch.equal(row[row.shape[0] - length :], alone[0])
    return length, {side for side, fits in ((False, right), (True, left)) if fits}


def _copies(examples: Sequence[Any]) -> list[Any]:
    """Some collate functions of transformers change the examples that they are given."""
    return [copy.copy(example) for example in examples]


def _taken(leaf: Any, indices: Tensor) -> Any:
    if isinstance(leaf, Tensor):
        return leaf[indices] if leaf.ndim else leaf
    if isinstance(leaf, (list, tuple)):
        return [leaf[index] for index in indices.tolist()]
    return leaf


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _form(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return f"{leaf.dtype}{tuple(leaf.shape[1:])}"
    return "column" if isinstance(leaf, (list, tuple)) else repr(leaf)


def _is_column(values: Sequence[Any]) -> bool:
    """Whether a list holds one text or number an example; default_collate makes such a list of texts."""
    return len(values) > 0 and all(isinstance(value, _PLAIN) for value in values)
