"""`CompareConfig`: model, tasks, arms and seeds of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lr_dist.checks import check_whole, is_whole
from lr_dist.errors import ConfigurationError
from lr_dist.sequence.settings import SequenceSettings


@dataclass(frozen=True)
class CompareConfig:
    """The settings of a comparison.

    Attributes:
        model: `minilm`, a hub name or a path.
        tasks: two or more, in the order of learning; see `lr_dist.tasks.load_tasks`.
        distributions: arms without methods: preset names, YAML paths, `family:key=value` texts, or mappings.
        arms: further arms, see `lr_dist.sequence.arm.Arm.parse`.
        seeds: one run for each arm and seed.
        limit: training examples per task, drawn with `data_seed`; None for all.
        dev_size: examples of train set aside as dev; None for the default of `load_tasks`.
        data_dir: folder with GLUE as parquet; None for LR_DIST_DATA or the hub.
        data_seed: seed for the examples that `limit` draws; the same for every run.
        settings: how each task is trained.
    """

    model: str
    tasks: tuple[str | Mapping[str, Any], ...]
    distributions: tuple[str | Mapping[str, Any], ...] = ()
    seeds: tuple[int, ...] = (0, 1)
    limit: int | None = None
    dev_size: int | float | None = None
    data_dir: str | None = None
    data_seed: int = 0
    settings: SequenceSettings = field(default_factory=SequenceSettings)
    arms: tuple[str | Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if len(self.tasks) < 2 and not any("@" in str(task) for task in self.tasks):
            raise ConfigurationError(
                f"A sequence needs two tasks or more, or a shift such as sst2@length; got {self.tasks}."
            )
        if not self.all_arms:
            raise ConfigurationError("Nothing to compare: give distributions or arms, e.g. flat:lr=2e-5 kenneweg2022.")
        valid = all(is_whole(seed, 0) for seed in self.seeds)
        if not self.seeds or not valid or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(
                f"seeds must be distinct whole numbers from 0, at least one, not {list(self.seeds)}."
            )
        if self.limit is not None:
            hint = "It counts rows to learn from: use 100 or more."
            check_whole("limit", self.limit, 16, error=ConfigurationError, hint=hint)

    @property
    def all_arms(self) -> tuple[str | Mapping[str, Any], ...]:
        """The distributions, then the other arms."""
        return (*self.distributions, *self.arms)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "tasks": list(self.tasks),
            "arms": list(self.all_arms),
            "seeds": list(self.seeds),
            "limit": self.limit,
            "dev_size": self.dev_size,
            "data_seed": self.data_seed,
            **self.settings.to_dict(),
        }
