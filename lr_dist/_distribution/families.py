"""The families of learning-rate distributions: how a family's values give the rates for a number of layers.

Every family returns N + 2 rates in the order of depth: `embeddings`, `layers.0` ... `layers.N-1`, `head`.
Relative depth of `layers.j` is j / (N - 1), so a profile written for M layers keeps its first and its last
rate on N layers; those between are interpolated in log space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lr_dist._distribution.rates import LARGEST, SMALLEST
from lr_dist.errors import InvalidRateError

GROUPED_KEYS = ("embeddings", *(f"g{i}" for i in range(1, 9)), "head")


@dataclass(frozen=True)
class Family:
    """One way of writing a distribution.

    Attributes:
        rates: (values, N) -> N + 2 rates, by depth.
        rate_keys: the values that are learning rates (finite, >= 0); `scale` multiplies them.
        factor_keys: the values that are dimensionless positive factors.
        defaults: values that may be left out.
        log_linear: whether the geometric mean of the values is the geometric mean of the rates.
        instead: a key that may be given in place of another -> that other key.
    """

    rates: Callable[[Mapping[str, Any], int], list[float]]
    rate_keys: tuple[str, ...]
    factor_keys: tuple[str, ...] = ()
    defaults: Mapping[str, float] | None = None
    log_linear: bool = False
    instead: Mapping[str, str] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that may be given."""
        return (*self.rate_keys, *self.factor_keys, *self.instead)


def relative_depths(num_layers: int) -> list[float]:
    """Relative depth of each layer, from 0 (first) to 1 (last); a single layer is at 0.5."""
    if num_layers == 1:
        return [0.5]
    return [j / (num_layers - 1) for j in range(num_layers)]


def interpolate(rates: Sequence[float], num_layers: int) -> list[float]:
    """Interpolate the rates of M layers to N layers, linearly in log rate over relative depth.

    Next to a frozen layer (rate 0), which has no logarithm, the nearer layer's rate is used; at equal distance the
    shallower one's.
    """
    if len(rates) == num_layers:
        return list(rates)
    if len(rates) == 1:
        return [rates[0]] * num_layers
    result = []
    for j in range(num_layers):
        # Integer arithmetic: depths that both models have get exactly their rate, and "equal distance" is exact.
        # A single layer is at relative depth 1/2.
        below, rest = divmod(j * (len(rates) - 1), num_layers - 1) if num_layers > 1 else divmod(len(rates) - 1, 2)
        share = rest / (num_layers - 1 if num_layers > 1 else 2)
        low, high = rates[below], rates[min(below + 1, len(rates) - 1)]
        if share == 0 or low == high:
            result.append(low)
        elif low == 0 or high == 0:
            result.append(low if share <= 0.5 else high)
        else:
            rate = math.exp((1 - share) * math.log(low) + share * math.log(high))
            result.append(within(rate, (low, high)))
    return result


def within(mean: float, values: Sequence[float]) -> float:
    """`mean`, limited to the range of the `values`, which rounding could have left."""
    return min(max(mean, min(values)), max(values))


def grouped_layers(num_layers: int) -> list[range]:
    """The 0-based layers of the paper's groups g1..g8: ceil(N/8 (i-1)) .. ceil(N/8 i) - 1 (arXiv 2404.01317)."""
    edge = [-(-num_layers * i // 8) for i in range(9)]
    return [range(edge[i], edge[i + 1]) for i in range(8)]


def weighted_mean(rates: Sequence[float], weights: Sequence[float]) -> float:
    """The geometric mean `exp(sum w_i log rate_i / sum w_i)`, within the range of the rates that count."""
    counted = [(weight, rate) for weight, rate in zip(weights, rates, strict=True) if weight]
    total = math.fsum(weight for weight, _ in counted)
    log = math.fsum(weight / total * math.log(rate) for weight, rate in counted)
    return within(math.exp(log), [rate for _, rate in counted])


def _flat(values: Mapping[str, Any], num_layers: int) -> list[float]:
    return [values["lr"]] * (num_layers + 2)


def _decay(values: Mapping[str, Any], num_layers: int) -> list[float]:
    if "total" in values:
        return _to_total(values["lr"], values["total"], num_layers)
    return _geometric(values["lr"], values["factor"], num_layers, f"decay factor {values['factor']:g}")


def _discriminative(values: Mapping[str, Any], num_layers: int) -> list[float]:
    what = f"discriminative factor {values['factor']:g}"
    return _geometric(values["lr"], 1 / values["factor"], num_layers, what)


def _geometric(lr: float, factor: float, num_layers: int, what: str) -> list[float]:
    """The head at `lr`, every step towards the input multiplied by `factor` once more."""
    rates = []
    for steps in range(num_layers + 1, -1, -1):
        try:
            rate = lr * factor**steps if lr > 0 else 0.0
        except OverflowError:
            rate = math.inf
        # A rate that is rounded to 0 would freeze a layer that nobody asked to freeze.
        if lr > 0 and not SMALLEST <= rate <= LARGEST:
            raise InvalidRateError(
                f"{what} over {num_layers} layers leaves the range of floating-point numbers "
                f"({lr:g} x {factor:g}^{steps}). Use a factor closer to 1, or `from_layers`."
            )
        rates.append(rate)
    return rates


def _to_total(lr: float, total: float, num_layers: int) -> list[float]:
    """The head at `lr`, the embeddings at lr x total, equal ratios between: the factor follows from the depth."""
    last = num_layers + 1
    if lr > 0 and not SMALLEST <= lr * total <= LARGEST:
        raise InvalidRateError(
            f"decay from lr={lr:g} to total={total:g} of it leaves the range of floating-point numbers. Use a total "
            "closer to 1, such as 0.02."
        )
    return [lr * total ** (steps / last) for steps in range(last, -1, -1)]


def _linear(values: Mapping[str, Any], num_layers: int) -> list[float]:
    return _between(values, num_layers, lambda share: share)


def _cosine(values: Mapping[str, Any], num_layers: int) -> list[float]:
    return _between(values, num_layers, lambda share: (1 - math.cos(math.pi * share)) / 2)


def _between(values: Mapping[str, Any], num_layers: int, ease: Callable[[float], float]) -> list[float]:
    first, last = values["first"], values["last"]
    shares = [ease(i / (num_layers + 1)) for i in range(num_layers + 2)]
    return [within((1 - share) * first + share * last, (first, last)) for share in shares]


def _grouped(values: Mapping[str, Any], num_layers: int) -> list[float]:
    by_group = [values[key] for key in GROUPED_KEYS[1:-1]]
    layers = grouped_layers(num_layers)
    # Below 8 layers the formula leaves some groups without a layer, so their rates are interpolated instead.
    if all(layers):
        middle = [rate for rate, members in zip(by_group, layers, strict=True) for _ in members]
    else:
        middle = interpolate(by_group, num_layers)
    return [values["embeddings"], *middle, values["head"]]


def _from_layers(values: Mapping[str, Any], num_layers: int) -> list[float]:
    return [values["embeddings"], *interpolate(values["layers"], num_layers), values["head"]]


def _geometric_mean(values: Mapping[str, Any], num_layers: int) -> list[float]:
    columns = zip(*(part.rates(num_layers).values() for part in values["of"]), strict=True)
    return [weighted_mean(column, values["weights"]) for column in columns]


def _maximum(values: Mapping[str, Any], num_layers: int) -> list[float]:
    columns = zip(*(part.rates(num_layers).values() for part in values["of"]), strict=True)
    return [max(column) for column in columns]


# Families made of other distributions (`of`). They have no text form.
COMPOSED = ("geometric_mean", "maximum")
FAMILIES: Mapping[str, Family] = {
    "flat": Family(_flat, ("lr",), log_linear=True),
    "decay": Family(_decay, ("lr",), ("factor",), log_linear=True, instead={"total": "factor"}),
    "discriminative": Family(_discriminative, ("lr",), ("factor",), {"factor": 2.6}, log_linear=True),
    "linear": Family(_linear, ("first", "last")),
    "cosine": Family(_cosine, ("first", "last")),
    "grouped": Family(_grouped, GROUPED_KEYS, log_linear=True),
    "from_layers": Family(_from_layers, ("embeddings", "layers", "head"), log_linear=True),
    # Made by LRDistribution.geometric_mean if the mean does not belong to a family above.
    "geometric_mean": Family(_geometric_mean, (), ("of", "weights")),
    # Made by `Phases.peak`: the optimizer's rates, which every phase multiplies by factors of 1 or less.
    "maximum": Family(_maximum, (), ("of",)),
}
