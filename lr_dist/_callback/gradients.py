"""Saves and restores the gradients of an unfinished accumulation window, in every process."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from lr_dist.errors import ResumeMismatchError


def waiting_gradients(module: nn.Module, stepped: Collection[int]) -> dict[str, torch.Tensor]:
    """Copies on the CPU of the gradients that no optimizer step has used yet.

    Under DDP they differ between the processes, which exchange gradients only at the end of a window. Of a sharded
    parameter each process has its shard.

    Args:
        module: the LightningModule.
        stepped: `id` of each parameter whose optimizer took its step with the gradient it has now.
    """
    return {
        name: _local(parameter.grad).detach().cpu().clone()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and id(parameter) not in stepped
    }


def restore_gradients(module: nn.Module, gradients: dict[str, torch.Tensor]) -> None:
    """Set the gradients that `waiting_gradients` returned in this process.

    Raises:
        ResumeMismatchError: a gradient's shape is not its parameter's. Within a window FSDP1 holds whole gradients, but
            sharded parameters.
    """
    for name, parameter in module.named_parameters():
        if name not in gradients:
            continue
        shape, held = tuple(gradients[name].shape), tuple(_local(parameter).shape)
        if shape != held:
            raise ResumeMismatchError(
                f"The checkpoint was written within an accumulation window, and its gradient of {name} has the shape "
                f"{shape}, where this process holds {held}: under FSDP1 a window cannot be continued. Resume from a "
                "checkpoint that was written after an optimizer step, or use ModelParallelStrategy (FSDP2)."
            )
        parameter.grad = _like(parameter, gradients[name])


def _local(gradient: Any) -> torch.Tensor:
    """The shard of this process, if the gradient is a DTensor (FSDP2, tensor parallelism)."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient


def _like(parameter: Any, gradient: torch.Tensor) -> torch.Tensor:
    # A copy: the backward pass adds to it in place.
    gradient = gradient.to(_local(parameter).device, copy=True)
    if not hasattr(parameter, "to_local"):
        return gradient
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        gradient,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
