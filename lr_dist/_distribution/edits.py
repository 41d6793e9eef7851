"""Edits: rates that are set for a range of depth after a family is evaluated (freezing and overriding)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lr_dist._distribution.families import relative_depths
from lr_dist._distribution.rates import check_rate
from lr_dist.checks import is_number
from lr_dist.errors import InvalidDistributionError, LayerCountError, shown
from lr_dist.names import group_depth, is_group_name


@dataclass(frozen=True)
class Edit:
    """`rate` for every group from `first` to `last`, both included.

    An end is a group's name (`layers.-1` counts from the top), or a relative depth from 0 to 1 among the
    layers. For a model without a layer in the range, an edit changes nothing.

    Raises:
        InvalidDistributionError: an end that is not a depth, or a range that runs from deep to shallow.
        InvalidRateError: an invalid learning rate.
    """

    first: str | float
    last: str | float
    rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", _checked_end(self.first))
        object.__setattr__(self, "last", _checked_end(self.last))
        object.__setattr__(self, "rate", check_rate(f"rate of {self.first}", self.rate))
        # Ranges with a layer's number are checked in `apply_edits`, where the number of layers is known.
        first, last = _place(self.first), _place(self.last)
        if first is not None and last is not None and first > last:
            raise InvalidDistributionError(f"{self.first}..{self.last} runs backwards; write the shallower end first.")

    def to_dict(self) -> dict[str, Any]:
        return {"from": self.first, "to": self.last, "rate": self.rate}

    @classmethod
    def from_dict(cls, data: Any) -> Edit:
        if not isinstance(data, Mapping) or set(data) != {"from", "to", "rate"}:
            raise InvalidDistributionError(f"An edit is a mapping of from, to and rate, not {shown(data)}.")
        return cls(data["from"], data["to"], data["rate"])


def apply_edits(rates: Mapping[str, float], edits: Sequence[Edit]) -> dict[str, float]:
    """The rates of a model's groups with the edits applied one after the other.

    Raises:
        LayerCountError: an edit names a layer that the model lacks, or runs from a deeper to a shallower group.
    """
    names = list(rates)
    result = dict(rates)
    for edit in edits:
        first, last = _index(edit.first, names, upper=False), _index(edit.last, names, upper=True)
        named = isinstance(edit.first, str) and isinstance(edit.last, str)
        if named and first > last:
            raise LayerCountError(
                f"{edit.first}..{edit.last} runs backwards on {len(names) - 2} layers; write the shallower first."
            )
        for name in names[first : last + 1]:
            result[name] = edit.rate
    return result


def _checked_end(end: Any) -> str | float:
    if is_group_name(end):
        return str.__str__(end)  # a plain str: YAML has no form for its subclasses
    if is_number(end) and 0 <= end <= 1:
        return float(end) + 0.0  # -0.0 becomes 0.0
    raise InvalidDistributionError(
        f"{shown(end)} is not a depth. Use embeddings, head, layers.K (layers.-1 is the last), "
        "or a relative depth from 0 to 1."
    )


def _place(end: str | float) -> float | None:
    if isinstance(end, float):
        return end
    return {"embeddings": -1.0, "head": 2.0}.get(end)


def _index(end: str | float, names: list[str], *, upper: bool) -> int:
    num_layers = len(names) - 2
    if isinstance(end, float):
        depths = relative_depths(num_layers)
        if upper:
            return sum(depth <= end for depth in depths)
        return 1 + sum(depth < end for depth in depths)
    depth = group_depth(end, num_layers)
    if depth is None:
        raise LayerCountError(
            f"The distribution sets a rate for {end}, but the model has {num_layers} layers "
            f"(layers.0 to layers.{num_layers - 1}). Use a relative depth from 0 to 1, or layers.-1 for the last."
        )
    return depth
