"""`InformedConfig`: knowledge, task, arms and sizes of an experiment on informed pre-training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lr_dist.checks import check_finite, check_whole, is_whole
from lr_dist.errors import ConfigurationError, shown
from lr_dist.knowledge.prototypes.examples import KINDS
from lr_dist.knowledge.prototypes.prototypes import PER_CLASS
from lr_dist.names import one_of
from lr_dist.sequence.base_config import TRAINING
from lr_dist.sequence.settings import SequenceSettings

NONE, INFORMED, SHUFFLED, MIXED, UNRELATED = "none", "informed", "shuffled", "mixed", "unrelated"
ARMS = (NONE, INFORMED, SHUFFLED, MIXED, UNRELATED)
# Arms whose first stage is a fit of its own.
STAGED = (INFORMED, SHUFFLED, UNRELATED)
# Arms whose first stage trains the task's own head, if the labels have the same names.
SHARED = (INFORMED, SHUFFLED)
AUTO, NO_PARTS = "auto", "none"
_PART = re.compile(r"head|backbone|(lowest|highest)-(half|\d+)")
_SPAN = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class InformedConfig:
    """The settings of the experiment.

    Raises:
        ConfigurationError: no knowledge or task, an unknown arm or part, or a value out of range.
    """

    model: str = "minilm"
    """Pre-trained model: minilm (packaged, works offline), a name on the Hugging Face hub, or a path."""

    knowledge: str = ""
    """Graph of facts: everyday or polarity (shipped), wordnet:FOLDER, or a TSV or JSON file of (subject, relation,
    object)."""

    task: str | Mapping[str, Any] = ""
    """Task with scarce data: a GLUE name, demo-*, or NAME=FOLDER. A classification."""

    kind: str = "auto"
    """Kind of prototypes: pairs, hypernyms, statements, polarity, or auto (pairs for a task on pairs, otherwise
    polarity if the graph has any, otherwise statements)."""

    templates: str | None = None
    """YAML file with templates; lr-dist prototypes --print-templates shows the shipped ones."""

    per_class: int = PER_CLASS
    """Prototypes of each class, at most."""

    limits: tuple[int, ...] = (10, 50, 100, 250, 1000)
    """Numbers of training examples of the task."""

    seeds: tuple[int | str, ...] = ("0..4",)
    """Random seeds: each draws the training examples, and seeds the training. On the command line, 0..4 stands for
    0 1 2 3 4."""

    tuning_seeds: tuple[int | str, ...] = (100, 101)
    """Random seeds for tuning: the rates are chosen by their mean score on dev; none of them is in seeds."""

    rates: tuple[str, ...] = ("flat:lr=3e-5", "flat:lr=1e-4", "flat:lr=3e-4")
    """Rates to choose from for the task: distributions or presets. Each arm chooses at each limit."""

    stage_rates: tuple[str, ...] = ("flat:lr=1e-4",)
    """Rates of the first stage (prototypes or unrelated text). Several are tried with each of the rates, which gives
    arms with a first stage more trials than those without."""

    arms: tuple[str, ...] = ARMS
    """Arms: none (no prototypes), informed, shuffled (prototypes with shuffled labels), mixed (prototypes in the
    training set, as many steps in one stage), unrelated (as many steps on another task first)."""

    parts: tuple[str, ...] = ("head", "backbone", "lowest-half", "highest-half")
    """Parts of the informed model to carry over alone, everything else as pre-trained: head, backbone, lowest-K (the
    embeddings and K layers), highest-K (K layers and the head), -half for K; or none."""

    unrelated: str = "demo-acceptability"
    """Task of the arm `unrelated`."""

    stage_epochs: int = 5
    """Passes over the prototypes."""

    min_steps: int = 60
    """Steps on the task at least: with few examples, the passes are as many as that takes."""

    character_noise: float = 0.1
    """Share of letters that are changed, dropped, doubled or swapped in the test of robustness; 0 for no such test."""

    word_drop: float = 0.2
    """Share of words that are dropped in the test of robustness; 0 for no such test."""

    curve_points: int = 8
    """Tests during training on the task, for the curves; 0 for none."""

    curve_rows: int = 200
    """Dev examples of these tests."""

    dev_size: int | float | None = None
    """Training examples to set aside as the dev split: a number, or a share between 0 and 1. By default a tenth, at
    most 1,000."""

    eval_limit: int | None = None
    """Number of test examples to score on, always the same ones: quicker, and less exact. All by default."""

    data_dir: str | None = None
    """Folder with GLUE as parquet files. By default the environment variable LR_DIST_DATA, or else the hub."""

    settings: SequenceSettings = field(default_factory=SequenceSettings, metadata=TRAINING)

    def __post_init__(self) -> None:
        if not self.knowledge:
            raise ConfigurationError("No knowledge: give --knowledge, e.g. --knowledge polarity.")
        if not self.task:
            raise ConfigurationError("Nothing to learn: give --task, e.g. --task sst2.")
        if self.kind not in (AUTO, *KINDS):
            raise ConfigurationError(f"kind must be {AUTO}, {', '.join(KINDS)}, not {shown(self.kind)}.")
        self._check_lists()
        both = set(self.draws) & set(self.tuning_draws)
        if both:
            raise ConfigurationError(f"The seeds {sorted(both)} are in seeds and tuning_seeds; results need their own.")
        for name, least in (("per_class", 2), ("stage_epochs", 1), ("min_steps", 1), ("curve_points", 0)):
            check_whole(name, getattr(self, name), least, error=ConfigurationError)
        check_whole("curve_rows", self.curve_rows, 2, error=ConfigurationError)
        for name in ("character_noise", "word_drop"):
            if check_finite(name, getattr(self, name), error=ConfigurationError) > 1:
                raise ConfigurationError(f"{name} is a share from 0 to 1, not {getattr(self, name)}.")

    def _check_lists(self) -> None:
        for name in ("limits", "rates", "stage_rates", "arms", "seeds", "tuning_seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigurationError(f"{name} needs at least one value, and each once, not {shown(list(values))}.")
        for limit in self.limits:
            check_whole("limits", limit, 2, error=ConfigurationError, hint="They count training examples.")
        for arm in self.arms:
            if arm not in ARMS:
                raise ConfigurationError(f"An arm is {one_of(ARMS, arm)}")
        if NONE not in self.arms:
            raise ConfigurationError(f"The arm {NONE} is what all others are compared with; add it to arms.")
        for part in self.chosen_parts:
            if not _PART.fullmatch(part):
                raise ConfigurationError(
                    f"There is no part {shown(part)}; write head, backbone, lowest-K, highest-K, lowest-half or "
                    "highest-half, or none alone."
                )
        if self.chosen_parts and INFORMED not in self.arms:
            raise ConfigurationError(f"Parts are those of the arm {INFORMED}; add it to arms, or give --parts none.")

    @property
    def draws(self) -> tuple[int, ...]:
        """The seeds of the results."""
        return _numbers("seeds", self.seeds)

    @property
    def tuning_draws(self) -> tuple[int, ...]:
        """The seeds of the tuning."""
        return _numbers("tuning_seeds", self.tuning_seeds)

    @property
    def chosen_parts(self) -> tuple[str, ...]:
        """The parts without the word `none`."""
        return () if self.parts == (NO_PARTS,) else self.parts

    def to_dict(self) -> dict[str, Any]:
        own = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if name != "settings"
        }
        return {**own, **self.settings.to_dict()}


def _numbers(name: str, values: Sequence[int | str]) -> tuple[int, ...]:
    numbers: list[int] = []
    for value in values:
        span = _SPAN.fullmatch(value) if isinstance(value, str) else None
        if span and int(span[1]) <= int(span[2]) < int(span[1]) + 10_000:
            numbers += range(int(span[1]), int(span[2]) + 1)
        elif is_whole(value, 0):
            numbers.append(value)
        else:
            raise ConfigurationError(f"{name} are whole numbers from 0, or spans as 0..4, not {shown(value)}.")
    if len(set(numbers)) < len(numbers):
        raise ConfigurationError(f"{name} must be distinct, not {shown(numbers)}.")
    return tuple(numbers)
