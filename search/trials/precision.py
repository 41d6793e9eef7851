"""The precision of a study: one that is named holds for all of its workers; with `auto` each chooses for its machine.

Trials in two precisions are of one study all the same: their scores differ by less than two seeds do, and a worker that
had to follow a bf16 study on a processor without bf16 would be of no use. So it is said, by name, and recorded in
each trial. The flat rates that trials are measured by are tuned for each precision.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lr_dist.errors import MixedHardwareWarning
from lr_dist.runs.precision import AUTO, PRECISIONS
from lr_dist.search.trials.config import SearchConfig
from lr_dist.search.trials.record import TrialRecord
from lr_dist.search.trials.study import IDENTITY

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial


def in_precision_of_study(storage: BaseStorage, name: str, config: SearchConfig) -> SearchConfig:
    """`config`, in the precision that the study names where `auto` is asked for and the study is there.

    So a study that was begun before there was `auto`, or with a precision, is continued without naming it again.
    """
    if config.settings.precision != AUTO:
        return config
    try:
        identity = storage.get_study_user_attrs(storage.get_study_id_from_name(name)).get(IDENTITY)
    except KeyError:
        return config
    settings = identity.get("settings") if isinstance(identity, dict) else None
    named = settings.get("precision") if isinstance(settings, dict) else None
    return replace(config, settings=replace(config.settings, precision=named)) if named in PRECISIONS else config


def precisions(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """Precision -> how many of these trials were begun in it; those that do not say are left out."""
    begun_in = (TrialRecord.of(trial).precision for trial in trials)
    return dict(Counter(precision for precision in begun_in if precision in PRECISIONS).most_common())


def mixed(counts: Mapping[str, int]) -> str:
    """What is to be said of a study with trials in several precisions."""
    trials = ", ".join(
        f"{count} trial(s) in {name}" if count else f"this machine chose {name}" for name, count in counts.items()
    )
    return (
        f"the trials differ in precision ({trials}): with `auto` each machine chose what it is faster in. Their scores "
        "may differ for that alone; give --precision and another --study to have one."
    )


def warn_of_mixed(study: Study, chosen: str | None = None) -> None:
    """Warn where the trials of a study differ in precision, or will: `chosen` is what this machine trains in.

    Warns:
        MixedHardwareWarning: they do.
    """
    counts = precisions(study.get_trials(deepcopy=False))
    if chosen is not None:
        counts.setdefault(chosen, 0)
    if len(counts) > 1:
        warnings.warn(f"In the study {study.study_name!r} {mixed(counts)}", MixedHardwareWarning, stacklevel=3)
