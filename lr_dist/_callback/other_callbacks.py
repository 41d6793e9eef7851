"""Compatibility of `LayerwiseLR` with the other callbacks of a Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lr_dist._callback.internals import averaging_rates, rewrite_stored_groups
from lr_dist._lightning import (
    BackboneFinetuning,
    BaseFinetuning,
    DeepSpeedStrategy,
    FSDPStrategy,
    L,
    StochasticWeightAveraging,
    package_of,
)
from lr_dist.errors import ResumeMismatchError, UnsupportedCallbackError, UnsupportedStrategyError


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """The callbacks of a Trainer; Lightning sets the attribute without declaring its type."""
    return trainer.callbacks  # type: ignore[attr-defined]


def check_trainer(trainer: L.Trainer) -> None:
    """Check that the Trainer is Lightning's and recent enough, before anything is set up.

    Raises:
        UnsupportedTrainerError: another library's Trainer, or an old version of Lightning's.
    """
    package_of(trainer)


def check_whole_parameters(
    trainer: L.Trainer, name: str, better: str = "ModelParallelStrategy (FSDP2) or DDPStrategy"
) -> None:
    """Refuse strategies under which a process does not hold the parameters by their names and in their shapes.

    Args:
        trainer: of the fit.
        name: what needs them, for the message.
        better: strategies to use instead.

    Raises:
        UnsupportedStrategyError: FSDP1 or DeepSpeed.
    """
    if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
        raise UnsupportedStrategyError(
            f"{name} needs every parameter by its name and in its shape, which {type(trainer.strategy).__name__} does "
            f"not keep. Use {better}."
        )


def check_callbacks(trainer: L.Trainer) -> None:
    """Refuse callbacks that would overwrite the layers' rates.

    Raises:
        UnsupportedCallbackError: BackboneFinetuning.
    """
    for callback in callbacks_of(trainer):
        # A subclass may unfreeze in another way, which writes no rates.
        method = getattr(getattr(type(callback), "finetune_function", None), "__qualname__", "")
        if isinstance(callback, BackboneFinetuning) and method == "BackboneFinetuning.finetune_function":
            raise UnsupportedCallbackError(
                f"{type(callback).__name__} adds the whole backbone as one parameter group and sets that group's "
                "rate in every epoch; after the split by layer it would set the rate of one layer only. Remove it. To "
                "freeze layers for the whole run, give them the rate 0, LayerwiseLR('decay:lr=4e-4,factor=0.7,"
                "freeze=embeddings..layers.3'); to unfreeze them one after the other, use LayerwiseLR's option "
                "`unfreeze_every_n_epochs`; or write a subclass of BaseFinetuning that calls "
                "`unfreeze_and_add_param_group`, whose groups LayerwiseLR splits by layer."
            )


def check_not_unfrozen_twice(trainer: L.Trainer) -> None:
    """Refuse callbacks that unfreeze layers while LayerwiseLR has a schedule for that.

    Raises:
        UnsupportedCallbackError: a BaseFinetuning.
    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, BaseFinetuning):
            raise UnsupportedCallbackError(
                f"{type(callback).__name__} and LayerwiseLR's own unfreezing or warm-up by layer would both decide "
                "when a layer starts. Remove the callback, or the options."
            )


def check_resumed_callbacks(trainer: L.Trainer) -> None:
    """Refuse to resume with callbacks that rebuild the parameter groups themselves.

    Raises:
        ResumeMismatchError: a BaseFinetuning.
    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, BaseFinetuning):
            raise ResumeMismatchError(
                f"A run with {type(callback).__name__} cannot be resumed together with LayerwiseLR: it restores the "
                "parameter groups from before LayerwiseLR split them, which do not match the optimizer's state. Start "
                "a new run from the checkpoint's weights, without ckpt_path; or unfreeze with "
                "LayerwiseLR's own options, which resume exactly."
            )


def tell_of_groups(trainer: L.Trainer, module: L.LightningModule, optimizers: Sequence[Optimizer]) -> None:
    """Tell the callbacks that keep the optimizers' groups of a split."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, BaseFinetuning):
            for index, optimizer in enumerate(optimizers):
                rewrite_stored_groups(callback, index, optimizer, module)


def check_averaging(trainer: L.Trainer, optimizer: Optimizer) -> None:
    """Refuse StochasticWeightAveraging with one rate for all layers, or with a list that does not fit the groups.

    Called once the groups are known, so that the error can show the list to pass.

    Raises:
        UnsupportedCallbackError: `swa_lrs` is a number, or a list of another length than the groups.
    """
    groups = optimizer.param_groups
    for callback in callbacks_of(trainer):
        if not isinstance(callback, StochasticWeightAveraging):
            continue
        given = averaging_rates(callback)
        names = ", ".join(group["name"] for group in groups)
        if isinstance(given, (int, float)):
            raise UnsupportedCallbackError(
                f"StochasticWeightAveraging(swa_lrs={given:g}) gives all layers one rate. Pass a rate for each of the "
                f"{len(groups)} groups, in this order: {names}. With the ratios of the distribution: "
                f"swa_lrs=[{', '.join(f'{rate:.6g}' for rate in _with_ratios(groups, float(given)))}]."
            )
        if len(given) != len(groups):
            raise UnsupportedCallbackError(
                f"StochasticWeightAveraging has {len(given)} swa_lrs, but the optimizer has {len(groups)} groups. Pass "
                f"a rate for each group, in this order: {names}."
            )


def _with_ratios(groups: Sequence[Mapping[str, Any]], highest: float) -> list[float]:
    """Rates in the ratios of the distribution; a frozen group, which also needs one above 0, gets the lowest."""
    rates = [group["layer_lr"] for group in groups]
    lowest = min((rate for rate in rates if rate), default=1.0)
    return [(rate or lowest) / (max(rates) or 1.0) * highest for rate in rates]
