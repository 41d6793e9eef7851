"""`EvidenceConfig`: which arms compete, on which task sequences they are tuned, and on which they are compared."""

from __future__ import annotations

import itertools
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lr_dist.checks import is_whole
from lr_dist.errors import ConfigurationError, shown
from lr_dist.sequence.base_config import MEASURES, TRAINING, SequenceConfig
from lr_dist.sequence.compare_config import CompareConfig
from lr_dist.sequence.settings import SequenceSettings

TaskSpec = str | Mapping[str, Any]
KEYS = ("text", "settings", "curve", "seeds")


@dataclass(frozen=True)
class Contender:
    """An arm with settings that are tuned.

    Attributes:
        name: its name in tables.
        text: the rates and methods from the second stage on, with settings in braces:
            `flat:lr={lr} + ewc:strength={strength}`.
        settings: setting -> values to choose from.
        curve: the setting of which every value is compared in the end, with the others as chosen; None for only the
            chosen value.
        seeds: number of the protocol's seeds with which it is compared, the first ones; None for all. For an arm that
            is given up after the first seeds, and still has its row.

    Raises:
        ConfigurationError: a setting without values or without a place in the text, or the other way round.
    """

    name: str
    text: str
    settings: Mapping[str, tuple[Any, ...]]
    curve: str | None = None
    seeds: int | None = None

    def __post_init__(self) -> None:
        try:
            places = {name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None}
        except ValueError as error:
            raise ConfigurationError(f"The arm {self.name} has the text {shown(self.text)}: {error}.") from error
        if places != set(self.settings):
            raise ConfigurationError(
                f"The arm {self.name} has the settings {sorted(self.settings)}, and its text {shown(self.text)} has "
                f"places for {sorted(places)}; write each setting once in braces."
            )
        empty = [name for name, values in self.settings.items() if not values]
        if empty:
            raise ConfigurationError(f"The setting {empty[0]} of the arm {self.name} has no values to choose from.")
        if self.curve is not None and self.curve not in self.settings:
            raise ConfigurationError(
                f"The curve {shown(self.curve)} of the arm {self.name} is none of its settings "
                f"{', '.join(self.settings)}."
            )
        if self.seeds is not None and not is_whole(self.seeds, 1):
            raise ConfigurationError(
                f"seeds of the arm {self.name} must be a number of seeds from 1, not {shown(self.seeds)}."
            )

    @classmethod
    def from_dict(cls, name: str, data: Any) -> Contender:
        """Read an entry of the YAML file: a text, or a mapping with `text`, `settings`, `curve` and `seeds`.

        Raises:
            ConfigurationError: another form.
        """
        if isinstance(data, str):
            return cls(name, data.strip(), {})
        if not isinstance(data, Mapping) or "text" not in data or not set(data) <= set(KEYS):
            raise ConfigurationError(
                f"The arm {name} must be a text, or a mapping with the keys {', '.join(KEYS)}; got {shown(data)}."
            )
        settings = data.get("settings") or {}
        if not isinstance(settings, Mapping) or not all(isinstance(each, (list, tuple)) for each in settings.values()):
            raise ConfigurationError(f"settings of the arm {name} must be a mapping to lists, not {shown(settings)}.")
        return cls(
            name,
            # A folded text in YAML ends with a line break, which is no part of an arm's label.
            str(data["text"]).strip(),
            {str(key): tuple(each) for key, each in settings.items()},
            data.get("curve"),
            data.get("seeds"),
        )

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of settings, in order."""
        return [dict(zip(self.settings, values, strict=True)) for values in itertools.product(*self.settings.values())]

    def written(self, settings: Mapping[str, Any]) -> str:
        """The text with these settings."""
        return self.text.format(**settings)

    def curve_of(self, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The settings that are compared in the end: every value of `curve`, otherwise only these settings."""
        if self.curve is None:
            return [dict(settings)]
        return [{**settings, self.curve: value} for value in self.settings[self.curve]]


@dataclass(frozen=True)
class EvidenceConfig(SequenceConfig):
    """The protocol of an evidence run.

    Raises:
        ConfigurationError: nothing to compare on, neither or both of `search` and `choices`, a sequence to tune and to
            compare on, a sequence of one task to compare on, two sequences of the same names, an unknown control, a
            start, or methods beside those of the arms.
    """

    first: str = "flat:lr=1.34e-4"
    """Rates of the first stage, the same for every arm, so that arms are compared from the same weights."""

    search: tuple[tuple[TaskSpec, ...], ...] = ()
    """Task sequences on whose dev examples the arms are tuned, [[sst2, qqp], [qqp, sst2]]."""

    held_out: tuple[tuple[TaskSpec, ...], ...] = ()
    """Task sequences on which the tuned arms are compared; none of them may be in search."""

    choices: str | None = None
    """Take the arms' settings from the chosen.json of another evidence run, and tune nothing; search is then empty."""

    contenders: Mapping[str, Any] = field(default_factory=dict)
    """Arms by name: a text such as flat:lr=1e-4, or a mapping {text, settings, curve, seeds}."""

    control: str = "flat"
    """Name of the arm with which the others are compared: the tuned flat rate."""

    tuning_seeds: tuple[int, ...] = (0,)
    """Random seeds for tuning; none of them is a seed of the comparison."""

    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    """Random seeds of the comparison; none was used for tuning. On the command line, 0..4 stands for 0 1 2 3 4."""

    linear_probe: bool = field(default=False, metadata=MEASURES)
    """Measure on the held-out sequences what the encoder forgets, with a new head on it (true or false)."""

    retention: str | None = field(default=None, metadata=MEASURES)
    """Measure on the held-out sequences what each run loses of the pre-training: a file of plain text, one text a line,
    with settings as in FILE,texts=50,fit_texts=1000; see lr-dist retention."""

    settings: SequenceSettings = field(default_factory=SequenceSettings, kw_only=True, metadata=TRAINING)

    def __post_init__(self) -> None:
        if not self.held_out or bool(self.search) == bool(self.choices):
            raise ConfigurationError(
                "Evidence needs sequences to compare on (held_out), and either others to tune on (search) or the "
                "chosen.json of another evidence run (choices)."
            )
        if self.start is not None or self.method != "finetune":
            ignored = "start" if self.start is not None else "method"
            raise ConfigurationError(
                f"An evidence run takes no {ignored}: it learns the first task with the rates of `first`, and methods "
                f"stand in the texts of the arms, as in flat:lr={{lr}} + ewc:strength=1. Leave {ignored} out."
            )
        if self.settings.evaluate_on != "validation":
            raise ConfigurationError(
                "An evidence run tunes on dev and compares on validation; leave out evaluate_on: "
                f"{self.settings.evaluate_on}."
            )
        for sequences in (self.search, self.held_out):
            _check_names(sequences)
        _check_lengths(self.held_out)
        both = [sequence for sequence in self.held_out if sequence in self.search]
        if both:
            raise ConfigurationError(
                f"{list(both[0])} is in search and in held_out; arms would be compared where tuned."
            )
        for name, seeds in (("tuning_seeds", self.tuning_seeds), ("seeds", self.seeds)):
            if not seeds or not all(is_whole(seed, 0) for seed in seeds) or len(set(seeds)) < len(seeds):
                raise ConfigurationError(f"{name} must be distinct whole numbers from 0, not {list(seeds)}.")
        if self.search and (both_seeds := sorted(set(self.tuning_seeds) & set(self.seeds))):
            raise ConfigurationError(
                f"Seed {both_seeds[0]} is in tuning_seeds and in seeds; arms would be compared with a seed that chose "
                "them. Give others."
            )
        if self.control not in self.contenders:
            raise ConfigurationError(
                f"The control {shown(self.control)} is no arm; there are {', '.join(self.contenders) or 'none'}."
            )
        if self.arms()[self.control].seeds is not None:
            raise ConfigurationError(
                f"The control {shown(self.control)} needs all seeds, since every arm is compared with it; leave out "
                "its seeds."
            )

    @property
    def measured(self) -> tuple[str, ...]:
        """Metrics of a finished run on held-out sequences that only this protocol's measures give."""
        probed = ("probe_p_o", "probe_forgetting") if self.linear_probe else ()
        return (*probed, *(("retention_lost",) if self.retention else ()))

    def arms(self) -> dict[str, Contender]:
        """The arms by name."""
        return {name: Contender.from_dict(name, data) for name, data in self.contenders.items()}

    def given_up_after(self, arm: Contender) -> int | None:
        """The number of seeds with which an arm is compared, if it has not all of them."""
        return arm.seeds if arm.seeds is not None and arm.seeds < len(self.seeds) else None

    def arm_text(self, text: str) -> str:
        """An arm of a comparison: the first stage's rates, and `text` from the second stage on."""
        rates, plus, methods = text.partition(" + ")
        return f"{self.first} | {rates}{plus}{methods}".strip()

    def comparison(
        self, tasks: tuple[TaskSpec, ...], texts: list[str], seeds: tuple[int, ...], evaluate_on: str
    ) -> CompareConfig:
        """One comparison of the protocol."""
        return CompareConfig(
            model=self.model,
            tasks=tasks,
            arms=tuple(dict.fromkeys(self.arm_text(text) for text in texts)),
            seeds=seeds,
            limit=self.limit,
            dev_size=self.dev_size,
            data_dir=self.data_dir,
            data_seed=self.data_seed,
            eval_limit=self.eval_limit,
            linear_probe=self.linear_probe and evaluate_on == "validation",
            settings=replace(self.settings, evaluate_on=evaluate_on),
        )


def names_of(tasks: Sequence[TaskSpec]) -> list[str]:
    """The names of a sequence's tasks.

    Raises:
        ConfigurationError: a mapping without one.
    """
    nameless = [task for task in tasks if not isinstance(task, str) and not isinstance(task.get("name"), str)]
    if nameless:
        raise ConfigurationError(f"A task of your own needs a name; {shown(dict(nameless[0]))} has none.")
    return [task.split("=")[0].strip() if isinstance(task, str) else str(task["name"]) for task in tasks]


def sequence_name(tasks: Sequence[TaskSpec]) -> str:
    """A folder's name for a task sequence: `sst2-qqp`."""
    return "-".join(name.replace("@", "-") for name in names_of(tasks))


def _check_names(sequences: Sequence[tuple[TaskSpec, ...]]) -> None:
    """Runs are kept, and paired, by the name of their sequence."""
    first: dict[str, tuple[TaskSpec, ...]] = {}
    for sequence in sequences:
        name = sequence_name(sequence)
        other = first.setdefault(name, sequence)
        if other != sequence:
            raise ConfigurationError(
                f"The sequences {shown(list(other))} and {shown(list(sequence))} have the same name, {name}, under "
                "which their runs are kept. Give tasks of your own other names: NAME=FOLDER."
            )


def _check_lengths(sequences: Sequence[tuple[TaskSpec, ...]]) -> None:
    """What is compared is what is forgotten, and a single task has no earlier one."""
    from lr_dist.tasks.registry import split_shift

    for sequence in sequences:
        if len(sequence) == 1 and split_shift(sequence[0])[1] is None:
            raise ConfigurationError(
                f"The held-out sequence {shown(list(sequence))} has one task, after which nothing can be forgotten. "
                "Give two or more."
            )
