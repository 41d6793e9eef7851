"""Compatibility of `LayerwiseLR` with strategies: refusals, and work that must precede the model's wrapping."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lr_dist._lightning import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    L,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    SingleDeviceXLAStrategy,
    XLAStrategy,
    rank_zero_warn,
)
from lr_dist.errors import RankMismatchError, UnsupportedStrategyError

_TESTED = (SingleDeviceStrategy, DDPStrategy, FSDPStrategy, ModelParallelStrategy)
_NEVER_RUN = (SingleDeviceXLAStrategy, XLAStrategy)  # subclasses of tested ones
_ORIGINAL_PARAMETERS = (
    "FSDP with use_orig_params=False flattens the parameters of many layers into one tensor, which can have only one "
    "learning rate. Use FSDPStrategy(use_orig_params=True), which is Lightning's default, and the same in every "
    "FullyShardedDataParallel(...) that the module calls itself; or FSDP2 (ModelParallelStrategy)."
)


def check_strategy(trainer: L.Trainer) -> None:
    """Refuse strategies under which a callback cannot split the parameter groups; warn about untested ones.

    Raises:
        UnsupportedStrategyError: DeepSpeed, or FSDP without the original parameters.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        raise UnsupportedStrategyError(
            "DeepSpeedStrategy builds its optimizer before a callback can split the parameter groups. Build them "
            "in `configure_optimizers` instead, Adam(lr_dist.param_groups(self, distribution)), and remove the "
            "LayerwiseLR callback; or use FSDP or DDP."
        )
    if isinstance(strategy, FSDPStrategy) and not strategy.kwargs.get("use_orig_params"):
        raise UnsupportedStrategyError(_ORIGINAL_PARAMETERS)
    if isinstance(strategy, _NEVER_RUN) or not isinstance(strategy, _TESTED):
        rank_zero_warn(
            f"LayerwiseLR was not tested under {type(strategy).__name__}. It works if the strategy takes its "
            "optimizers from `configure_optimizers` and keeps their parameter groups. Compare the rates that "
            "LearningRateMonitor logs with the table that is printed when training starts."
        )


def check_parameters(pl_module: nn.Module) -> None:
    """Refuse a module that has wrapped itself in FSDP with flattened parameters.

    Raises:
        UnsupportedStrategyError: FSDP without the original parameters.
    """
    if any(name.rpartition(".")[2] == "_flat_param" for name, _ in pl_module.named_parameters()):
        raise UnsupportedStrategyError(_ORIGINAL_PARAMETERS)


def after_configure_model(pl_module: L.LightningModule, act: Callable[[], None]) -> None:
    """Call `act` once, after `configure_model` has made the model and before the strategy wraps it.

    Lightning calls no hook between the two. DDP expects a gradient in every step for each parameter that was trainable
    when it wrapped the model, so a layer that is frozen later makes training fail.
    """
    configure = pl_module.configure_model
    before = vars(pl_module).get("configure_model")

    @functools.wraps(configure)
    def configure_and_act() -> None:
        if before is None:
            del pl_module.configure_model
        else:
            pl_module.configure_model = before  # type: ignore[method-assign]
        configure()
        act()

    pl_module.configure_model = configure_and_act  # type: ignore[method-assign]


def keeps_parameters(trainer: L.Trainer) -> bool:
    """Whether the model's parameters stay the same objects; FSDP replaces them during a step."""
    return isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))


def check_processes_agree(trainer: L.Trainer, optimizer: Optimizer) -> None:
    """Compare the rates of all processes.

    DDP averages gradients, not weights: with different rates the processes would drift apart without an error. That
    happens if a preset's file differs between two machines, or if a distribution is computed from random weights.

    Raises:
        RankMismatchError: in every process, if the rates of two differ.
    """
    if trainer.world_size < 2 or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    rates = [(group["name"], float(group["layer_lr"])) for group in optimizer.param_groups]
    rates_by_rank: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(rates_by_rank, rates)
    for rank, other in enumerate(rates_by_rank):
        if other != rates_by_rank[0]:
            first, second = next(
                (a, b) for a, b in zip([*rates_by_rank[0], None], [*other, None], strict=False) if a != b
            )
            raise RankMismatchError(
                f"The processes of this run have different learning rates: process 0 has {first}, process {rank} has "
                f"{second}. Give every process the same distribution and the same optimizer: the same preset file on "
                "every machine, and the same seed where rates are computed from weights."
            )
