"""A study's trials as CSV, for what Optuna's storage is too much: evidence in a repository, a spreadsheet."""

from __future__ import annotations

import contextlib
import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lr_dist.errors import InvalidTrialsError, UnwritableFileError
from lr_dist.search.checked import checked_identity, checked_trials, space_of
from lr_dist.search.slots import by_slot, settled
from lr_dist.search.summary import row_of

if TYPE_CHECKING:
    from optuna import Study


def write_csv(study: Study, path: str | Path) -> int:
    """Write one row for every settled slot, in the order of slots; returns how many.

    Fixed parameters are columns like the searched ones, so that a row is a whole distribution.

    Raises:
        InvalidTrialsError: no trial has ended yet, or one was altered or damaged.
        StorageError: the study cannot be read.
        UnwritableFileError: the file cannot be written; what was there is left as it was.
    """
    identity = checked_identity(study)
    fixed = {} if identity is None else space_of(study.study_name, identity).fixed
    rows = [{**row_of(t), **fixed} for _, t in sorted(by_slot(checked_trials(study)).items()) if settled(t)]
    if not rows:
        raise InvalidTrialsError(
            f"No trial of the study {study.study_name!r} has ended yet; there is nothing to write."
        )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path = Path(path).expanduser()
    written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        written.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)
        raise UnwritableFileError(
            f"{path} cannot be written: {error.strerror or error}. Give another --csv, or make room."
        ) from error
    return len(rows)
