"""The constructors of a distribution that take what was measured on a model, in place of rates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from lr_dist._distribution.inverse import LEAST_COST, inverse_factors
from lr_dist._distribution.rates import check_factor

if TYPE_CHECKING:
    from torch import nn

    from lr_dist.layers import Overrides


class MeasuredRates(ABC):
    """Constructors of `LRDistribution` that need no search: each makes a `from_layers` distribution."""

    @classmethod
    @abstractmethod
    def from_layers(cls, embeddings: float, layers: Sequence[float], head: float, *, relative: bool = False) -> Self:
        """An explicit rate for each of `len(layers)` layers."""

    @classmethod
    def from_spectrum(
        cls,
        model: nn.Module,
        lr: float,
        *,
        s1: float = 0.5,
        s2: float = 1.5,
        overrides: Overrides | None = None,
        relative: bool = False,
    ) -> Self:
        """Rates from a model's weights alone, without a search: LLR (arXiv 2605.22297), after TempBalance.

        A layer's rate is `lr` x (s1 + (alpha - min) / (max - min) x (s2 - s1)), where alpha is the mean, over its
        weight matrices, of the Hill estimate of the tail of the eigenvalues of W'W. The layer with the least heavy
        tail has the rate s2 x lr, the one with the heaviest s1 x lr; embeddings and head have `lr`. The result is a
        `from_layers` distribution: it holds the numbers, and no longer needs the model.

        Args:
            model: a transformer with its pre-trained weights.
            lr: the rate of the factor 1 (> 0).
            s1: factor of the layer with the heaviest tail (> 0).
            s2: factor of the layer with the least heavy tail (>= s1).
            overrides: ordered regex -> group name, for parameters that no rule places (see `assign_layers`).
            relative: whether `lr` is a multiple of the optimizer's own rate.

        Raises:
            InvalidRateError: `lr`, `s1` or `s2` out of range.
            UnsupportedWeightsError: weights on the meta device, quantised, sharded, NaN, or without a matrix.
            LRDistError: what `assign_layers` raises.
        """
        from lr_dist._distribution.spectrum import spectral_rates

        layers = spectral_rates(model, lr, s1, s2, overrides)
        return cls.from_layers(embeddings=lr, layers=layers, head=lr, relative=relative)

    @classmethod
    def from_fisher(
        cls,
        fisher: Mapping[str, float],
        lr: float,
        *,
        power: float = 0.5,
        limit: float = 10.0,
        head: float | None = None,
        permuted: int | None = None,
        relative: bool = False,
    ) -> Self:
        """Rates that fall with each layer's Fisher information of earlier knowledge, without a search.

        A layer's rate is lr x (F / mean F)^-power, where F is its Fisher information per parameter, and mean F the
        geometric mean over embeddings and layers. Moving the n parameters of a layer by r each costs the earlier
        knowledge about n F r^2 / 2 (its log-likelihood to second order, as in EWC); for a given mean movement the total
        is least for r proportional to 1 / F, which is power=1. The result is a `from_layers` distribution.
        `lr_dist.methods.fisher_rates` computes F from a model and a few hundred examples.

        Args:
            fisher: `embeddings`, `layers.0`, ... -> F (> 0); `head` may be among them, and is not used.
            lr: the geometric mean of the rates of embeddings and layers, if none is cut (> 0).
            power: 0 (all have `lr`) or more.
            limit: no rate is above limit x lr or below lr / limit.
            head: the head's rate, by default `lr`: that of a new task holds no earlier knowledge.
            permuted: seed of a permutation of the rates over depth: the control that tells whether it matters which
                layer has which.
            relative: whether the rates are multiples of the optimizer's own rate.

        Raises:
            InvalidDistributionError: `fisher` is not for the groups of a model, or an invalid `permuted`.
            InvalidRateError: a value of `fisher`, `lr`, `power`, `limit` or `head` out of range.
        """
        factors = inverse_factors(fisher, power=power, limit=limit, permuted=permuted)
        return cls._of_factors(factors, lr, head, relative)

    @classmethod
    def from_drift(
        cls,
        cost: Mapping[str, float],
        lr: float,
        *,
        power: float = 0.5,
        limit: float = 10.0,
        head: float | None = None,
        permuted: int | None = None,
        relative: bool = False,
    ) -> Self:
        """Rates that fall with what each layer's movement cost the old tasks in one short run with a flat rate.

        As `from_fisher`, with the cost in the place of F; one of 0 or less counts as a thousandth of the largest.
        `lr_dist.retention.drift_rates` measures the costs.

        Args:
            cost: `embeddings`, `layers.0`, ... -> what the score on the old tasks gains if this layer is put back.
            lr: as in `from_fisher`.
            power: as in `from_fisher`.
            limit: as in `from_fisher`.
            head: as in `from_fisher`.
            permuted: as in `from_fisher`.
            relative: as in `from_fisher`.

        Raises:
            InvalidDistributionError: as `from_fisher`.
            InvalidRateError: as `from_fisher`, or no layer's movement cost anything.
        """
        factors = inverse_factors(cost, power=power, limit=limit, permuted=permuted, least=LEAST_COST)
        return cls._of_factors(factors, lr, head, relative)

    @classmethod
    def _of_factors(cls, factors: Mapping[str, float], lr: float, head: float | None, relative: bool) -> Self:
        check_factor("lr", lr)
        embeddings, *layers = (lr * factor for factor in factors.values())
        return cls.from_layers(embeddings, layers, lr if head is None else head, relative=relative)
