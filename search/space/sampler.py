"""The sampler of a study: TPE, with a seed for each slot."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from lr_dist.search.engine.optuna_private import trial_id
from lr_dist.search.engine.slots import SLOT


def tpe(seed: int | None) -> TPESampler:
    """The sampler of every search. Options are explicit because defaults have changed between versions of Optuna.

    Running trials count as bad (constant liar), so that parallel workers do not sample the same point. It is always on,
    because a worker cannot know whether there are others, on this machine or elsewhere.
    """
    return TPESampler(multivariate=True, constant_liar=True, seed=seed)


class SlotSampler(BaseSampler):
    """TPE with a separate seed for every slot, derived from the study's seed.

    With one generator per worker, every start of the command would sample the same values again, and so would two
    workers.

    Args:
        seed: the study's.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._of_trial: tuple[int, TPESampler] | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler(trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler(trial).after_trial(study, trial, state, values)

    def _sampler(self, trial: FrozenTrial) -> TPESampler:
        key = trial_id(trial)
        if self._of_trial is None or self._of_trial[0] != key:
            slot = trial.user_attrs.get(SLOT, trial.number)
            digest = hashlib.sha256(f"{self._seed} {slot}".encode()).digest()
            self._of_trial = (key, tpe(int.from_bytes(digest[:4], "big")))
        return self._of_trial[1]
