"""L2-SP: a quadratic pull to the pre-trained weights (Li et al. 2018, arXiv 1802.01483, equation 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lr_dist.sequence.methods.base import Method

if TYPE_CHECKING:
    from lr_dist.sequence.classifier import SequenceClassifier


class L2SP(Method):
    """Adds alpha / 2 * |theta - theta_0|^2 over the backbone's trainable weights; heads are left free.

    Args:
        alpha: strength of the pull, >= 0.
    """

    name = "l2-sp"

    def __init__(self, alpha: float = 0.01) -> None:
        self.alpha = float(alpha)
        self._start: dict[str, Tensor] = {}

    def before_sequence(self, model: SequenceClassifier) -> None:
        self._start = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}

    def loss(self, model: SequenceClassifier, batch: dict[str, Tensor], task_loss: Tensor) -> Tensor:
        pulls = [
            torch.sum((p - self._start[name].to(p.device)) ** 2)
            for name, p in model.backbone.named_parameters()
            if p.requires_grad
        ]
        return task_loss + 0.5 * self.alpha * torch.stack(pulls).sum() if pulls else task_loss

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "alpha": self.alpha}
