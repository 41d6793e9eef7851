"""Losses of single examples, and losses whose gradients give the Fisher matrix of a model's outputs.

For a loss that is a negative log-likelihood, the Gauss-Newton matrix is the Fisher matrix: the mean outer product of
gradients with labels from the model, not from the data (with the data's labels it is the empirical Fisher, another
matrix). The labels are `sampled`, one for each example, or `expected`: every label is taken, its gradient times the
square root of its probability, which is the exact mean over labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lr_dist.checks import check_finite
from lr_dist.errors import InfluenceError

Batch = Mapping[str, Any]
NOT_MASKED = -100


@dataclass(frozen=True)
class Objective(ABC):
    """A loss that is a sum over examples, each computed from its own row of a batch.

    Attributes:
        outputs: (model, batch) -> outputs, one row for each example.
    """

    outputs: Callable[[nn.Module, Batch], Tensor]

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of each example [batch], with its label."""
        return self.from_outputs(self.outputs(model, batch).float(), batch["labels"])

    @abstractmethod
    def from_outputs(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example [batch]."""

    @abstractmethod
    def labels_of(self, model: nn.Module, batch: Batch) -> int:
        """How many labels an example can have, each of which `expected_loss` takes.

        Raises:
            InfluenceError: too many to take each.
        """

    @abstractmethod
    def sampled_loss(self, outputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        """Sum of losses with labels from the model, whose squared gradients are on average the Gauss-Newton matrix.

        Args:
            outputs: of the model, one row for each example.
            labels: of the data; they say where labels are drawn, not which.
            uniform: numbers from 0 to 1, in the shape of `labels`, which determine the draws.
        """

    @abstractmethod
    def expected_loss(self, outputs: Tensor, number: int) -> Tensor:
        """Sum of the losses with label `number`, each with the gradient times the root of the label's probability."""


@dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy of outputs [batch, classes]."""

    def from_outputs(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(outputs, labels, reduction="none")

    def labels_of(self, model: nn.Module, batch: Batch) -> int:
        with torch.no_grad():
            return self.outputs(model, batch).shape[-1]

    def sampled_loss(self, outputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        return cross_entropy(outputs, drawn(outputs, uniform), reduction="sum")

    def expected_loss(self, outputs: Tensor, number: int) -> Tensor:
        logs = outputs.log_softmax(-1)[:, number]
        return -(logs.detach().exp().sqrt() * logs).sum()


@dataclass(frozen=True)
class Regression(Objective):
    """Negative log-likelihood of a normal distribution around the output [batch, 1], without its constant.

    (output - label)^2 / (2 * variance): a variance of 1/2 gives the squared error.
    """

    variance: float = 1.0

    def __post_init__(self) -> None:
        check_finite("variance", self.variance, positive=True, error=InfluenceError)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.from_outputs(self.outputs(model, batch), batch["labels"])

    def from_outputs(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.reshape(labels.shape) - labels).square() / (2 * self.variance)

    def labels_of(self, model: nn.Module, batch: Batch) -> int:
        return 1  # the mean over labels is known in closed form

    def sampled_loss(self, outputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        means = outputs.reshape(labels.shape)
        noise = torch.special.ndtri(uniform.to(outputs.dtype)) * self.variance**0.5
        return self.from_outputs(means, means.detach() + noise).sum()

    def expected_loss(self, outputs: Tensor, number: int) -> Tensor:
        return outputs.sum() / self.variance**0.5


@dataclass(frozen=True)
class MaskedTokens(Objective):
    """Mean cross-entropy over the masked tokens of each text: outputs [batch, tokens, words], labels [batch, tokens].

    Tokens that are not masked have the label -100.
    """

    def from_outputs(self, outputs: Tensor, labels: Tensor) -> Tensor:
        each = cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=NOT_MASKED)
        masked = (labels != NOT_MASKED).sum(1)
        return each.view_as(labels).sum(1) / masked.clamp(min=1)

    def labels_of(self, model: nn.Module, batch: Batch) -> int:
        raise InfluenceError(
            "Expected labels of masked tokens would take a pass for every word at every masked place. Use sampled ones."
        )

    def sampled_loss(self, outputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        draws = drawn(outputs.flatten(0, 1), uniform.flatten()).view_as(labels)
        losses = self.from_outputs(outputs, torch.where(labels == NOT_MASKED, NOT_MASKED, draws))
        # The mean over n tokens is a likelihood divided by n: its Gauss-Newton matrix is the mean of the tokens' Fisher
        # matrices, and the squared gradient of the mean would be that divided by n again.
        return (losses * (labels != NOT_MASKED).sum(1).sqrt()).sum()

    def expected_loss(self, outputs: Tensor, number: int) -> Tensor:
        raise NotImplementedError  # labels_of refuses it before


def drawn(outputs: Tensor, uniform: Tensor) -> Tensor:
    """Labels [rows] drawn from the softmax of outputs [rows, labels] with one uniform number a row."""
    heights = outputs.detach().double().softmax(-1).cumsum(-1)
    # The last height is 1 only up to rounding.
    return torch.searchsorted(heights, uniform.double()[:, None]).squeeze(1).clamp(max=outputs.shape[-1] - 1)
