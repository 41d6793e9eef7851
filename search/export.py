"""A study's trials as CSV, for what Optuna's storage is too much: evidence in a repository, a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from lr_dist.errors import InvalidTrialsError
from lr_dist.search.slots import by_slot, settled
from lr_dist.search.summary import row_of

if TYPE_CHECKING:
    from optuna import Study


def write_csv(study: Study, path: str | Path) -> int:
    """Write one row for every settled slot, in the order of slots; returns how many.

    Raises:
        InvalidTrialsError: no trial has ended yet.
    """
    rows = [row_of(t) for _, t in sorted(by_slot(study.get_trials(deepcopy=False)).items()) if settled(t)]
    if not rows:
        raise InvalidTrialsError(
            f"No trial of the study {study.study_name!r} has ended yet; there is nothing to write."
        )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)
