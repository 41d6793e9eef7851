"""The factors by which Lightning scales losses and gradients between `training_step` and the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lr_dist._callback.changes import unwrapped
from lr_dist._lightning import L


def gradient_scaler(trainer: L.Trainer) -> Any:
    """The gradient scaler of `16-mixed`; None if there is none or it is switched off."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def unscaled(trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> Tensor:
    """The loss that `training_step` returned, computed from the one that `on_before_backward` receives.

    Lightning divides it by the length of the accumulation window (not under manual optimization), and a gradient scaler
    multiplies it by its scale.
    """
    if (scaler := gradient_scaler(trainer)) is not None:
        loss = loss / scaler.scale(torch.ones_like(loss))
    if module.automatic_optimization:
        loss = loss * trainer.accumulate_grad_batches
    return loss


def loss_scale(trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> Tensor:
    """What a term that is added to the loss in `on_before_backward` has to be multiplied by: the inverse of `unscaled`.

    Args:
        trainer: of the fit.
        module: its module.
        loss: as `on_before_backward` receives it.

    Returns:
        A scalar on the loss's device.
    """
    scale = torch.ones_like(loss)
    if (scaler := gradient_scaler(trainer)) is not None:
        scale = scaler.scale(scale)
    return scale / trainer.accumulate_grad_batches if module.automatic_optimization else scale


def gradient_scale(trainer: L.Trainer, optimizer: Any) -> float:
    """What gradients are multiplied by when `on_before_optimizer_step` is called.

    1, except for an optimizer that divides by the gradient scaler's factor itself, as fused Adam does.
    """
    scaler = gradient_scaler(trainer)
    # The attribute by which torch marks such optimizers; Lightning's plugin reads it too.
    scales_itself = getattr(unwrapped(optimizer), "_step_supports_amp_scaling", False)
    return float(scaler.get_scale()) if scaler is not None and scales_itself else 1.0
