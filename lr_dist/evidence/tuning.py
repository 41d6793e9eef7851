"""Choose each arm's settings by its scores on the search sequences, or take those of another evidence run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lr_dist.errors import ConfigurationError, InvalidResultError, shown
from lr_dist.evidence.config import Contender, EvidenceConfig
from lr_dist.sequence.result import ComparisonResult, read_json


@dataclass(frozen=True)
class Choice:
    """An arm's chosen settings.

    Attributes:
        name: of the arm.
        settings: the chosen ones.
        text: the arm with them.
        score: mean over sequences and seeds of the average accuracy on dev.
        tried: number of combinations that were tried.
        diverged: number of combinations that diverged in some run, which are not chosen.
    """

    name: str
    settings: Mapping[str, Any]
    text: str
    score: float
    tried: int
    diverged: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose(config: EvidenceConfig, results: Sequence[ComparisonResult]) -> dict[str, Choice]:
    """The settings with the highest average accuracy, mean over the sequences, each the mean over its seeds.

    For two tasks this is (p_o + p_s) / 2: neither forgetting nor learning nothing is rewarded.

    Raises:
        InvalidResultError: an arm of which every combination diverged, or a result that lacks runs.
    """
    return {name: _choose_one(config, arm, results) for name, arm in config.arms().items()}


def taken_choices(arms: Mapping[str, Contender], path: Path) -> dict[str, Choice]:
    """The settings that another evidence run chose for arms of the same names and texts.

    Raises:
        ConfigurationError: the file has no choice for an arm, or one for another text.
        InvalidResultError: the file cannot be read.
    """
    try:
        found = {name: Choice(**entry) for name, entry in read_json(path)["choices"].items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise InvalidResultError(f"{path} is not the chosen.json of an evidence run.") from error
    missing = [name for name in arms if name not in found]
    if missing:
        raise ConfigurationError(
            f"{path} has no settings for the arm {missing[0]}; it has {', '.join(found) or 'none'}. Remove the arm, or "
            "tune it with search in place of choices."
        )
    for name, arm in arms.items():
        chosen = found[name]
        if set(chosen.settings) != set(arm.settings) or arm.written(chosen.settings) != chosen.text:
            raise ConfigurationError(
                f"{path} has the arm {name} as {shown(chosen.text)}, which does not come from {shown(arm.text)}. Write "
                "the arm as in that evidence run."
            )
    return {name: found[name] for name in arms}


def _choose_one(config: EvidenceConfig, arm: Contender, results: Sequence[ComparisonResult]) -> Choice:
    scored: list[tuple[float, dict[str, Any]]] = []
    combinations = arm.combinations()
    for settings in combinations:
        label = config.arm_text(arm.written(settings))
        means = [_mean(result, label, config.tuning_seeds) for result in results]
        if None not in means:
            scored.append((statistics.fmean(mean for mean in means if mean is not None), settings))
    if not scored:
        raise InvalidResultError(f"Every combination of settings of the arm {arm.name} diverged; give lower ones.")
    # The first of equal ones: lists begin with the gentler values.
    best, settings = max(scored, key=lambda pair: pair[0])
    return Choice(arm.name, settings, arm.written(settings), best, len(combinations), len(combinations) - len(scored))


def _mean(result: ComparisonResult, label: str, seeds: Sequence[int]) -> float | None:
    """Mean average accuracy over the seeds; None if a run diverged."""
    runs = {run["seed"]: run for run in result.runs if run["arm"] == label}
    missing = [seed for seed in seeds if seed not in runs]
    if missing:
        raise InvalidResultError(f"The tuning has no run of {label} with seed {missing[0]}; let it finish.")
    chosen = [runs[seed] for seed in seeds]
    if any(run["status"] != "done" for run in chosen):
        return None
    return statistics.fmean(run["metrics"]["average_accuracy"] for run in chosen)
