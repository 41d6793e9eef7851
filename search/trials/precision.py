"""The precision of a study: one for all workers if it is given; with `auto`, each worker chooses for its machine.

One study may contain trials of two precisions. Their scores differ by less than those of two seeds, and a worker that
had to run a bf16 study on a processor without bf16 would be uselessly slow. A warning names the precisions, and each
trial records its own. The flat reference rates are tuned separately for each precision.
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
    """Replace `auto` in `config` by the precision of an existing study that was started with a fixed one.

    So a study with a fixed precision, or one from before `auto` existed, continues without giving it again.
    """
    if config.settings.precision != AUTO:
        return config
    try:
        identity = storage.get_study_user_attrs(storage.get_study_id_from_name(name)).get(IDENTITY)
    except KeyError:
        return config
    settings = identity.get("settings") if isinstance(identity, dict) else None
    stored = settings.get("precision") if isinstance(settings, dict) else None
    return replace(config, settings=replace(config.settings, precision=stored)) if stored in PRECISIONS else config


def precisions(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """Precision -> number of trials that were started in it; trials without a recorded precision are left out."""
    started_in = (TrialRecord.of(trial).precision for trial in trials)
    return dict(Counter(precision for precision in started_in if precision in PRECISIONS).most_common())


def mixed(counts: Mapping[str, int]) -> str:
    """The message about a study with trials in several precisions."""
    trials = ", ".join(
        f"{count} trial(s) in {name}" if count else f"this machine chose {name}" for name, count in counts.items()
    )
    return (
        f"the trials differ in precision ({trials}): with `auto`, each machine chooses the one that is faster there. "
        "This alone can change scores; for a single precision, give --precision and another --study."
    )


def warn_of_mixed(study: Study, chosen: str | None = None) -> None:
    """Warn if the trials of a study differ in precision.

    Args:
        study: the study.
        chosen: the precision of this machine, which counts even before its first trial.

    Warns:
        MixedHardwareWarning: there are trials of several precisions.
    """
    counts = precisions(study.get_trials(deepcopy=False))
    if chosen is not None:
        counts.setdefault(chosen, 0)
    if len(counts) > 1:
        warnings.warn(f"In the study {study.study_name!r} {mixed(counts)}", MixedHardwareWarning, stacklevel=3)
