"""The optimizers of a Trainer whose groups `LayerwiseLR` splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lr_dist._callback.changes import unwrapped
from lr_dist._callback.other_callbacks import callbacks_of
from lr_dist._lightning import L, rank_zero_warn
from lr_dist.errors import OptimizerCoverageError, UncoveredParametersWarning, UnsupportedOptimizerError
from lr_dist.kept_schedulers import kept_schedulers
from lr_dist.regroup import Placement, layer_optimizers, uncovered


def optimizers_to_split(optimizers: Sequence[Optimizer], placement: Placement) -> list[Optimizer]:
    """`layer_optimizers`; its error for no optimizer also says what to change in a LightningModule.

    Raises:
        UnsupportedOptimizerError: no optimizer at all.
        OptimizerCoverageError: see `layer_optimizers`.
    """
    try:
        return layer_optimizers(optimizers, placement)
    except UnsupportedOptimizerError as error:
        raise UnsupportedOptimizerError(
            f"{error} Return it from `configure_optimizers`, or remove the LayerwiseLR callback."
        ) from None


def schedulers_of(trainer: L.Trainer, optimizer: Optimizer) -> list[Any]:
    """The schedulers of one of the Trainer's optimizers."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return [scheduler for scheduler in schedulers if unwrapped(scheduler.optimizer) is optimizer]


def kept_for(trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer, but: type) -> list[Any]:
    """The schedulers of an optimizer that the module or another callback (no `but`) holds and steps itself."""
    owners = [pl_module, *(callback for callback in callbacks_of(trainer) if not isinstance(callback, but))]
    return kept_schedulers(owners, optimizer, schedulers_of(trainer, optimizer))


def check_coverage(module: nn.Module, optimizers: Sequence[Optimizer], placement: Placement) -> None:
    """Refuse trainable parameters of the layers that no optimizer holds.

    Raises:
        OptimizerCoverageError: there are some.

    Warns:
        UncoveredParametersWarning: there are some outside the layers.
    """
    layers, others = uncovered(optimizers, placement, module)
    if layers:
        raise OptimizerCoverageError(
            f"{without_rate(layers)} Pass them to the optimizer; to freeze a layer, give it the rate 0 in the "
            "distribution."
        )
    if others:
        rank_zero_warn(
            f"No optimizer holds {len(others)} trainable parameter(s) outside the layers, so LayerwiseLR gives "
            f"them no rate: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}.",
            category=UncoveredParametersWarning,
        )


def without_rate(names: Sequence[str]) -> str:
    """The sentence on parameters of the layers that no optimizer holds."""
    return (
        f"No optimizer holds {len(names)} trainable parameter(s) of the transformer's layers, which therefore get no "
        f"rate: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}."
    )
