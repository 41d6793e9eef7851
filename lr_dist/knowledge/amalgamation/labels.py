"""`LabelUnion`: the labels of several teachers in one list, joined by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lr_dist.errors import TeacherError, listed, shown

# The names that transformers gives to labels whose names it was not told.
_UNNAMED = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class LabelUnion:
    """The union of the teachers' label sets.

    A label that several teachers know is one label of the union. Labels are joined by name, in the order in which the
    teachers name them.

    Attributes:
        teachers: the labels of each teacher, in the order of its outputs.

    Raises:
        TeacherError: no teacher, a teacher with fewer than two labels, a label that it names twice, labels without
            names, or labels of two teachers that differ only in how they are written.
    """

    teachers: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, labels: Mapping[str, Sequence[str]] | Sequence[Sequence[str]]) -> LabelUnion:
        """The union of each teacher's labels; a mapping gives the teachers names, which errors show."""
        by_name = labels if isinstance(labels, Mapping) else {f"teacher {i + 1}": each for i, each in enumerate(labels)}
        for name, each in by_name.items():
            check_labels(name, each)
        union = cls(tuple(tuple(each) for each in by_name.values()))
        _check_spelling(union.labels)
        return union

    def __post_init__(self) -> None:
        if not self.teachers:
            raise TeacherError("There is no teacher. Give at least two.")
        for number, labels in enumerate(self.teachers, start=1):
            check_labels(f"teacher {number}", labels)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the union's labels."""
        return tuple(dict.fromkeys(label for labels in self.teachers for label in labels))

    @cached_property
    def columns(self) -> tuple[tuple[int, ...], ...]:
        """For each teacher, the position in the union of each of its labels."""
        position = {label: index for index, label in enumerate(self.labels)}
        return tuple(tuple(position[label] for label in labels) for labels in self.teachers)

    def __len__(self) -> int:
        return len(self.labels)

    def padded(self, teacher: int, probabilities: Tensor) -> Tensor:
        """A teacher's probabilities [..., its labels] as [..., labels of the union], 0 for labels it does not know."""
        whole = probabilities.new_zeros(*probabilities.shape[:-1], len(self))
        return whole.index_copy(-1, self._index(self.columns[teacher], whole), probabilities)

    def summed(self, probabilities: Tensor) -> Tensor:
        """Probabilities [..., labels of all teachers one after the other] as [..., labels of the union].

        The columns of a label that several teachers know are summed.
        """
        whole = probabilities.new_zeros(*probabilities.shape[:-1], len(self))
        columns = [column for columns in self.columns for column in columns]
        return whole.index_add(-1, self._index(columns, whole), probabilities)

    def select(self, teacher: int, outputs: Tensor) -> Tensor:
        """Outputs [..., labels of the union] at the labels of one teacher, in its order."""
        return outputs.index_select(-1, self._index(self.columns[teacher], outputs))

    @staticmethod
    def _index(columns: Sequence[int], like: Tensor) -> Tensor:
        return torch.tensor(columns, dtype=torch.long, device=like.device)


def check_labels(teacher: str, labels: Sequence[str]) -> None:
    """Check that a teacher's labels can be joined with those of others.

    Raises:
        TeacherError: see `LabelUnion`.
    """
    if len(labels) < 2:
        raise TeacherError(
            f"{teacher} has {'no label' if not labels else f'one label, {shown(labels[0])}'}. A teacher needs at least "
            "two: with one there is nothing to be certain about (ln 1 = 0)."
        )
    wrong = [label for label in labels if not isinstance(label, str) or not label.strip()]
    if wrong or any(_UNNAMED.fullmatch(label) for label in labels):
        raise TeacherError(
            f"The labels of {teacher} have no names: {listed(labels)}. Labels are joined by name, so LABEL_0 of two "
            "teachers would be taken for the same. Write the names into id2label in its config.json, or pass labels."
        )
    twice = sorted({label for label in labels if list(labels).count(label) > 1})
    if twice:
        raise TeacherError(f"{teacher} names a label twice: {listed(twice)}. Every output needs a name of its own.")


def _check_spelling(labels: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(re.sub(r"[\s_-]+", "_", label.strip().casefold()), label)
        if other != label:
            raise TeacherError(
                f"The labels {shown(other)} and {shown(label)} differ only in how they are written. If they mean the "
                "same, write them in the same way (id2label in config.json); if not, give one another name."
            )
