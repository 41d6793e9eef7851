"""`Task`: the data of a task in three splits, checked when it is built.

Every source (GLUE, a user's files, generated tasks) is brought to the same columns: `text_a`, for pairs also `text_b`,
and `label` (an int64 class id, or a float64 target).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from lr_dist.errors import TaskDataError

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["classification", "regression"]

KINDS: tuple[str, ...] = ("classification", "regression")
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("pearson", "spearman"),
}
SPLITS: tuple[str, ...] = ("train", "dev", "validation")


@dataclass(frozen=True, eq=False)
class RawTask:
    """A source's data before `dev` is drawn, as the loaders return it.

    Attributes:
        name, kind, classes, metrics, note, head: As in `Task`.
        train, validation: Data sets with the canonical columns.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    train: Dataset
    validation: Dataset
    note: str = ""
    head: str = ""

    def __post_init__(self) -> None:
        splits = {"train": self.train, "validation": self.validation}
        check_data(self.name, self.kind, self.classes, self.metrics, splits)


@dataclass(frozen=True, eq=False)
class Task:
    """A task. Immutable, and checked when it is built (`check_task`).

    Attributes:
        name: Unique in a sequence.
        kind: "classification" or "regression".
        classes: Names of the classes, by id; empty for a regression.
        metrics: Names of the scores; the first is the primary one, which searches and accuracy matrices use.
        train: The rows for training.
        dev: Drawn from the source's train split, disjoint from `train`; for the scores of a search.
        validation: The source's validation split; for reported results.
        head: Name of the task's output layer; the two halves of a shift share one, and a user's task may share that of
            another task with the same classes.
        note: A remark for readers of its results, for example that it is a subset of the official data.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    train: Dataset
    dev: Dataset
    validation: Dataset
    head: str = ""
    note: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.head:
            object.__setattr__(self, "head", self.name)
        check_task(self)

    @property
    def num_texts(self) -> int:
        """1 for single texts, 2 for pairs."""
        return 2 if "text_b" in self.train.column_names else 1

    @property
    def num_outputs(self) -> int:
        """Number of outputs of the head: one for each class, or one for a regression."""
        return len(self.classes) if self.kind == "classification" else 1

    @property
    def primary(self) -> str:
        """Name of the primary score."""
        return self.metrics[0]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of kind, classes and the contents of all splits: the same on all machines."""
        digest = hashlib.sha256(json.dumps([self.kind, self.classes]).encode())
        for name in SPLITS:
            split: Dataset = getattr(self, name)
            for column in sorted(split.column_names):
                # JSON keeps the boundaries between texts, and writes a float in its shortest exact form.
                digest.update(json.dumps([name, column, column_values(split, column)]).encode())
        return digest.hexdigest()

    @property
    def identity(self) -> str:
        """The fingerprint, and the name of the head if it is one that the task's name does not tell."""
        # The halves of a shift are TASK@HALF and have the head TASK.
        told = self.head in (self.name, self.name.partition("@")[0])
        return self.fingerprint if told else f"{self.fingerprint} {self.head}"


def make_split(
    text_a: Sequence[str], text_b: Sequence[str] | None, labels: Sequence[int] | Sequence[float], kind: Kind
) -> Dataset:
    """A data set with the canonical columns, held in memory.

    Args:
        text_a: First (or only) texts.
        text_b: Second texts, or None.
        labels: Class ids, or targets.
        kind: Determines the type of the label column.
    """
    import pyarrow as pa
    from datasets import Dataset

    columns = {"text_a": pa.array(text_a, pa.large_string())}
    if text_b is not None:
        columns["text_b"] = pa.array(text_b, pa.large_string())
    columns["label"] = pa.array(labels, pa.int64() if kind == "classification" else pa.float64())
    return Dataset(pa.table(columns))


def column_values(split: Dataset, column: str) -> list[Any]:
    """A column as a Python list, independent of the data set's indices and format."""
    return arrow_column(split, column).to_pylist()


def arrow_column(split: Dataset, column: str) -> Any:
    """A column as a `pyarrow.ChunkedArray`, independent of the data set's indices and format."""
    return split.select_columns([column]).with_format("arrow")[:].column(column)


def take_rows(split: Dataset, rows: Sequence[int]) -> Dataset:
    """The given rows, in this order, as a new data set (without indices into the old one)."""
    import pyarrow as pa
    from datasets import Dataset

    return Dataset(split.with_format("arrow")[:].take(pa.array(rows, pa.int64())))


def text_keys(split: Dataset) -> list[tuple[str, ...]]:
    """A key for the text or the pair of texts of each row, without the label."""
    columns = [column for column in ("text_a", "text_b") if column in split.column_names]
    return list(zip(*(column_values(split, column) for column in columns), strict=True))


def check_task(task: Task) -> None:
    """Checks that a task can be learned and scored.

    Raises:
        TaskDataError: Wrong columns, empty texts, missing, NaN or unknown labels, only one class in train, a
            label in dev or validation that is not in train; the message names split, row and value.
    """
    splits = {name: getattr(task, name) for name in SPLITS}
    check_data(task.name, task.kind, task.classes, task.metrics, splits)


def check_data(
    name: str, kind: str, classes: tuple[str, ...], metrics: tuple[str, ...], splits: dict[str, Dataset]
) -> None:
    """`check_task` for any set of splits that holds "train".

    Raises:
        TaskDataError: See `check_task`.
    """
    _check_description(name, kind, classes, metrics)
    columns = splits["train"].column_names
    for split_name, split in splits.items():
        where = f"task {name!r}, {split_name}"
        allowed = ({"text_a", "label"}, {"text_a", "text_b", "label"})
        if set(split.column_names) not in allowed or set(split.column_names) != set(columns):
            raise TaskDataError(
                f"{where}: columns {split.column_names}; every split needs text_a, label and, for pairs, text_b"
            )
        if len(split) == 0:
            raise TaskDataError(f"{where}: there are no rows; give at least one example a class")
        _check_texts(where, split)
        _check_labels(where, split, kind, classes)
    _check_coverage(name, kind, classes, splits)


def _check_description(name: str, kind: str, classes: tuple[str, ...], metrics: tuple[str, ...]) -> None:
    if kind not in KINDS:
        raise TaskDataError(f"task {name!r}: kind {kind!r}; it must be one of {', '.join(KINDS)}")
    if kind == "regression" and classes:
        raise TaskDataError(f"task {name!r}: a regression has no classes, got {list(classes)}")
    if len(set(classes)) != len(classes):
        raise TaskDataError(f"task {name!r}: classes {list(classes)} name one class twice")
    if kind == "classification" and len(classes) < 2:
        raise TaskDataError(
            f"task {name!r}: the only class in train is {list(classes)}; at least two are needed to learn anything"
        )
    wrong = [metric for metric in metrics if metric not in METRICS[kind]]
    if wrong or not metrics:
        raise TaskDataError(f"task {name!r}: metrics {list(metrics)}; for a {kind}: {', '.join(METRICS[kind])}")


def _check_texts(where: str, split: Dataset) -> None:
    import pyarrow.compute as pc

    for column in split.column_names:
        if column == "label":
            continue
        texts = arrow_column(split, column)
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True)
        count = pc.sum(blank).as_py()
        if count:
            row = pc.index(blank, True).as_py()
            raise TaskDataError(
                f"{where}, row {row} (counted from 0): {column} is {texts[row].as_py()!r}; {count} row(s) have an "
                "empty text: remove or fill them"
            )


def _check_labels(where: str, split: Dataset, kind: str, classes: tuple[str, ...]) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    labels = arrow_column(split, "label")
    wanted = pa.int64() if kind == "classification" else pa.float64()
    if labels.type != wanted:
        raise TaskDataError(f"{where}: label is {labels.type}, a {kind} needs {wanted}")
    if kind == "classification":
        bad = pc.or_(pc.less(labels, 0), pc.greater_equal(labels, len(classes)))
        rule = f"class ids are 0 to {len(classes) - 1}"
    else:
        bad = pc.invert(pc.is_finite(labels))
        rule = "a target is a finite number"
    bad = pc.fill_null(bad, True)
    count = pc.sum(bad).as_py()
    if count:
        row = pc.index(bad, True).as_py()
        raise TaskDataError(
            f"{where}, row {row} (counted from 0): label is {labels[row].as_py()!r}, but {rule}; {count} row(s) "
            "have such labels: remove them, or label them"
        )


def _check_coverage(name: str, kind: str, classes: tuple[str, ...], splits: dict[str, Dataset]) -> None:
    """Check that train has every label of the other splits, and more than one."""
    seen = set(column_values(splits["train"], "label"))
    if len(seen) < 2:
        shown = [classes[value] if kind == "classification" else value for value in seen]
        raise TaskDataError(
            f"task {name!r}, train: every label is {shown[0]!r}; at least two different ones are needed to learn"
        )
    if kind == "regression":
        return
    for split_name in (other for other in splits if other != "train"):
        for row, value in enumerate(column_values(splits[split_name], "label")):
            if value not in seen:
                raise TaskDataError(
                    f"task {name!r}, {split_name}, row {row} (counted from 0): label {classes[value]!r} never occurs "
                    f"in train ({', '.join(classes[known] for known in sorted(seen))}); add examples of it to train, "
                    f"or remove these rows from {split_name}"
                )
