"""`LayerwiseLR`: the Lightning callback that gives every layer of a transformer its own learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer
from typing_extensions import override

from lr_dist._callback.company import check_strategy, check_trainer
from lr_dist._callback.identity import check_present, check_same, identity
from lr_dist._callback.table import print_table
from lr_dist.distribution import LRDistribution
from lr_dist.errors import OptimizerCoverageError
from lr_dist.groups import freeze_layers
from lr_dist.layers import LayerMap, Overrides, assign_layers
from lr_dist.presets import resolve_distribution
from lr_dist.regroup import Placement, layer_optimizer, regroup, uncovered


class LayerwiseLR(L.Callback):
    """Splits the optimizer's parameter groups by layer and gives each its rate of a distribution.

    Nothing else of the LightningModule changes: optimizer, its options and its schedule stay as `configure_optimizers`
    returned them. Of each group the distribution replaces (absolute) or multiplies (relative) the rate where the
    schedule's factor is 1, i.e. `lr` as given to the optimizer, or `max_lr` of OneCycleLR and CyclicLR; at every step

        rate of a layer = its rate in the distribution x factor of the schedule.

    Groups are named `embeddings`, `layers.0`, ..., `head` (`layers.0/no_decay` for the half without weight decay) for
    `LearningRateMonitor`. Layers with rate 0 are frozen before a strategy wraps the model.

        trainer = L.Trainer(callbacks=[LayerwiseLR("decay:lr=4e-4,factor=0.7")])

    A run that is resumed must use the same distribution. Random states are not part of a checkpoint of Lightning, so a
    resumed run with dropout equals the unbroken one only if the random numbers of each step are seeded.

    Args:
        distribution: a preset's name, a YAML path, `family:key=value,...`, a mapping, or an `LRDistribution`.
        overrides: ordered regex -> group name, for parameters that no rule places (see `assign_layers`).
        allow_schedulers: scheduler classes beside the tested ones. They have to compute each group's rate from
            `base_lrs` or from the group's own `lr`.
        verbose: whether to print the table of groups and rates once, on rank 0.

    Raises:
        LRDistError: what `resolve_distribution` raises. Errors of the hooks name what is wrong in the model, the
            optimizers, the strategy or the checkpoint, before a step is taken.
    """

    def __init__(
        self,
        distribution: str | Path | Mapping[str, Any] | LRDistribution,
        *,
        overrides: Overrides | None = None,
        allow_schedulers: Sequence[type] = (),
        verbose: bool = True,
    ) -> None:
        self.distribution = resolve_distribution(distribution)
        self.overrides = overrides
        self.allow_schedulers = tuple(allow_schedulers)
        self.verbose = verbose
        self._num_layers: int | None = None
        self._group_names: list[str] = []
        self._loaded: Mapping[str, Any] | None = None
        self._printed = False

    # Before the run --------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and freeze the layers with rate 0 before the strategy wraps the model."""
        check_trainer(trainer)
        if stage != "fit":
            return
        check_strategy(trainer)
        # Nothing of an earlier fit of this callback counts.
        self._num_layers, self._group_names, self._loaded = None, [], None
        # A model that is built in `configure_model` does not exist yet; its layers are frozen in `on_fit_start`.
        if not is_overridden("configure_model", pl_module):
            self._freeze(pl_module)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Split the groups of the optimizer that holds the transformer's layers, and rewrite its schedulers."""
        layer_map = self._freeze(pl_module)
        placement = Placement.of(pl_module, layer_map)
        optimizers = [_unwrapped(optimizer) for optimizer in trainer.optimizers]
        optimizer = layer_optimizer(optimizers, placement)
        self._check_coverage(pl_module, optimizers, placement)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        regroup(
            optimizer,
            [scheduler for scheduler in schedulers if _unwrapped(scheduler.optimizer) is optimizer],
            placement,
            self.distribution,
            allow_schedulers=self.allow_schedulers,
        )
        self._num_layers = layer_map.num_layers
        self._group_names = [group["name"] for group in optimizer.param_groups]
        if self._loaded is not None:
            check_same(self._loaded, self.state_dict(), self.distribution)
        if self.verbose and not self._printed and trainer.is_global_zero:
            self._printed = True
            print_table(optimizer, self.distribution)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare once more with what is resumed: some strategies load callbacks only after `on_fit_start`."""
        if self._loaded is not None:
            check_same(self._loaded, self.state_dict(), self.distribution)

    # gradual: hooks of the schedule options

    def _freeze(self, pl_module: L.LightningModule) -> LayerMap:
        layer_map = assign_layers(pl_module, self.overrides)
        freeze_layers(pl_module, layer_map, self.distribution.rates(layer_map.num_layers))
        return layer_map

    def _check_coverage(
        self, pl_module: L.LightningModule, optimizers: Sequence[Optimizer], placement: Placement
    ) -> None:
        layers, others = uncovered(optimizers, placement, pl_module)
        if layers:
            raise OptimizerCoverageError(
                f"No optimizer holds {len(layers)} trainable parameter(s) of the transformer's layers, which therefore "
                f"get no rate: {', '.join(layers[:5])}{', ...' if len(layers) > 5 else ''}. Pass them to the "
                "optimizer; to freeze a layer, give it the rate 0 in the distribution."
            )
        if others:
            rank_zero_warn(
                f"No optimizer holds {len(others)} trainable parameter(s) outside the layers, so LayerwiseLR gives "
                f"them no rate: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}."
            )

    # Checkpoints -----------------------------------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        """The same for every distribution: a checkpoint with another one has to be recognised."""
        return "LayerwiseLR"

    @override
    def state_dict(self) -> dict[str, Any]:
        """Plain data only, so that a checkpoint loads with `weights_only=True`."""
        return identity(self.distribution, self.overrides, self._num_layers, self._group_names)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until `on_train_start`; the rates themselves come from the constructor's arguments."""
        self._loaded = state_dict

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run that had other rates.

        Raises:
            ResumeMismatchError: the checkpoint was written without this callback, or with another distribution.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            state = check_present(checkpoint.get("callbacks", {}).get(self.state_key), self.distribution)
            check_same(state, self.state_dict(), self.distribution)


def _unwrapped(optimizer: Any) -> Any:
    """The torch optimizer; `configure_optimizers` may return Lightning's wrapper around one."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
