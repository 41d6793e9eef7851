"""`PrototypesConfig`: from which knowledge prototypes are made, and how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lr_dist.checks import check_finite, check_whole
from lr_dist.errors import ConfigurationError
from lr_dist.knowledge.prototypes.examples import KINDS
from lr_dist.knowledge.prototypes.prototypes import PER_CLASS
from lr_dist.names import one_of


@dataclass(frozen=True)
class PrototypesConfig:
    """The settings of `lr-dist prototypes`.

    Raises:
        ConfigurationError: no knowledge, an unknown kind, or a value out of range.
    """

    knowledge: str = ""
    """Graph of facts: everyday or polarity (shipped), wordnet:FOLDER, a TSV or JSON file of (subject, relation,
    object); or an equation: a YAML file with equation and ranges."""

    kind: str = "polarity"
    """Kind of prototypes from a graph: pairs, statements, polarity or hypernyms."""

    templates: str | None = None
    """YAML file with templates; --print-templates true shows the shipped ones."""

    per_class: int = PER_CLASS
    """Prototypes of each class, at most; of an equation, the number of points."""

    seed: int = 0
    """Seed of the draw."""

    hold_out: float = 0.0
    """Share of the words with hypernyms to hold out, in whole branches, 0 for none: they become a task of their own in
    OUTPUT/held-out, whose train and validation have no word in common with the prototypes or with each other."""

    test: str | Mapping[str, Any] | None = None
    """Task whose dev and validation texts must not be among the prototypes: those are left out and counted."""

    data_dir: str | None = None
    """Folder with GLUE as parquet files. By default the environment variable LR_DIST_DATA, or else the hub."""

    def __post_init__(self) -> None:
        if not self.knowledge:
            raise ConfigurationError("No knowledge: give --knowledge, e.g. --knowledge polarity.")
        if self.kind not in KINDS:
            raise ConfigurationError(f"kind must be {one_of(KINDS, self.kind)}")
        check_whole("per_class", self.per_class, 2, error=ConfigurationError)
        check_whole("seed", self.seed, 0, error=ConfigurationError)
        if check_finite("hold_out", self.hold_out, error=ConfigurationError) >= 1:
            raise ConfigurationError(f"hold_out is a share of the words from 0 to below 1, not {self.hold_out}.")
        if self.hold_out and self.is_equation:
            raise ConfigurationError("hold_out holds out words of a graph; an equation has none. Leave it out.")

    @property
    def is_equation(self) -> bool:
        """Whether the knowledge is a YAML file, which holds an equation."""
        return self.knowledge.endswith((".yaml", ".yml"))
