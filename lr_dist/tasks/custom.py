"""A user's own task: a folder (or a hub data set) with a train and a validation split.

Written `my=PATH`, or as a mapping with its columns: `{name: my, path: PATH, text: [question, answer], label: good}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lr_dist.errors import PATH, ConfigurationError, TaskDataError, shown
from lr_dist.reading import expanded, is_file, is_folder
from lr_dist.tasks.files import SUFFIXES, column_names, named_classes, read_table
from lr_dist.tasks.labels import read_labels
from lr_dist.tasks.task import KINDS, RawTask, make_split

if TYPE_CHECKING:
    import pyarrow as pa

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_KEYS = ("name", "path", "text", "label", "kind", "metrics", "subset", "head")
# Tried in this order of kinds; two matches within a kind are ambiguous.
_PAIRS = (
    ("text_a", "text_b"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"), ("question", "answer"), ("text1", "text2"),
)  # fmt: skip
_SINGLES = ("text", "sentence", "text_a", "review", "content", "document", "tweet", "comment")
_LABELS = ("label", "labels", "target", "class", "score")


@dataclass(frozen=True)
class CustomSpec:
    """The location and the columns of a user's task.

    Attributes:
        name: Name of the task.
        path: A folder with train.* and validation.*, or the id of a hub data set.
        text: One or two text columns; if empty, they are found by their usual names.
        label: The label's column; if empty, it is found by its usual names.
        kind: "classification" or "regression"; if empty, numbers with a fraction are a regression.
        metrics: Scores, the primary one first; if empty, accuracy, or Pearson and Spearman.
        subset: Configuration of a hub data set.
        head: Name of the output layer; empty for one of its own. The name of a task of the sequence that has the same
            classes makes them share one.
    """

    name: str
    path: str
    text: tuple[str, ...] = ()
    label: str = ""
    kind: str = ""
    metrics: tuple[str, ...] = ()
    subset: str = ""
    head: str = ""


def parse_custom(spec: str | Mapping[str, Any]) -> CustomSpec:
    """Reads `my=PATH` or a mapping.

    Raises:
        ConfigurationError: Unknown or missing keys, a name with other characters than letters, digits and `_.-`.
    """
    if isinstance(spec, str):
        name, _, path = spec.partition("=")
        spec = {"name": name.strip(), "path": path.strip()}
    unknown = [str(key) for key in spec if key not in _KEYS]
    if unknown:
        raise ConfigurationError(f"task {dict(spec)}: unknown key {', '.join(unknown)}; known: {', '.join(_KEYS)}")
    for key in ("name", "path"):
        if not isinstance(spec.get(key), str | Path) or not str(spec[key]):
            raise ConfigurationError(f"task {dict(spec)}: {key} is missing; your own task needs name and path")
    name = str(spec["name"])
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"task name {name!r}: use letters, digits and _ . - only")
    kind = str(spec.get("kind") or "")
    if kind and kind not in KINDS:
        raise ConfigurationError(f"task {name!r}: kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    text = _strings(name, "text", spec.get("text"))
    if len(text) > 2 or len(set(text)) != len(text):
        raise ConfigurationError(f"task {name!r}: text is {list(text)}; name one column, or two different ones")
    return CustomSpec(
        name=name,
        path=_with_variables(str(spec["name"]), str(spec["path"])),
        text=text,
        label=str(spec.get("label") or ""),
        kind=kind,
        metrics=_strings(name, "metrics", spec.get("metrics")),
        subset=str(spec.get("subset") or ""),
        head=str(spec.get("head") or ""),
    )


def _with_variables(name: str, path: str) -> str:
    """The path with environment variables replaced, as in `$LR_DIST_DATA/clinc150/banking`."""
    whole = os.path.expandvars(path)
    missing = re.search(r"\$\{?([A-Z_][A-Z0-9_]*)", whole)
    if missing and missing[1] not in os.environ:
        raise ConfigurationError(
            f"task {name!r}: the environment variable {missing[1]} in {shown(path, PATH)} is not set; set it, or write "
            "the path out."
        )
    return whole


def load_custom(spec: CustomSpec) -> RawTask:
    """Loads a user's task.

    The classes are those in train, in numerical or alphabetical order.

    Raises:
        TaskDataError: No such folder or split, columns that are missing or cannot be guessed, labels that are
            missing, not of one kind, or new in validation, and what `check_data` refuses.
    """
    tables = _read(spec)
    text, label = _columns(spec, tables["train"].column_names)
    for split, table in tables.items():
        missing = [column for column in (*text, label) if column not in table.column_names]
        if missing:
            raise TaskDataError(
                f"task {spec.name!r}, {split}: no column {', '.join(missing)}; found: "
                f"{column_names(table.column_names)}"
            )
        if not len(table):
            raise TaskDataError(f"task {spec.name!r}, {split}: there are no rows in {spec.path}")
    try:
        labels = read_labels(spec.name, {split: table.column(label) for split, table in tables.items()}, spec.kind)
    # Values that Python cannot represent: dates before the year 1, texts that are not UTF-8, targets above 1e308.
    except (ValueError, OverflowError, TypeError, NotImplementedError) as error:
        if isinstance(error, TaskDataError):
            raise
        raise TaskDataError(
            f"task {spec.name!r}: the column {label!r} holds no labels: {shown(str(error), 300)}"
        ) from error
    splits = {}
    for split, table in tables.items():
        texts = [_texts(spec.name, split, column, table.column(column)) for column in text]
        second = texts[1] if len(texts) == 2 else None
        splits[split] = make_split(texts[0], second, labels.values[split], labels.kind)
    default = ("accuracy",) if labels.kind == "classification" else ("pearson", "spearman")
    return RawTask(
        name=spec.name,
        kind=labels.kind,
        classes=labels.classes,
        metrics=spec.metrics or default,
        note=f"from {spec.path}",
        head=spec.head,
        **splits,
    )


def _read(spec: CustomSpec) -> dict[str, pa.Table]:
    folder = expanded(spec.path)
    if is_folder(folder):
        return {split: read_table(folder, split) for split in ("train", "validation")}
    if is_file(folder) or not _HUB_ID.fullmatch(spec.path):
        raise TaskDataError(
            f"task {spec.name!r}: {shown(spec.path, PATH)} is not a folder; give one that holds train and validation "
            f"as {', '.join(SUFFIXES)}, or the id of a hub data set (OWNER/NAME)"
        )
    return _read_hub(spec)


def _read_hub(spec: CustomSpec) -> dict[str, pa.Table]:
    import datasets

    try:
        source = datasets.load_dataset(spec.path, spec.subset or None)
    except Exception as error:  # the hub client raises many kinds: offline, timeouts, HTTP errors
        raise TaskDataError(
            f"task {spec.name!r}: there is no folder {spec.path!r}, and as a hub data set it cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    missing = [split for split in ("train", "validation") if split not in source]
    if missing:
        raise TaskDataError(
            f"task {spec.name!r}: the hub data set {spec.path!r} has no split {', '.join(missing)}; found: "
            f"{', '.join(map(str, source))}. Save the rows as train and validation files and give their folder"
        )
    return {split: named_classes(source[split]) for split in ("train", "validation")}


def _columns(spec: CustomSpec, columns: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The text columns and the label's column, as named or by their usual names."""
    label = spec.label or _guess_label(spec, columns)
    if spec.text:
        return spec.text, label
    pairs = [pair for pair in _PAIRS if set(pair) <= set(columns) - {label}]
    used = {column for pair in pairs for column in pair}
    singles = [(column,) for column in _SINGLES if column in columns and column not in used and column != label]
    candidates: list[tuple[str, ...]] = [*pairs, *singles]
    if len(candidates) != 1:
        why = "none has a usual name" if not candidates else f"several fit: {', '.join(map('+'.join, candidates))}"
        raise TaskDataError(
            f"task {spec.name!r}: which columns are text? {why}. Found: {column_names(columns)}. Name them: "
            f"{{name: {spec.name}, path: {spec.path}, text: [COLUMN], label: COLUMN}}"
        )
    return candidates[0], label


def _guess_label(spec: CustomSpec, columns: Sequence[str]) -> str:
    candidates = [column for column in _LABELS if column in columns]
    if len(candidates) != 1:
        why = f"several fit: {', '.join(candidates)}" if candidates else "none has a usual name"
        raise TaskDataError(
            f"task {spec.name!r}: which column is the label? {why}. Found: {column_names(columns)}. Name it: "
            f"{{name: {spec.name}, path: {spec.path}, text: [COLUMN], label: COLUMN}}"
        )
    return candidates[0]


def _texts(name: str, split: str, column: str, values: Any) -> list[str]:
    import pyarrow as pa

    kind = values.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise TaskDataError(f"task {name!r}, {split}: column {column!r} holds {values.type}, not text")
    try:
        texts: list[str] = values.to_pylist()
    except ValueError as error:
        raise TaskDataError(f"task {name!r}, {split}: column {column!r} holds texts that are not UTF-8") from error
    return texts


def _strings(name: str, key: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, Sequence) or not all(isinstance(item, str) and item for item in values):
        raise ConfigurationError(f"task {name!r}: {key} is {value!r}; give a name, or a list of names")
    return tuple(values)
