"""What strategies do between the hooks of a callback: which of them are refused, and what has to happen in time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    SingleDeviceXLAStrategy,
    Strategy,
    XLAStrategy,
)
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lr_dist.errors import RankMismatchError, UnsupportedStrategyError

_TESTED = (SingleDeviceStrategy, DDPStrategy, FSDPStrategy, ModelParallelStrategy)
_NEVER_RUN = (SingleDeviceXLAStrategy, XLAStrategy)  # subclasses of tested ones
_ORIGINAL_PARAMETERS = (
    "FSDP with use_orig_params=False melts the parameters of many layers into one flat tensor, which can have only one "
    "learning rate. Use FSDPStrategy(use_orig_params=True), which is Lightning's default, and the same in every "
    "FullyShardedDataParallel(...) that the module calls itself; or FSDP2 (ModelParallelStrategy)."
)


def check_strategy(trainer: L.Trainer) -> None:
    """Refuse a strategy under which a callback cannot split the parameter groups; warn of one that was never run.

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
            f"LayerwiseLR has never been run under {type(strategy).__name__}. It works if the strategy takes its "
            "optimizers from `configure_optimizers` and keeps their parameter groups. Compare the rates that "
            "LearningRateMonitor logs with the table that is printed when training starts."
        )


def check_parameters(pl_module: nn.Module) -> None:
    """Refuse a module that has wrapped itself in such a way that its layers' parameters are gone.

    Raises:
        UnsupportedStrategyError: FSDP without the original parameters.
    """
    if any(name.rpartition(".")[2] == "_flat_param" for name, _ in pl_module.named_parameters()):
        raise UnsupportedStrategyError(_ORIGINAL_PARAMETERS)


def after_configure_model(pl_module: L.LightningModule, act: Callable[[], None]) -> None:
    """Call `act` once, when `configure_model` has made the model and before the strategy wraps it.

    No hook of a callback comes between the two. What DDP wraps it expects gradients of in every step, so a layer that
    is frozen later stops the training.
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


def before_loading(strategy: Strategy, state_key: str, check: Callable[[Mapping[str, Any] | None], None]) -> None:
    """Let `check` see the callback's state of a checkpoint before a strategy that shards loads anything from it.

    Such a strategy loads weights and optimizer states before any callback sees the checkpoint: with other parameter
    groups than the checkpoint's it fails in the middle, and says nothing of the reason.

    Args:
        strategy: the Trainer's.
        state_key: the callback's.
        check: raises if the run must not be resumed; it is given None where the checkpoint has no such state.
    """
    _let_load(strategy)
    if strategy.restore_checkpoint_after_setup:
        strategy.load_checkpoint = _CheckedLoading(strategy, state_key, check)  # type: ignore[method-assign]


def check_processes_agree(trainer: L.Trainer, optimizer: Optimizer) -> None:
    """Compare the rates of all processes.

    DDP averages gradients, not weights: processes with other rates would drift apart, and nothing would tell. It takes
    no more than a preset's file that differs between two machines, or a distribution computed from random weights.

    Raises:
        RankMismatchError: in every process, if two differ.
    """
    if trainer.world_size < 2 or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    own = [(group["name"], float(group["layer_lr"])) for group in optimizer.param_groups]
    all_of_them: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(all_of_them, own)
    for rank, other in enumerate(all_of_them):
        if other != all_of_them[0]:
            first, second = next(
                (a, b) for a, b in zip([*all_of_them[0], None], [*other, None], strict=False) if a != b
            )
            raise RankMismatchError(
                f"The processes of this run have different learning rates: process 0 has {first}, process {rank} has "
                f"{second}. Give every process the same distribution and the same optimizer: the same preset file on "
                "every machine, and the same seed where rates are computed from weights."
            )


class _CheckedLoading:
    """Stands in for a strategy's `load_checkpoint` once."""

    def __init__(self, strategy: Strategy, state_key: str, check: Callable[[Mapping[str, Any] | None], None]) -> None:
        self.strategy, self.state_key, self.check = strategy, state_key, check

    def __call__(self, checkpoint_path: Any, **options: Any) -> dict[str, Any]:
        _let_load(self.strategy)
        path = Path(self.strategy.broadcast(checkpoint_path))
        known, callbacks = _callback_states(path, options.get("weights_only"))
        if known:
            self.check(callbacks.get(self.state_key))
        return self.strategy.load_checkpoint(checkpoint_path, **options)


def _let_load(strategy: Strategy) -> None:
    """Undo what an earlier `before_loading` left."""
    if isinstance(vars(strategy).get("load_checkpoint"), _CheckedLoading):
        del strategy.load_checkpoint


def _callback_states(path: Path, weights_only: bool | None) -> tuple[bool, Mapping[str, Any]]:
    """Whether the checkpoint can be read, and what the callbacks left in it; of a folder it is one small file."""
    from lightning.fabric.utilities.load import _METADATA_FILENAME

    file = path / _METADATA_FILENAME if path.is_dir() else path
    try:
        checkpoint = torch.load(file, map_location="cpu", mmap=True, weights_only=weights_only)
        return True, checkpoint.get("callbacks", {})
    except Exception:
        # The strategy, which reads it next, says what is wrong with it.
        return False, {}
