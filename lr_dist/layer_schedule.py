"""`LayerSchedule`: gradual unfreezing and warm-up by layer, as a plain value."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lr_dist.checks import check_whole, is_whole
from lr_dist.errors import InvalidScheduleError, shown
from lr_dist.names import group_depth, group_names, is_group_name


@dataclass(frozen=True)
class LayerSchedule:
    """When each layer starts to train, and how its rate warms up.

    Gradual unfreezing (ULMFiT, Howard & Ruder 2018, arXiv 1801.06146, section 3.3): the head starts alone, then one
    more layer every epoch, or every N steps, from the last layer down, the embeddings at the end. With a warm-up each
    layer's factor grows over its own first n steps: (t + 1) / n in its step t = 0, 1, ..., and 1 from step n - 1 on.

    Attributes:
        every_n_epochs: epochs between two starts.
        every_n_steps: steps of the optimizer between two starts; not together with `every_n_epochs`. Without either,
            every layer starts at once.
        warmup_steps: n for every layer; or a map from group name to n (0 for none). Between two named depths n is
            interpolated linearly and rounded; beyond them it is the nearest one's. `layers.-1` is the last layer.

    Raises:
        InvalidScheduleError: both intervals, or a number of epochs or steps that is not a whole number.
    """

    every_n_epochs: int | None = None
    every_n_steps: int | None = None
    warmup_steps: int | Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.every_n_epochs), ("steps", self.every_n_steps)):
            if value is not None:
                hint = "Without it every layer trains from the start."
                check_whole(f"every_n_{name}", value, 1, error=InvalidScheduleError, hint=hint)
        if self.every_n_epochs is not None and self.every_n_steps is not None:
            raise InvalidScheduleError(
                f"every_n_epochs={self.every_n_epochs} and every_n_steps={self.every_n_steps} "
                "exclude each other: give one of them."
            )
        object.__setattr__(self, "warmup_steps", _checked_warmup(self.warmup_steps))

    @property
    def unfreezes(self) -> bool:
        """Whether layers start one after the other."""
        return self.every_n_epochs is not None or self.every_n_steps is not None

    def __bool__(self) -> bool:
        """Whether it changes anything: unfreezing or warm-up."""
        return self.unfreezes or self.warmup_steps is not None

    def starts(self, layers: Sequence[str]) -> dict[str, int]:
        """The 0-based epoch (`every_n_epochs`) or step (`every_n_steps`) in which each layer starts.

        Args:
            layers: the groups that are trained, in the order of depth; not those with rate 0.
        """
        interval = self.every_n_epochs or self.every_n_steps or 0
        return {layer: interval * (len(layers) - 1 - index) for index, layer in enumerate(layers)}

    def started(self, layers: Sequence[str], before: Mapping[str, int], *, step: int, epoch: int) -> dict[str, int]:
        """The layers that train in step `step`, and the step in which each of them started.

        Args:
            layers: as in `starts`.
            before: the result for the previous step; empty for the first. A layer that has started stays.
            step: steps that the optimizer has taken so far.
            epoch: the 0-based epoch.
        """
        reached = epoch if self.every_n_epochs is not None else step
        begun = {layer: start for layer, start in self.starts(layers).items() if start <= reached}
        if self.every_n_epochs is not None:
            # The step at which an epoch begins is not known in advance, so the current step counts as the start.
            begun = dict.fromkeys(begun, step)
        both = {**begun, **before}
        return {layer: both[layer] for layer in layers if layer in both}

    def warmup(self, num_layers: int) -> dict[str, int]:
        """The steps over which each group of a model warms up; 0 for none.

        Raises:
            InvalidScheduleError: `warmup_steps` names a layer that the model lacks, or one layer twice.
        """
        names = group_names(num_layers)
        if not isinstance(self.warmup_steps, Mapping):
            return dict.fromkeys(names, self.warmup_steps or 0)
        by_depth: dict[int, int] = {}
        for name, steps in self.warmup_steps.items():
            depth = _depth(name, num_layers)
            if depth in by_depth:
                raise InvalidScheduleError(f"warmup_steps names {names[depth]} twice, once as {name}.")
            by_depth[depth] = steps
        known = sorted(by_depth.items())
        return {name: _interpolated(known, depth) for depth, name in enumerate(names)}

    def to_dict(self) -> dict[str, Any]:
        """Plain data; equal schedules have equal data."""
        steps = self.warmup_steps
        return {
            "every_n_epochs": self.every_n_epochs,
            "every_n_steps": self.every_n_steps,
            "warmup_steps": dict(sorted(steps.items())) if isinstance(steps, Mapping) else steps,
        }


def chosen_schedule(
    schedule: LayerSchedule | None,
    *,
    unfreeze_every_n_epochs: int | None,
    unfreeze_every_n_steps: int | None,
    layer_warmup_steps: int | Mapping[str, int] | None,
) -> LayerSchedule:
    """`schedule`, or the one made from the three options.

    Raises:
        InvalidScheduleError: both are given, `schedule` is not a LayerSchedule, or an option is invalid.
    """
    options = {
        "unfreeze_every_n_epochs": unfreeze_every_n_epochs,
        "unfreeze_every_n_steps": unfreeze_every_n_steps,
        "layer_warmup_steps": layer_warmup_steps,
    }
    given = ", ".join(f"{name}={shown(value)}" for name, value in options.items() if value is not None)
    if schedule is not None:
        if not isinstance(schedule, LayerSchedule):
            raise InvalidScheduleError(
                f"schedule must be a LayerSchedule, not {shown(schedule)}. Make one with "
                "`from lr_dist import LayerSchedule`: LayerSchedule(every_n_epochs=1)."
            )
        if given:
            raise InvalidScheduleError(
                f"schedule={schedule} and {given} exclude each other. Give schedule alone, and put the values of the "
                "options into it: LayerSchedule(every_n_epochs=..., every_n_steps=..., warmup_steps=...)."
            )
        return schedule
    try:
        return LayerSchedule(unfreeze_every_n_epochs, unfreeze_every_n_steps, layer_warmup_steps)
    except InvalidScheduleError as error:
        raise InvalidScheduleError(f"{given}: {error}") from None


def layer_factor(started: Mapping[str, int], warmup: Mapping[str, int], layer: str, step: int) -> float:
    """The factor of a layer's rate in step `step`: 0 before its start, (t + 1) / n in its own step t < n, then 1."""
    if layer not in started:
        return 0.0
    steps = warmup[layer]
    return min(1.0, (step - started[layer] + 1) / steps) if steps else 1.0


def _checked_warmup(steps: Any) -> Any:
    if steps is None or is_whole(steps, 0):
        return steps
    if not isinstance(steps, Mapping):
        raise InvalidScheduleError(
            f"warmup_steps must be a whole number of steps, or a map from group to steps, not {shown(steps)}."
        )
    if not steps:
        raise InvalidScheduleError('warmup_steps is an empty map; name a group, as in {"head": 100}.')
    for name, value in steps.items():
        if not is_group_name(name):
            raise InvalidScheduleError(
                f"warmup_steps names {shown(name)}, which is not a group. Use embeddings, head, or layers.K "
                "(layers.-1 is the last)."
            )
        hint = "Give 0 for no warm-up."
        check_whole(f"warmup_steps of {name}", value, 0, error=InvalidScheduleError, hint=hint)
    return dict(steps)


def _depth(name: str, num_layers: int) -> int:
    depth = group_depth(name, num_layers)
    if depth is None:
        raise InvalidScheduleError(
            f"warmup_steps names {name}, but the model has {num_layers} layers (layers.0 to "
            f"layers.{num_layers - 1}). Use layers.-1 for the last."
        )
    return depth


def _interpolated(known: Sequence[tuple[int, int]], depth: int) -> int:
    if depth <= known[0][0]:
        return known[0][1]
    for (low, first), (high, last) in itertools.pairwise(known):
        if depth <= high:
            return math.floor(first + (last - first) * (depth - low) / (high - low) + 0.5)
    return known[-1][1]
