"""The search space: a family of distributions, its parameters and their bounds."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lr_dist.distribution import LRDistribution
from lr_dist.errors import ConfigurationError, InvalidDistributionError, shown
from lr_dist.names import one_of
from lr_dist.rate_plan import RatePlan
from lr_dist.search.space.kinds import KINDS, MOST_KNOTS, TOLERANCE, Kind

if TYPE_CHECKING:
    from optuna.trial import Trial

FAMILIES = tuple(KINDS)
# The parameter of a staged space.
LATER = "later"


@dataclass(frozen=True)
class Space:
    """A family of learning-rate distributions with bounds.

    - `grouped`: ten rates, those of arXiv 2404.01317 (embeddings, g1 ... g8, head).
    - `knots`: rates at k relative depths from the first layer to the last, interpolated in log space, and one rate each
      for embeddings and head.
    - `decay`: the head's rate and the factor from each layer to the one below it (LLRD).
    - `flat`: one rate everywhere, the control for every other family.
    - `shape`: five numbers: level, slope and curvature over depth, embeddings and head; see `kinds.Shape`.

    Rates are log-uniform in [low, high]. Parameter names: `embeddings`, `g1` ..., `k1` ..., `head`; `lr`
    and `factor` for `decay`, `lr` for `flat`; `level`, `slope` and `curvature` for `shape`. If `staged`, there is one
    more, `later`: the factor on all rates from the second stage on.

    Raises:
        ConfigurationError: an unknown family or parameter, invalid bounds, or no parameter left to search.
    """

    family: str = field(default="knots", metadata={"option": "space"})
    """Family of distributions to search: grouped, knots, decay, flat or shape."""

    low: float = 1e-7
    """Lower bound of every rate."""

    high: float = 1e-3
    """Upper bound of every rate."""

    knots: int = 4
    """For the space knots: number of rates over the layers."""

    factor_low: float = 0.3
    """For the space decay: lower bound of the factor from each layer to the one below."""

    factor_high: float = 1.0
    """For the space decay: upper bound of that factor."""

    ratio: float = 10.0
    """For the space shape: slope, curvature, embeddings and head are factors between 1/ratio and ratio."""

    staged: bool = False
    """Search for one more number, later: a factor on all rates from the second task on (true or false)."""

    later_low: float = 0.1
    """For a staged space: lower bound of the factor later."""

    later_high: float = 1.0
    """For a staged space: upper bound of the factor later."""

    fixed: Mapping[str, float] = field(default_factory=dict)
    """Parameters that are not searched, with their values, {embeddings: 0}; a rate of 0 freezes the layer."""

    def __post_init__(self) -> None:
        if not isinstance(self.family, str) or self.family not in FAMILIES:
            raise ConfigurationError(f"The space must be {one_of(FAMILIES, self.family)}")
        for low, high, what in (
            (self.low, self.high, "low and high"),
            (self.factor_low, self.factor_high, "factor_low and factor_high"),
            (self.later_low, self.later_high, "later_low and later_high"),
        ):
            if not (_positive(low) and _positive(high) and low < high):
                raise ConfigurationError(
                    f"{what} must be finite numbers with 0 < low < high, not {shown(low)}, {shown(high)}."
                )
        if isinstance(self.knots, bool) or not isinstance(self.knots, int) or not 1 <= self.knots <= MOST_KNOTS:
            raise ConfigurationError(f"knots must be a whole number from 1 to {MOST_KNOTS}, not {shown(self.knots)}.")
        if not (_positive(self.ratio) and self.ratio > 1):
            raise ConfigurationError(f"ratio must be a finite number above 1, not {shown(self.ratio)}.")
        if not isinstance(self.staged, bool):
            raise ConfigurationError(f"staged must be true or false, not {shown(self.staged)}.")
        if not isinstance(self.fixed, Mapping):
            raise ConfigurationError(f"fixed must map parameters to values, not be {shown(self.fixed)}.")
        unknown = [name for name in self.fixed if name not in self.names]
        if unknown:
            raise ConfigurationError(
                f"fixed names {', '.join(map(str, unknown))}, but the space {self.family} has the parameters "
                f"{', '.join(self.names)}."
            )
        # A copy, because the caller may change its mapping.
        object.__setattr__(self, "fixed", dict(self.fixed))
        if not self.searched:
            raise ConfigurationError(
                f"fixed holds every parameter of the space {self.family}; leave at least one to search."
            )
        try:
            self.plan({name: self.bounds(name)[1] for name in self.searched})
        except InvalidDistributionError as error:
            raise ConfigurationError(f"The bounds or fixed hold a value that is not a valid rate: {error}") from error

    @cached_property
    def kind(self) -> Kind:
        """The family's `Kind`, with the settings that it uses."""
        kind = KINDS[self.family]
        return kind(**{each.name: getattr(self, each.name) for each in fields(kind)})  # type: ignore[arg-type]

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, in the order of depth."""
        return (*self.kind.names, LATER) if self.staged else self.kind.names

    @property
    def searched(self) -> tuple[str, ...]:
        """The parameters that are sampled for a trial."""
        return tuple(name for name in self.names if name not in self.fixed)

    def bounds(self, name: str) -> tuple[float, float]:
        """The smallest and the largest value of a searched parameter."""
        if self.staged and name == LATER:
            return self.later_low, self.later_high
        return self.kind.bounds(name) or (self.low, self.high)

    def sample(self, trial: Trial) -> dict[str, float]:
        """Sample the searched parameters, each log-uniform within its bounds."""
        return {name: trial.suggest_float(name, *self.bounds(name), log=True) for name in self.searched}

    def suggest(self, trial: Trial) -> LRDistribution:
        """The distribution of a trial; of the first stage, if the space is staged."""
        return self.distribution(self.sample(trial))

    def suggest_plan(self, trial: Trial) -> RatePlan:
        """The distributions of all stages for a trial."""
        return self.plan(self.sample(trial))

    def distribution(self, searched: Mapping[str, float]) -> LRDistribution:
        """The distribution for a trial's parameters; of the first stage, if the space is staged."""
        values = {**searched, **self.fixed}
        return self.kind.distribution({name: values[name] for name in self.kind.names})

    def plan(self, searched: Mapping[str, float]) -> RatePlan:
        """The distributions of all stages for a trial's parameters."""
        first = self.distribution(searched)
        if not self.staged:
            return RatePlan((first,))
        later = {**searched, **self.fixed}[LATER]
        return RatePlan((first, first if later == 1 else first.scale(later)))

    def project(self, distribution: LRDistribution, num_layers: int) -> dict[str, float] | None:
        """The searched parameters that approximate a given distribution; None if the space cannot.

        Rates outside the bounds are clipped. `knots` takes the rates at its depths, `grouped` the mean log rate of each
        group's layers; `decay` can represent flat and geometric profiles only, `flat` only flat ones. A frozen depth
        cannot be sampled, so it must be in `fixed`.

        Args:
            distribution: absolute rates.
            num_layers: of the model on which the two are compared.
        """
        values = self.kind.read(distribution, num_layers)
        if values is not None and self.staged:
            values = {**values, LATER: 1.0}
        if values is None or any(values[name] == 0 for name in self.searched):
            return None
        return {name: min(max(values[name], self.bounds(name)[0]), self.bounds(name)[1]) for name in self.searched}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, part of a study's identity."""
        common = {"family": self.family, "low": self.low, "high": self.high, "fixed": dict(self.fixed)}
        # Left out where it is not used: studies made before must find their space as it was written.
        names = ("staged", "later_low", "later_high") if self.staged else ()
        staged = {name: getattr(self, name) for name in names}
        return {**common, **asdict(self.kind), **staged}  # type: ignore[call-overload]

    @classmethod
    def with_names(cls, names: Collection[str]) -> Space | None:
        """The space with default bounds that has exactly these parameters; None if there is none."""
        for family, kind in KINDS.items():
            space = cls(family, staged=LATER in names, **kind.settings_for(names))
            if set(space.names) == set(names):
                return space
        return None


def is_flat(distribution: LRDistribution) -> bool:
    """Whether a distribution is one rate everywhere, with nothing frozen; rounding does not count."""
    rates = distribution.rates(12).values()
    return min(rates) > 0 and math.log(max(rates) / min(rates)) < TOLERANCE


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
