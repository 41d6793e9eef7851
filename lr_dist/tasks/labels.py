"""Reads a user's labels: class names, class numbers, or targets of a regression."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lr_dist.errors import TaskDataError
from lr_dist.errors import shown as quoted
from lr_dist.tasks.task import Kind


@dataclass(frozen=True)
class Labels:
    """Labels of all splits.

    Attributes:
        kind: "classification" or "regression".
        classes: Names by id; empty for a regression.
        values: By split: class ids, or targets.
    """

    kind: Kind
    classes: tuple[str, ...]
    values: dict[str, list[Any]]


def read_labels(name: str, columns: dict[str, Any], kind: str = "") -> Labels:
    """Reads the label columns of a task's splits.

    Texts are class names, unless all of them are numbers (as in CSV). Whole numbers and booleans are classes. If any
    number is written with a fraction or an exponent, all are targets of a regression.

    Args:
        name: Name of the task, for messages.
        columns: Arrow column by split, "train" among them.
        kind: "classification" or "regression" to override this; "" to infer it from the values.

    Raises:
        TaskDataError: A missing label, mixed kinds, a regression on names, or a class that is not in train; the message
            names split, row and value.
    """
    raw = {split: column.to_pylist() for split, column in columns.items()}
    for split, values in raw.items():
        _refuse_missing(name, split, values)
    everything = [value for values in raw.values() for value in values]
    number = _number_type(everything)
    if (kind or ("regression" if number is float else "classification")) == "regression":
        if number is None:
            _refuse_names(name, raw)
        return Labels("regression", (), {split: [float(value) for value in values] for split, values in raw.items()})
    if number is float and all(float(value).is_integer() for value in everything):
        number = int
        raw = {split: [int(float(value)) for value in values] for split, values in raw.items()}
    convert = int if number is int else str
    keys = {split: [convert(value) for value in values] for split, values in raw.items()}
    return _classes(name, keys)


def _refuse_missing(name: str, split: str, values: list[Any]) -> None:
    for row, value in enumerate(values):
        empty = isinstance(value, str) and not value.strip()
        if value is None or empty or (isinstance(value, float) and not math.isfinite(value)):
            raise TaskDataError(
                f"task {name!r}, {split}, row {row} (counted from 0): label is {quoted(value)}; every row needs one: "
                "remove the row, or label it"
            )


def _number_type(values: list[Any]) -> type | None:
    """int or float if all values are such numbers, or texts of such numbers; None for names."""
    # A boolean is an int in Python, but names a class here.
    if any(isinstance(value, bool) or not isinstance(value, int | float | str) for value in values):
        return None
    result: type = int
    for value in values:
        if isinstance(value, float):
            result = float
        elif isinstance(value, str):
            try:
                int(value)
            except ValueError:
                try:
                    if not math.isfinite(float(value)):
                        return None  # "nan" and "inf" are names here
                except ValueError:
                    return None
                result = float
    return result


def _refuse_names(name: str, raw: dict[str, list[Any]]) -> None:
    for split, values in raw.items():
        for row, value in enumerate(values):
            if _number_type([value]) is None:
                raise TaskDataError(
                    f"task {name!r}, {split}, row {row} (counted from 0): label is {quoted(value)}, but a regression "
                    "needs numbers; set kind: classification, or name another label column"
                )


def _classes(name: str, keys: dict[str, list[Any]]) -> Labels:
    classes = sorted(set(keys["train"]))
    ids = {key: index for index, key in enumerate(classes)}
    for split, values in keys.items():
        for row, value in enumerate(values):
            if value not in ids:
                shown = ", ".join(quoted(name).strip("'") for name in classes[:20]) + (
                    ", ..." if len(classes) > 20 else ""
                )
                raise TaskDataError(
                    f"task {name!r}, {split}, row {row} (counted from 0): label {quoted(value)} never occurs in train "
                    f"({shown}); add examples of it to train, remove these rows, or set kind: regression if labels "
                    "are amounts"
                )
    coded = {split: [ids[key] for key in column] for split, column in keys.items()}
    return Labels("classification", tuple(map(str, classes)), coded)
