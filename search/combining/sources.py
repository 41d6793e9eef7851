"""Sources of finished trials: a study in its storage, a CSV file of `search export`, or the authors' CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lr_dist.errors import InvalidTrialsError, UnreadableFileError
from lr_dist.reading import expanded
from lr_dist.search.combining.combine import ScoredRates
from lr_dist.search.combining.kenneweg2022 import read_trials
from lr_dist.search.space import Space
from lr_dist.search.space.space import is_flat
from lr_dist.search.trials.checked import checked_identity, space_of
from lr_dist.search.trials.summary import complete_trials, feasible

if TYPE_CHECKING:
    from optuna import Study

_NOT_RATES = ("trial", "slot", "label", "state", "seconds", "value", "reason")


@dataclass(frozen=True)
class Source:
    """The complete trials of one study, in the order in which they were run.

    Attributes:
        name: the task sequences, e.g. `sst2>qqp`; `combine` calls this a pair.
        trials: scores and parameters.
        space: makes a distribution from parameters.
        model: the model of the trials; None if the file does not name it.
        seeds: number of seeds per trial; None if the file does not say.
    """

    name: str
    trials: tuple[ScoredRates, ...]
    space: Space
    model: str | None = None
    seeds: int | None = None

    def without_flat(self) -> Source:
        """The same source without flat trials (one rate everywhere)."""
        searched = self.space.searched
        kept = tuple(
            t
            for t in self.trials
            if not is_flat(self.space.distribution({name: t.rates[name] for name in searched if name in t.rates}))
        )
        return Source(self.name, kept, self.space, self.model, self.seeds)


def from_study(study: Study) -> Source:
    """The complete trials of a study that satisfy its constraints.

    Raises:
        InvalidTrialsError: not a study of `lr-dist search`, several objectives, no complete trial, or a study that was
            altered or damaged.
        StorageError: it cannot be read.
    """
    identity = checked_identity(study)
    if identity is None:
        raise InvalidTrialsError(f"{study.study_name!r} is not a study of `lr-dist search`.")
    if len(study.directions) > 1:
        raise InvalidTrialsError(
            f"{study.study_name!r} has several objectives, so its trials cannot be ranked. Search with a single one."
        )
    space = space_of(study.study_name, identity)
    trials = [
        ScoredRates(t.values[0], {**{n: v for n, v in t.params.items() if n in space.names}, **space.fixed})
        for t in complete_trials(study)
        if feasible(t)
    ]
    if not trials:
        raise InvalidTrialsError(f"{study.study_name!r} has no complete trial yet that satisfies its constraints.")
    name = " + ".join(">".join(str(task) for task in sequence) for sequence in identity["sequences"])
    return Source(name, tuple(trials), space, identity.get("start", identity["model"]), len(identity["seeds"]))


def from_csv(path: str | Path, setting: str | None = None) -> list[Source]:
    """The sources in a CSV file: one for a file of `search export`, one per pair for the authors' published trials.

    Args:
        path: the file.
        setting: use only this experiment of the authors' trials, `taskshift` or `datashift`.

    Raises:
        UnreadableFileError: the file cannot be read.
        InvalidTrialsError: it has neither format, or no complete trial.
    """
    path = expanded(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read: {error.strerror}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidTrialsError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if "pair_first" in columns:
        return _published(path, setting)
    return [_exported(path, rows, columns)]


def _published(path: Path, setting: str | None) -> list[Source]:
    pairs: dict[str, list[ScoredRates]] = {}
    for row in read_trials(path):
        if setting is not None and row.data_shift != (setting == "datashift"):
            continue
        pairs.setdefault(row.pair, []).append(row.trial)
    return [Source(pair, tuple(trials), Space("grouped"), "bert-base-uncased", 1) for pair, trials in pairs.items()]


def _exported(path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str]) -> Source:
    names = [c for c in columns if c not in _NOT_RATES and " " not in c]
    space = Space.with_names(names)
    if space is None or "value" not in columns:
        raise InvalidTrialsError(
            f"{path} is not a file of trials: it needs the columns of `lr-dist search export`, or of the authors' file."
        )
    trials = []
    for number, row in enumerate(rows, start=2):
        if row["state"] != "complete":
            continue
        try:
            trials.append(ScoredRates(float(row["value"]), {name: float(row[name]) for name in names}))
        except (TypeError, ValueError) as error:
            raise InvalidTrialsError(f"{path}, line {number}: {error}") from error
    if not trials:
        raise InvalidTrialsError(f"{path} has no complete trial.")
    pairs = dict.fromkeys(column.rsplit(" ", 1)[0] for column in columns if column.endswith(" p_o"))
    return Source(" + ".join(pairs) or path.stem, tuple(trials), space)
