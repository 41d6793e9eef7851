"""Export a study's trials as CSV, for a spreadsheet, or as evidence in a repository."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lr_dist.errors import InvalidTrialsError
from lr_dist.runs.atomic import write_text
from lr_dist.search.engine.slots import by_slot, settled
from lr_dist.search.trials.checked import checked_identity, checked_trials, space_of
from lr_dist.search.trials.summary import row_of

if TYPE_CHECKING:
    from optuna import Study

# OWASP, "CSV Injection": characters that start a formula, also after leading white space.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_csv(study: Study, path: str | Path) -> int:
    """Write one row for every settled slot, in the order of slots, and return the number of rows.

    Fixed parameters are columns like the searched ones, so each row defines a complete distribution.

    Raises:
        InvalidTrialsError: no trial has finished yet, or one was altered or damaged.
        StorageError: the study cannot be read.
        UnwritableFileError: the file cannot be written; an existing file is kept.
    """
    identity = checked_identity(study)
    fixed = {} if identity is None else space_of(study.study_name, identity).fixed
    rows = [{**row_of(t), **fixed} for _, t in sorted(by_slot(checked_trials(study)).items()) if settled(t)]
    if not rows:
        raise InvalidTrialsError(
            f"No trial of the study {study.study_name!r} has finished yet; there is nothing to export."
        )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, [_cell(column) for column in columns], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({_cell(key): _cell(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue(), instead="Give another --csv.")
    return len(rows)


def _cell(value: Any) -> Any:
    """Prefix text that a spreadsheet would execute as a formula with an apostrophe; numbers are not changed."""
    if not isinstance(value, str) or _reads_as_number(value):
        return value
    return f"'{value}" if value.startswith(_FORMULA) or value.lstrip().startswith(_FORMULA) else value


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
