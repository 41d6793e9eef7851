"""What is searched: a family of distributions, its free rates and their bounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lr_dist._distribution.families import grouped_layers, weighted_mean
from lr_dist.distribution import LRDistribution
from lr_dist.errors import ConfigurationError, InvalidDistributionError, shown

if TYPE_CHECKING:
    from optuna.trial import Trial

GROUPED = ("embeddings", *(f"g{i}" for i in range(1, 9)), "head")
FAMILIES = ("grouped", "knots", "decay", "flat")


@dataclass(frozen=True)
class Space:
    """A family of learning-rate distributions with bounds.

    - `grouped`: ten rates, those of arXiv 2404.01317 (embeddings, g1 ... g8, head).
    - `knots`: rates at k relative depths from the first layer to the last, linear in log rate between them, and one
      each for embeddings and head.
    - `decay`: the head's rate and the factor from each layer to the one below it (LLRD).
    - `flat`: one rate, the control that every other family is compared with.

    Rates are log-uniform in [low, high]. Names of the parameters: `embeddings`, `g1` ..., `k1` ..., `head`; `lr`
    and `factor` for `decay`, `lr` for `flat`.

    Attributes:
        family: see above.
        low, high: bounds of every rate.
        knots: k, for `knots`.
        factor_low, factor_high: bounds of `factor`, for `decay`.
        fixed: parameter -> its value, for what is not searched; a rate of 0 freezes.

    Raises:
        ConfigurationError: an unknown family or parameter, bounds that hold nothing, or nothing left to search.
    """

    family: str = "knots"
    low: float = 1e-7
    high: float = 1e-3
    knots: int = 4
    factor_low: float = 0.3
    factor_high: float = 1.0
    fixed: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.family, str) or self.family not in FAMILIES:
            raise ConfigurationError(f"The space must be one of {', '.join(FAMILIES)}, not {shown(self.family)}.")
        for low, high, what in (
            (self.low, self.high, "low and high"),
            (self.factor_low, self.factor_high, "factor_low and factor_high"),
        ):
            if not (_positive(low) and _positive(high) and low < high):
                raise ConfigurationError(
                    f"{what} must be finite numbers with 0 < low < high, not {shown(low)}, {shown(high)}."
                )
        if isinstance(self.knots, bool) or not isinstance(self.knots, int) or not 1 <= self.knots <= 100:
            raise ConfigurationError(f"knots must be a whole number from 1 to 100, not {shown(self.knots)}.")
        if not isinstance(self.fixed, Mapping):
            raise ConfigurationError(f"fixed must map parameters to values, not be {shown(self.fixed)}.")
        unknown = [name for name in self.fixed if name not in self.names]
        if unknown:
            raise ConfigurationError(
                f"fixed names {', '.join(map(str, unknown))}, which the space {self.family} does not have: "
                f"{', '.join(self.names)}."
            )
        # A copy of our own: the caller's may change.
        object.__setattr__(self, "fixed", dict(self.fixed))
        if not self.searched:
            raise ConfigurationError(f"fixed leaves nothing to search in the space {self.family}.")
        try:
            self.distribution({name: self.bounds(name)[1] for name in self.searched})
        except InvalidDistributionError as error:
            raise ConfigurationError(f"The bounds or fixed hold a value that is no rate: {error}") from error

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, in the order of depth."""
        if self.family == "grouped":
            return GROUPED
        if self.family == "knots":
            return ("embeddings", *(f"k{i}" for i in range(1, self.knots + 1)), "head")
        return ("lr", "factor") if self.family == "decay" else ("lr",)

    @property
    def searched(self) -> tuple[str, ...]:
        """The parameters that a trial draws."""
        return tuple(name for name in self.names if name not in self.fixed)

    def bounds(self, name: str) -> tuple[float, float]:
        """The smallest and the largest value of a searched parameter."""
        return (self.factor_low, self.factor_high) if name == "factor" else (self.low, self.high)

    def suggest(self, trial: Trial) -> LRDistribution:
        """Draw the searched parameters, each log-uniform within its bounds."""
        drawn = {name: trial.suggest_float(name, *self.bounds(name), log=True) for name in self.searched}
        return self.distribution(drawn)

    def distribution(self, searched: Mapping[str, float]) -> LRDistribution:
        """The distribution of a trial's parameters."""
        values = {**searched, **self.fixed}
        if self.family == "flat":
            return LRDistribution.flat(values["lr"])
        if self.family == "decay":
            return LRDistribution.decay(values["lr"], values["factor"])
        if self.family == "grouped":
            return LRDistribution.grouped(values)
        layers = [values[f"k{i}"] for i in range(1, self.knots + 1)]
        return LRDistribution.from_layers(embeddings=values["embeddings"], layers=layers, head=values["head"])

    def project(self, distribution: LRDistribution, num_layers: int) -> dict[str, float] | None:
        """The searched parameters whose distribution comes near to a given one; None where none is near.

        Rates outside the bounds are brought to the bound. `knots` reads the rates at its depths, `grouped` takes the
        mean log rate of each group's layers; `decay` holds only flat and geometric profiles, `flat` only flat ones.
        A frozen depth cannot be drawn, so it must be among `fixed`.

        Args:
            distribution: absolute rates.
            num_layers: of the model, where the two shall agree.
        """
        rates = distribution.rates(num_layers)
        if self.family in ("flat", "decay"):
            values = self._geometric(list(rates.values()))
        else:
            layers = list(rates.values())[1:-1]
            values = {"embeddings": rates["embeddings"], **self._middle(distribution, layers), "head": rates["head"]}
        if values is None or any(values[name] == 0 for name in self.searched):
            return None
        return {name: min(max(values[name], self.bounds(name)[0]), self.bounds(name)[1]) for name in self.searched}

    def _geometric(self, rates: list[float]) -> dict[str, float] | None:
        """`lr` and `factor` of rates in one ratio from each depth to the next; None for any others."""
        if 0 in rates:
            return None
        steps = [math.log(after / before) for before, after in itertools.pairwise(rates)]
        if max(steps) - min(steps) > 1e-9 or (self.family == "flat" and abs(steps[0]) > 1e-9):
            return None
        return {"lr": rates[-1], "factor": math.exp(-steps[0])}

    def _middle(self, distribution: LRDistribution, layers: list[float]) -> dict[str, float]:
        """The parameters between embeddings and head."""
        names = self.names[1:-1]
        if self.family == "grouped":
            if distribution.family == "grouped" and not distribution.edits:
                own = dict(distribution.values)
                return {name: own[name] for name in names}
            members = grouped_layers(len(layers))
            if all(members) and 0 not in layers:
                means = [weighted_mean([layers[i] for i in group], [1.0] * len(group)) for group in members]
                return dict(zip(names, means, strict=True))
        # A distribution of M values is read at the depths of N layers; the same the other way round.
        read = LRDistribution.from_layers(embeddings=1.0, layers=layers, head=1.0).rates(len(names))
        return dict(zip(names, list(read.values())[1:-1], strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what must not change under one study's name."""
        own: dict[str, Any] = {"family": self.family, "low": self.low, "high": self.high, "fixed": dict(self.fixed)}
        if self.family == "knots":
            own["knots"] = self.knots
        if self.family == "decay":
            own |= {"factor_low": self.factor_low, "factor_high": self.factor_high}
        return own


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
