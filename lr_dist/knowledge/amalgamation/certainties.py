"""How certain a teacher is of a text, and how clearly one teacher is more certain than all others (pure torch)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lr_dist.errors import NonFiniteScoresError, TeacherError

# Keeps the weight of an example above 0 where the two most certain teachers are equally certain.
MARGIN = 1e-6


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats [...] of probabilities [..., labels], with 0 ln 0 = 0."""
    return torch.special.entr(probabilities).sum(dim=-1)


def certainty(probabilities: Tensor) -> Tensor:
    """Certainty s = 1 - H(p) / ln C [...] of probabilities [..., C]: 1 for a single label, 0 for all labels alike.

    MUKA (Li et al. 2021, arXiv 2112.07327) takes for p the mean of the softmax over passes with dropout on.

    Raises:
        TeacherError: C is below 2, where ln C is no scale.
        NonFiniteScoresError: probabilities that are NaN, infinite or below 0.
    """
    count = probabilities.shape[-1]
    if count < 2:
        raise TeacherError(f"A teacher with {count} label(s) has no certainty (ln 1 = 0); it needs at least two.")
    # Entropy is -inf below 0 and NaN for NaN; +inf has entropy -inf.
    uncertain = entropy(probabilities)
    if not torch.isfinite(uncertain).all():
        raise NonFiniteScoresError("The probabilities of a teacher hold values that are NaN, infinite or below 0.")
    # Rounding may bring it beyond its bounds.
    return (1 - uncertain / math.log(count)).clamp(0, 1)


def margin_weights(certainties: Tensor) -> Tensor:
    """Weight m of each example: the largest certainty minus the second largest, plus 1e-6.

    Args:
        certainties: [examples, teachers].

    Returns:
        [examples].

    Raises:
        TeacherError: fewer than two teachers.
    """
    if certainties.shape[-1] < 2:
        raise TeacherError("The margin between teachers needs at least two of them.")
    best = certainties.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1] + MARGIN
