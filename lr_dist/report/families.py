"""Families of arms: those that differ in one number form a curve, such as flat rates, or one method by strength.

The number is a setting of a method or of a distribution, or the factor by which all rates differ.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")
_DIGITS = 6


@dataclass(frozen=True)
class Family:
    """Arms that differ in one number.

    Attributes:
        name: the label with `…` for the number.
        members: (the number, label), in its order; two or more.
    """

    name: str
    members: tuple[tuple[float, str], ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label for _, label in self.members)


def families(arms: Sequence[Mapping[str, Any]]) -> list[Family]:
    """The families among the arms of a result, the largest first; one that is a part of another is left out.

    Args:
        arms: as in a result file.
    """
    groups: dict[tuple[Any, ...], dict[float, str]] = defaultdict(dict)
    for arm in arms:
        for structure, numbers in _forms(arm):
            for position, number in enumerate(numbers):
                others = (*numbers[:position], None, *numbers[position + 1 :])
                groups[structure, others].setdefault(number, arm["label"])
    found: list[Family] = []
    for group in sorted(groups.values(), key=len, reverse=True):
        members = tuple(sorted(group.items()))
        labels = {label for _, label in members}
        if len(labels) > 1 and not any(labels <= set(other.labels) for other in found):
            found.append(Family(_name([label for _, label in members]), members))
    return found


def flat_family(arms: Sequence[Mapping[str, Any]]) -> Family | None:
    """The flat rates without a method, as a family: the line to beat. None if there is no such arm.

    Of several (flat rates after different first stages), the one with the most arms.
    """
    flat = [arm for arm in arms if is_flat(arm)]
    found = families(flat)
    if found:
        return found[0]
    return Family(flat[0]["label"], ((_scale(flat[0]["stages"][-1]) or 0.0, flat[0]["label"]),)) if flat else None


def is_flat(arm: Mapping[str, Any]) -> bool:
    """Whether an arm has one rate for all layers in every stage (not necessarily the same one), and no method."""
    every = (part["rates"].values() for stage in arm["stages"] for part in stage.get("phases", [stage]))
    return not arm["methods"] and all(len(set(rates)) == 1 and 0 not in rates for rates in every)


def _forms(arm: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], tuple[float, ...]]]:
    """Ways to write an arm as a structure and its numbers."""
    texts = " + ".join(arm.get("settings", arm["methods"]))
    methods, strengths = _split(texts)
    stages = arm["stages"]
    # A plan of one stage is also one whose later stages have the same rates.
    for plan in (stages, [*stages, *stages]) if len(stages) == 1 else (stages,):
        # By the shape of the rates and their scale ...
        shapes = tuple(_shape(stage) for stage in plan)
        scales = tuple(_scale(stage) or 0.0 for stage in plan)
        yield ("scale", shapes, methods), (*scales, *strengths)
        # ... and by the numbers of the distributions.
        names, numbers = zip(*(_leaves(stage) for stage in plan), strict=True)
        yield ("numbers", names, methods), (*(n for each in numbers for n in each), *strengths)


def _shape(stage: Mapping[str, Any]) -> tuple[Any, ...]:
    """The rates as shares of their scale, and the phases' lengths."""
    scale = _scale(stage) or 1.0
    parts = stage.get("phases", [stage])
    return tuple(
        (part.get("share"), part.get("steps"), *(_rounded(rate / scale) for rate in part["rates"].values()))
        for part in parts
    )


def _scale(stage: Mapping[str, Any]) -> float | None:
    """The geometric mean of the rates above 0."""
    rates = [rate for rate in stage["rates"].values() if rate > 0]
    return _rounded(math.exp(sum(map(math.log, rates)) / len(rates))) if rates else None


def _leaves(stage: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Names and values of the numbers in a stage's distributions; other values are part of the names."""
    names: list[str] = []
    numbers: list[float] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(item, f"{name}.{key}")
        elif isinstance(value, (list, tuple)):
            for position, item in enumerate(value):
                walk(item, f"{name}.{position}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            names.append(name)
            numbers.append(_rounded(value))
        else:
            names.append(f"{name}={value}")

    for part in stage.get("phases", [stage]):
        walk({"distribution": part.get("distribution"), "share": part.get("share"), "steps": part.get("steps")}, "")
    return tuple(names), tuple(numbers)


def _split(text: str) -> tuple[str, tuple[float, ...]]:
    """A text without its numbers, and the numbers."""
    return _NUMBER.sub("#", text), tuple(_rounded(float(number)) for number in _NUMBER.findall(text))


def _name(labels: Sequence[str]) -> str:
    """What the labels have in common, with `…` for what differs."""
    texts, places = {_NUMBER.sub("#", label) for label in labels}, [_NUMBER.findall(label) for label in labels]
    if len(texts) == 1:
        varied = [len(set(numbers)) > 1 for numbers in zip(*places, strict=True)]
        if sum(varied) == 1:
            parts = iter(zip(varied, places[0], strict=True))
            return _NUMBER.sub(lambda match: "…" if next(parts)[0] else match.group(), labels[0])
    shortest = min(labels, key=len)
    start = next((i for i in range(len(shortest)) if len({label[i] for label in labels}) > 1), len(shortest))
    return f"{labels[0][:start].rstrip()}…"


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
