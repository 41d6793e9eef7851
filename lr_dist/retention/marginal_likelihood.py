"""log p(x) of a model that predicts masked tokens (Moreno-Munoz et al., arXiv 2306.00520).

For x of D tokens let S_m be the mean over all masks M of size m of (1/m) sum_{j in M} log p(x_j | x outside M). By the
chain rule, averaged over all orders of the tokens,

    log p(x) = S_1 + S_2 + ... + S_D.

Every S_m can be estimated from any number of random masks without bias, and so can the sum. A fixed share of masked
tokens estimates only one S_m; D * S_m is another quantity. D * S_1 is the pseudo-log-likelihood (Salazar et al. 2020).

A model whose conditional probabilities contradict each other has another log p(x) in every order of the tokens: the
sum is their mean, and `order_spread` measures how far they lie apart (0 for a consistent model).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from lr_dist.checks import check_whole
from lr_dist.errors import InvalidMasksError, ScoringError
from lr_dist.retention.masks import MaskPlan, draw_masks

ConditionalLogProb = Callable[[Tensor], Tensor]
"""Masks, bool [rows, D] -> log p(x_j | x outside the mask), float [rows, D]; only masked entries are read."""

# 7! = 5,040 orders of 7 tokens.
_MOST_ORDERED = 7


@dataclass(frozen=True)
class SizePoint:
    """S_m, estimated.

    Attributes:
        size: number of masked tokens, m.
        mean: estimate of S_m, in nats a token.
        standard_error: of the mean, over masks.
        masks: number of masks.
    """

    size: int
    mean: float
    standard_error: float
    masks: int


@dataclass(frozen=True)
class MarginalLikelihood:
    """An estimate of log p(x).

    Attributes:
        tokens: D.
        total: estimate of log p(x), in nats.
        standard_error: of `total`, over masks and over the choice of mask sizes.
        curve: S_m for every size in use, by size.
    """

    tokens: int
    total: float
    standard_error: float
    curve: tuple[SizePoint, ...]

    @property
    def per_token(self) -> float:
        """Nats a token."""
        return self.total / self.tokens

    @property
    def per_token_error(self) -> float:
        """Standard error of `per_token`."""
        return self.standard_error / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "tokens": self.tokens,
            "log_likelihood": self.total,
            "standard_error": self.standard_error,
            "per_token": self.per_token,
            "curve": [[point.size, point.mean, point.standard_error, point.masks] for point in self.curve],
        }


@dataclass(frozen=True)
class OrderSpread:
    """log p(x) by the chain rule in several orders of the tokens.

    Attributes:
        values: log p(x) in each order, in nats.
        complete: whether these are all orders.
    """

    values: tuple[float, ...]
    complete: bool

    @property
    def mean(self) -> float:
        """Mean over the orders; unbiased for the sum of S_m."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float:
        """Standard deviation over the orders: 0 for a model whose conditionals belong to one distribution."""
        return statistics.pstdev(self.values) if self.complete else statistics.stdev(self.values)


def marginal_likelihood(
    conditional_log_prob: ConditionalLogProb,
    length: int,
    *,
    masks: int | None = 4,
    sizes: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> MarginalLikelihood:
    """Estimate log p(x) of one text, without bias.

    Args:
        conditional_log_prob: the model for this text: masks, bool [rows, D] -> log p(x_j | x outside the mask), [rows,
            D]. Entries that are not masked are ignored.
        length: D, the tokens that can be masked.
        masks: masks a size, 2 or more; None: every mask, which makes the sum exact (at most 16 tokens).
        sizes: how many mask sizes to use, see `draw_masks`; None: all.
        batch_size: most masks in one call of `conditional_log_prob`.
        seed: of the masks and sizes.

    Returns:
        The estimate, its standard error and the curve.

    Raises:
        InvalidMasksError: see `draw_masks`.
        ScoringError: `conditional_log_prob` returns another shape, or something that is no log-probability.
    """
    plan = draw_masks(length, masks=masks, sizes=sizes, seed=seed)
    values = _evaluated(conditional_log_prob, plan.masks, batch_size)
    return estimate(plan, values.where(plan.masks, 0.0).sum(dim=1) / plan.sizes)


def estimate(plan: MaskPlan, means: Tensor) -> MarginalLikelihood:
    """log p(x) from the outcome of each mask of a plan.

    The total is sum_h (N_h / n_h) sum_{m in h} S_m over strata of N_h sizes, n_h of them drawn. Its variance is that of
    two-stage sampling without replacement (Cochran, Sampling Techniques, 11.4), N_h^2 (1 - n_h / N_h) s_h^2 / n_h +
    (N_h / n_h) sum_m v_m, with s_h^2 the variance between the sizes and v_m that of the mean over masks: unbiased.

    Args:
        plan: of the text.
        means: [rows], the mean over the masked tokens of log p, of each mask.
    """
    means = means.double().cpu()
    points: dict[int, SizePoint] = {}
    total = variance = 0.0
    for stratum in plan.strata:
        for size in stratum.sizes:
            chosen = means[plan.sizes == size]
            error = 0.0 if size in plan.complete else float(chosen.std()) / math.sqrt(len(chosen))
            points[size] = SizePoint(size, float(chosen.mean()), error, len(chosen))
        of_sizes = [points[size] for size in stratum.sizes]
        drawn, weight = len(of_sizes), stratum.weight
        total += weight * math.fsum(point.mean for point in of_sizes)
        variance += weight * math.fsum(point.standard_error**2 for point in of_sizes)
        if drawn < stratum.count:
            between = statistics.variance(point.mean for point in of_sizes)
            variance += stratum.count**2 * (1 - drawn / stratum.count) * between / drawn
    return MarginalLikelihood(plan.length, total, math.sqrt(variance), tuple(points[size] for size in sorted(points)))


def pseudo_log_likelihood(conditional_log_prob: ConditionalLogProb, length: int, *, batch_size: int = 64) -> float:
    """sum_j log p(x_j | all other tokens) = D * S_1 (Salazar et al. 2020), exactly; it is not log p(x).

    Args:
        conditional_log_prob: as in `marginal_likelihood`.
        length: D.
        batch_size: most masks in one call.
    """
    check_whole("length", length, 1, error=InvalidMasksError)
    masks = torch.eye(length, dtype=torch.bool)
    return float(_evaluated(conditional_log_prob, masks, batch_size).diagonal().sum())


def order_spread(
    conditional_log_prob: ConditionalLogProb,
    length: int,
    *,
    orders: int | None = 8,
    batch_size: int = 64,
    seed: int = 0,
) -> OrderSpread:
    """log p(x) by the chain rule in random orders of the tokens; each order takes D masks.

    Args:
        conditional_log_prob: as in `marginal_likelihood`.
        length: D.
        orders: how many, 2 or more; None: every order (at most 7 tokens).
        batch_size: most masks in one call.
        seed: of the orders.

    Raises:
        InvalidMasksError: fewer than two orders, or too many tokens for every order.
    """
    check_whole("length", length, 1, error=InvalidMasksError)
    if orders is None:
        if length > _MOST_ORDERED:
            raise InvalidMasksError(f"{length} tokens have too many orders to try them all; give a number of orders.")
        chosen = torch.tensor(list(permutations(range(length))))
    else:
        check_whole("orders", orders, 2, error=InvalidMasksError, hint="One order has no spread.")
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.stack([torch.randperm(length, generator=generator) for _ in range(orders)])
    # Rank of each token in its order; at step t, the tokens from rank t on are hidden, and the one of rank t is read.
    ranks = chosen.argsort(dim=1)
    masks = ranks[:, None, :] >= torch.arange(length)[:, None]
    values = _evaluated(conditional_log_prob, masks.flatten(0, 1), batch_size).view(len(chosen), length, length)
    read = values.gather(2, chosen[:, :, None]).squeeze(2)
    return OrderSpread(tuple(read.sum(dim=1).tolist()), complete=orders is None)


def _evaluated(conditional_log_prob: ConditionalLogProb, masks: Tensor, batch_size: int) -> Tensor:
    """float64 [rows, D]; 0 where a token is not masked."""
    check_whole("batch_size", batch_size, 1, error=InvalidMasksError)
    parts = []
    for batch in masks.split(batch_size):
        values = conditional_log_prob(batch)
        if not isinstance(values, Tensor) or values.shape != batch.shape:
            got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ScoringError(
                f"conditional_log_prob must return one log-probability for each entry of the masks {tuple(batch.shape)}"
                f", not {got}."
            )
        values = values.detach().double().cpu().where(batch, 0.0)
        if not bool(values.isfinite().all()):
            raise ScoringError("conditional_log_prob returned NaN or infinity (a probability of 0) for a masked token.")
        parts.append(values)
    return torch.cat(parts)
