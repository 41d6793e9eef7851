"""The kinds of search space, one class each: its parameters, their distribution, and the inverse.

To add one, write a class here and add its name to `KINDS`.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lr_dist._distribution.families import GROUPED_KEYS, grouped_layers, weighted_mean
from lr_dist.distribution import LRDistribution

# Log ratios that differ by less than this count as equal.
TOLERANCE = 1e-9
MOST_KNOTS = 100
# The relative depths, from -1 to 1, at which `Shape` takes its parabola.
_PLACES = (-1.0, -0.5, 0.0, 0.5, 1.0)


class Kind(ABC):
    """A kind of search space.

    A subclass is a frozen dataclass. Its fields have the names of those settings of `Space` that it uses; they are part
    of a study's identity.
    """

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """All parameters, in the order of depth."""

    def bounds(self, name: str) -> tuple[float, float] | None:
        """The bounds of a parameter that is not a rate; None for a rate, which has the bounds of the space."""
        return None

    @abstractmethod
    def distribution(self, values: Mapping[str, float]) -> LRDistribution:
        """The distribution for these values of all parameters."""

    @abstractmethod
    def read(self, distribution: LRDistribution, num_layers: int) -> dict[str, float] | None:
        """The parameters that approximate a given distribution, ignoring bounds; None if this kind cannot."""

    @classmethod
    def settings_for(cls, names: Collection[str]) -> dict[str, Any]:
        """The settings with which this kind could have exactly these parameters; valid for any names."""
        return {}


@dataclass(frozen=True)
class Flat(Kind):
    """One rate everywhere: `lr`."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("lr",)

    def distribution(self, values: Mapping[str, float]) -> LRDistribution:
        return LRDistribution.flat(values["lr"])

    def read(self, distribution: LRDistribution, num_layers: int) -> dict[str, float] | None:
        geometric = _as_geometric(distribution, num_layers)
        return None if geometric is None or abs(geometric[1]) > TOLERANCE else {"lr": geometric[0]}


@dataclass(frozen=True)
class Decay(Kind):
    """The head's rate `lr`, and the `factor` from each layer to the one below it (LLRD)."""

    factor_low: float
    factor_high: float

    @property
    def names(self) -> tuple[str, ...]:
        return ("lr", "factor")

    def bounds(self, name: str) -> tuple[float, float] | None:
        return (self.factor_low, self.factor_high) if name == "factor" else None

    def distribution(self, values: Mapping[str, float]) -> LRDistribution:
        return LRDistribution.decay(values["lr"], values["factor"])

    def read(self, distribution: LRDistribution, num_layers: int) -> dict[str, float] | None:
        geometric = _as_geometric(distribution, num_layers)
        return None if geometric is None else {"lr": geometric[0], "factor": math.exp(-geometric[1])}


class _ByDepth(Kind):
    """One rate for the embeddings, one for the head, and some for the layers between them."""

    def read(self, distribution: LRDistribution, num_layers: int) -> dict[str, float] | None:
        rates = distribution.rates(num_layers)
        between = self._between(distribution, list(rates.values())[1:-1])
        names = self.names[1:-1]
        return {"embeddings": rates["embeddings"], **dict(zip(names, between, strict=True)), "head": rates["head"]}

    def _between(self, distribution: LRDistribution, layers: Sequence[float]) -> list[float]:
        """The parameters between embeddings and head: the layers' rates, interpolated at the parameters' depths."""
        # `from_layers` interpolates M values to N layers; here it interpolates N layers to the M parameters.
        interpolated = LRDistribution.from_layers(embeddings=1.0, layers=layers, head=1.0).rates(len(self.names) - 2)
        return list(interpolated.values())[1:-1]


@dataclass(frozen=True)
class Grouped(_ByDepth):
    """The ten rates of arXiv 2404.01317: embeddings, g1 ... g8, head."""

    @property
    def names(self) -> tuple[str, ...]:
        return GROUPED_KEYS

    def distribution(self, values: Mapping[str, float]) -> LRDistribution:
        return LRDistribution.grouped(values)

    def _between(self, distribution: LRDistribution, layers: Sequence[float]) -> list[float]:
        if distribution.family == "grouped" and not distribution.edits:
            rates = dict(distribution.values)
            return [rates[name] for name in self.names[1:-1]]
        groups = grouped_layers(len(layers))
        if all(groups) and 0 not in layers:
            return [weighted_mean([layers[i] for i in group], [1.0] * len(group)) for group in groups]
        return super()._between(distribution, layers)


@dataclass(frozen=True)
class Knots(_ByDepth):
    """Rates at k relative depths from the first layer to the last: embeddings, k1 ..., head."""

    knots: int

    @property
    def names(self) -> tuple[str, ...]:
        return ("embeddings", *(f"k{i}" for i in range(1, self.knots + 1)), "head")

    def distribution(self, values: Mapping[str, float]) -> LRDistribution:
        layers = [values[name] for name in self.names[1:-1]]
        return LRDistribution.from_layers(embeddings=values["embeddings"], layers=layers, head=values["head"])

    @classmethod
    def settings_for(cls, names: Collection[str]) -> dict[str, Any]:
        return {"knots": min(max(1, sum(name.startswith("k") for name in names)), MOST_KNOTS)}


@dataclass(frozen=True)
class Shape(Kind):
    """A parabola over depth in log rates: five numbers, which a small budget can fill.

    - `level`: the geometric mean of the layers' rates.
    - `slope`: the last layer's rate over the first layer's.
    - `curvature`: the rate in the middle over the geometric mean of first and last layer; 1 is a straight line.
    - `embeddings`, `head`: their rates over `level`.

    So log rate(x) = log level + x/2 log slope + (1/2 - x^2) log curvature, for x from -1 (first layer) to 1 (last),
    taken at five depths and linear between them. All but `level` are factors, log-uniform in [1/ratio, ratio]; where
    all of them are 1, the distribution is flat.
    """

    ratio: float

    @property
    def names(self) -> tuple[str, ...]:
        return ("embeddings", "level", "slope", "curvature", "head")

    def bounds(self, name: str) -> tuple[float, float] | None:
        return None if name == "level" else (1 / self.ratio, self.ratio)

    def distribution(self, values: Mapping[str, float]) -> LRDistribution:
        level = values["level"]
        return LRDistribution.from_layers(
            embeddings=level * values["embeddings"],
            layers=[level * values["slope"] ** (x / 2) * values["curvature"] ** (0.5 - x * x) for x in _PLACES],
            head=level * values["head"],
        )

    def read(self, distribution: LRDistribution, num_layers: int) -> dict[str, float] | None:
        rates = list(distribution.rates(num_layers).values())
        if 0 in rates[1:-1]:
            return None
        interpolated = LRDistribution.from_layers(embeddings=1.0, layers=rates[1:-1], head=1.0).rates(len(_PLACES))
        logs = [math.log(rate) for rate in list(interpolated.values())[1:-1]]
        bends = [0.5 - x * x for x in _PLACES]

        def coefficient(of: Sequence[float]) -> float:
            # Least squares: the three functions of x are orthogonal over these places.
            return sum(each * log for each, log in zip(of, logs, strict=True)) / sum(each * each for each in of)

        level = math.exp(coefficient([1.0] * len(_PLACES)))
        return {
            "embeddings": rates[0] / level,
            "level": level,
            "slope": math.exp(2 * coefficient(_PLACES)),
            "curvature": math.exp(coefficient(bends)),
            "head": rates[-1] / level,
        }


KINDS: Mapping[str, type[Kind]] = {"grouped": Grouped, "knots": Knots, "decay": Decay, "flat": Flat, "shape": Shape}


def _as_geometric(distribution: LRDistribution, num_layers: int) -> tuple[float, float] | None:
    """The head's rate and the log ratio from each depth to the next; None if the ratio is not constant."""
    rates = list(distribution.rates(num_layers).values())
    if 0 in rates:
        return None
    steps = [math.log(after / before) for before, after in itertools.pairwise(rates)]
    return None if max(steps) - min(steps) > TOLERANCE else (rates[-1], steps[0])
