"""Reads a user's split from parquet, CSV, TSV or JSON lines, with errors that name file and line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lr_dist.errors import TaskDataError, shown
from lr_dist.reading import is_file

if TYPE_CHECKING:
    import pyarrow as pa

_NAME = re.compile(r"[A-Za-z_][\w -]{0,39}")
SUFFIXES: tuple[str, ...] = (".parquet", ".csv", ".tsv", ".jsonl")


def read_table(folder: Path, split: str) -> pa.Table:
    """Reads `folder/split.SUFFIX`, of which exactly one must exist.

    CSV follows RFC 4180 (a field in double quotes may hold commas, quotes and line ends). TSV has no quoting: a line is
    a row and a quote is a letter, as in the published GLUE files. Both need a header, and every value is read as text.

    Raises:
        TaskDataError: No file or several, an invalid line, or a header that names a column twice.
    """
    paths = [path for suffix in SUFFIXES if is_file(path := folder / f"{split}{suffix}")]
    if len(paths) != 1:
        found = ", ".join(path.name for path in paths) or "none of them"
        wanted = ", ".join(f"{split}{suffix}" for suffix in SUFFIXES)
        raise TaskDataError(f"{folder}: needs exactly one of {wanted}; found {found}")
    path = paths[0]
    try:
        match path.suffix:
            case ".parquet":
                return _read_parquet(path)
            case ".jsonl":
                return _read_jsonl(path)
            case _:
                return _read_csv(path)
    except UnicodeDecodeError as error:
        raise TaskDataError(f"{path}: is not UTF-8 text: {error}; convert it") from error
    except OSError as error:
        raise TaskDataError(f"{path}: cannot be read: {error}") from error


def named_classes(split: Any) -> pa.Table:
    """A data set's table, with ClassLabel ids replaced by the classes' names (a hidden label, -1, stays empty)."""
    import datasets
    import pyarrow as pa

    table = split.with_format("arrow")[:]
    for column, feature in split.features.items():
        if isinstance(feature, datasets.ClassLabel):
            ids = table.column(column).to_pylist()
            names = [None if value is None or value < 0 else feature.int2str(value) for value in ids]
            table = table.set_column(table.column_names.index(column), column, pa.array(names, pa.large_string()))
    return table


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    try:
        table = pq.read_table(path)
        # Finds texts that are not UTF-8 and offsets beyond the file now, not when they are used.
        table.validate(full=True)
        return named_classes(Dataset(table))
    # The datasets library reads settings from the file, and may raise anything for those of other programs.
    except (Exception, pa.ArrowException) as error:
        raise TaskDataError(
            f"{path}: cannot be read as parquet: {type(error).__name__}: {shown(str(error), 300)}"
        ) from error


def _read_jsonl(path: Path) -> pa.Table:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            # ValueError: a number of more digits than Python reads; RecursionError: nested too deep.
            except (ValueError, RecursionError) as error:
                raise TaskDataError(f"{path}, line {number}: is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise TaskDataError(f"{path}, line {number}: is {_KINDS[type(row)]}; every line is one object")
            rows.append(row)
    # A key that only some rows have is a missing value in the others.
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return _table(path, {column: [row.get(column) for row in rows] for column in columns})


def _read_csv(path: Path) -> pa.Table:
    # newline="" leaves line ends inside quotes to the csv module, as its documentation asks.
    with path.open(encoding="utf-8-sig", newline="") as lines:
        if path.suffix == ".tsv":
            reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            if not header or len(set(header)) != len(header):
                raise TaskDataError(
                    f"{path}: the header is {column_names(header)}; the first line must name each column once"
                )
            rows: list[list[str]] = []
            for row in reader:
                if not row:
                    continue  # an empty line, as editors leave at the end
                if len(row) != len(header):
                    raise TaskDataError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, but the header has {len(header)} "
                        f"({column_names(header)})"
                    )
                rows.append(row)
        except csv.Error as error:
            raise TaskDataError(f"{path}, line {reader.line_num}: {error}") from error
    return _table(path, {column: [row[index] for row in rows] for index, column in enumerate(header)})


def _table(path: Path, columns: dict[str, list[Any]]) -> pa.Table:
    import pyarrow as pa

    arrays = {}
    for column, values in columns.items():
        try:
            arrays[column] = pa.array(values)
            column.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TaskDataError(
                f"{path}: column {shown(column)} holds a lone surrogate (\\ud800 to \\udfff), which is not valid text"
            ) from error
        except (pa.ArrowException, TypeError, OverflowError, ValueError, RecursionError) as error:
            raise TaskDataError(
                f"{path}: column {shown(column)} has values of different types: {shown(str(error), 300)}"
            ) from error
    try:
        return pa.table(arrays)
    except (pa.ArrowException, ValueError) as error:
        raise TaskDataError(f"{path}: cannot be read as a table: {shown(str(error), 300)}") from error


_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}


def column_names(names: Sequence[str]) -> str:
    """The names of columns for a message; if they do not look like names, only their number.

    A file given by mistake, such as a key or a list of users, must not be quoted in a message.
    """
    if len(names) > 1 and all(_NAME.fullmatch(name) for name in names):
        return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"{len(names)} column(s) whose names are not shown, because they may be content"
