"""`CompareConfig`: model, tasks, arms and seeds of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lr_dist.checks import check_whole, is_whole
from lr_dist.errors import ConfigurationError
from lr_dist.sequence.base_config import KEPT, MEASURES, SequenceConfig


@dataclass(frozen=True)
class CompareConfig(SequenceConfig):
    """The settings of a comparison.

    Raises:
        ConfigurationError: no task, nothing to compare, or a value out of range.
    """

    tasks: tuple[str | Mapping[str, Any], ...] = ()
    """Tasks in the order of learning: GLUE names, demo-*, TASK@length, TASK@embedding, NAME=FOLDER."""

    distributions: tuple[str | Mapping[str, Any], ...] = ()
    """Learning-rate distributions to compare: names of presets, YAML files, or texts such as flat:lr=2e-5 and
    decay:lr=4e-4,factor=0.7."""

    seeds: tuple[int, ...] = (0, 1)
    """Random seeds: one run for each arm and seed. On the command line, 0..4 stands for 0 1 2 3 4."""

    arms: tuple[str | Mapping[str, Any], ...] = ()
    """More to compare: distributions with methods of their own ('flat:lr=1e-4 + l2-sp:alpha=0.01'), with other rates
    from the second task on ('flat:lr=1e-4 | decay:lr=4e-4,factor=0.7'), or from a share of the steps on
    ('flat:lr=1e-4 @ 20% > flat:lr=1e-5'), with layers that start one after the other ('flat:lr=1e-4 @ gradual'), or
    with rates from the spectra of the model's weights ('heavy-tail:lr=1e-4,s1=0.5,s2=1.5')."""

    keep_stages: bool = field(default=True, metadata=KEPT)
    """Train the stages that arms share once: their weights are kept in the output folder until no run needs them. The
    results are the same without (true or false)."""

    linear_probe: bool = field(default=False, metadata=MEASURES)
    """Fit a new head to each task on the frozen encoder, after the task and after the last one: what the encoder has
    forgotten, whatever has become of the task's own head (true or false)."""

    keep_weights: bool = field(default=False, metadata=KEPT)
    """Keep the weights after every stage of every run in the folder weights of the output, for lr-dist influence (true
    or false)."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigurationError("Nothing to learn: give --tasks, e.g. --tasks sst2 qqp.")
        if not self.distributions and not self.arms:
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
        """The distributions, with the methods, then the other arms."""
        if not self.methods:
            return (*self.distributions, *self.arms)
        from lr_dist.sequence.arm import with_methods

        return (*(with_methods(spec, self.methods) for spec in self.distributions), *self.arms)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            **({} if self.start is None else {"start": self.start}),
            "tasks": list(self.tasks),
            "arms": list(self.all_arms),
            "seeds": list(self.seeds),
            "limit": self.limit,
            "dev_size": self.dev_size,
            "data_seed": self.data_seed,
            **({} if self.eval_limit is None else {"eval_limit": self.eval_limit}),
            **({"linear_probe": True} if self.linear_probe else {}),
            **self.settings.to_dict(),
        }
