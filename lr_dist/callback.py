"""`LayerwiseLR`: the Lightning callback that gives every layer of a transformer its own learning rate."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer
from typing_extensions import override

from lr_dist._callback.changes import Watch, unwrapped
from lr_dist._callback.exact import HOST_KEY, ExactFit
from lr_dist._callback.finder import (
    anchor_at,
    anchored,
    check_resumed_without_tuner,
    describe,
    finders,
    found_rate,
    is_own_checkpoint_of_a_tuner,
    resumes_a_fit,
    suggestions,
)
from lr_dist._callback.gradual import Gradual
from lr_dist._callback.hyperparameters import Hyperparameters, described
from lr_dist._callback.identity import check_complete, check_present, check_same, identity
from lr_dist._callback.optimizers import check_coverage, kept_for, optimizers_to_split, schedulers_of, without_rate
from lr_dist._callback.other_callbacks import (
    callbacks_of,
    check_averaging,
    check_callbacks,
    check_not_unfrozen_twice,
    check_resumed_callbacks,
    check_trainer,
    tell_of_groups,
)
from lr_dist._callback.precision import lost_steps
from lr_dist._callback.rate_warnings import describe_left_out, optimizer_warnings
from lr_dist._callback.resumption import before_weights, check_alone, optimization, release
from lr_dist._callback.strategies import (
    after_configure_model,
    check_parameters,
    check_processes_agree,
    check_strategy,
    keeps_parameters,
)
from lr_dist._callback.table import print_table
from lr_dist._distribution.sanity import check_trains
from lr_dist._lightning import Callback, L, give_back, kept, part_of, rank_zero_info, rank_zero_warn
from lr_dist.coverage import Coverage
from lr_dist.distribution import LRDistribution
from lr_dist.errors import (
    InvalidScheduleError,
    NothingToTrainError,
    OwnRatiosWarning,
    PresetMethodsWarning,
    UnreadScaleWarning,
    UnsupportedOptimizerError,
)
from lr_dist.exact_resume import ExactResume
from lr_dist.groups import freeze_layers
from lr_dist.layer_schedule import LayerSchedule, chosen_schedule
from lr_dist.layers import LayerMap, Overrides, Stacks, assign_layers, clean_name
from lr_dist.presets import resolve_recipe, resolve_stage
from lr_dist.rate_plan import Phases, highest
from lr_dist.regroup import (
    Placement,
    check_replaced,
    describe_unread,
    regroup_added,
    regroup_all,
    uncovered,
    unread_scales,
)
from lr_dist.schedulers import types_of
from lr_dist.step_factors import StepFactors


class LayerwiseLR(Callback):
    """Splits the optimizer's parameter groups by layer and gives each its rate of a distribution.

    Nothing else in the LightningModule changes: the optimizer, its options and its schedule stay as
    `configure_optimizers` returned them. The distribution replaces (absolute) or multiplies (relative) each group's
    rate at the point where the schedule's factor is 1: `lr` as given to the optimizer, or `max_lr` of OneCycleLR and
    CyclicLR. In every step

        rate of a layer = its rate in the distribution x factor of the schedule.

    Groups are named `embeddings`, `layers.0`, ..., `head` (`layers.0/no_decay` for the half without weight decay) for
    `LearningRateMonitor`. Layers with rate 0 are frozen before a strategy wraps the model.

        trainer = L.Trainer(callbacks=[LayerwiseLR("decay:lr=4e-4,factor=0.7")])

    A run that is resumed must use the same distribution, and ends bit for bit where the unbroken run ends
    (docs/callback.md lists the exceptions).

    Args:
        distribution: a preset's name, a YAML path, `family:key=value,...`, a mapping, or an `LRDistribution`; or phases
            of the fit, as `flat:lr=1e-3,freeze=embeddings..layers.-1 @ 20% > flat:lr=1e-4` or `Phases`.
        overrides: ordered regex -> group name, for parameters that no rule places (see `assign_layers`).
        stacks: submodules that each have their own depth, as `("model.vision_model", "model.text_model")` or, with
            names, `{"vision": "model.vision_model", ...}` (see `assign_layers`). Groups are called `vision/layers.0`.
        allow_schedulers: scheduler classes to accept besides the tested ones. They must compute each group's rate from
            `base_lrs` or from the group's own `lr`.
        verbose: whether to print the table of layers and rates once, on rank 0.
        exact_resume: whether to save what Lightning leaves out of checkpoints (random states, the position in the data,
            gradients within a window of `accumulate_grad_batches`), so that a resumed run equals the unbroken one. If
            False, a run resumes as Lightning does. An `ExactResume` in the same Trainer takes over this task.
        schedule: when each layer starts (gradual unfreezing), and how it warms up. Until it starts, a layer is frozen:
            no gradient, no optimizer state, no weight decay.
        unfreeze_every_n_epochs: in place of `schedule`, its `every_n_epochs`.
        unfreeze_every_n_steps: in place of `schedule`, its `every_n_steps`.
        layer_warmup_steps: in place of `schedule`, its `warmup_steps`.

    Warns:
        PresetMethodsWarning: the preset also has methods, which are callbacks of their own.

    Raises:
        LRDistError: what `resolve_stage` raises. Errors of the hooks name what is wrong in the model, the
            optimizers, the strategy or the checkpoint, before a step is taken.
    """

    def __init__(
        self,
        distribution: str | Path | Mapping[str, Any] | LRDistribution | Phases,
        *,
        overrides: Overrides | None = None,
        stacks: Stacks | None = None,
        allow_schedulers: Sequence[type] = (),
        verbose: bool = True,
        exact_resume: bool = True,
        schedule: LayerSchedule | None = None,
        unfreeze_every_n_epochs: int | None = None,
        unfreeze_every_n_steps: int | None = None,
        layer_warmup_steps: int | Mapping[str, int] | None = None,
    ) -> None:
        plan, methods = resolve_recipe(distribution)
        if methods:
            rank_zero_warn(describe_left_out(methods), category=PresetMethodsWarning)
        rates = resolve_stage(plan)
        self.phases = rates if isinstance(rates, Phases) else None
        self.distribution = highest(rates)
        self.schedule = chosen_schedule(
            schedule,
            unfreeze_every_n_epochs=unfreeze_every_n_epochs,
            unfreeze_every_n_steps=unfreeze_every_n_steps,
            layer_warmup_steps=layer_warmup_steps,
        )
        self.overrides = overrides
        self.stacks = stacks
        if stacks is not None and (self.schedule or self.phases):
            raise InvalidScheduleError(
                "With stacks=..., each submodule has its own depth, so the layers of several submodules have no common "
                "order to unfreeze or warm up in. Leave out the schedule (the unfreezing and warm-up options) and the "
                "phases, or stacks."
            )
        self.allow_schedulers = tuple(allow_schedulers)
        self.verbose = verbose
        self.exact_resume = exact_resume
        self._num_layers: int | None = None
        self._group_names: list[str] = []
        self._optimization: dict[str, Any] = {}
        self._trainable: list[tuple[Parameter, bool]] = []
        self._loaded: Mapping[str, Any] | None = None
        self._sizes: dict[str, int] = {}
        self._printed = self._in_use = False
        self._warned: set[str] = set()
        self._suggested: list[float] = []
        self._found_lr: float | None = None
        self._watches: list[Watch] = []
        self._coverage: Coverage | None = None
        self._hyperparameters = Hyperparameters()
        # After `on_train_start`, a checkpoint that is read is no longer one that the fit resumes from.
        self._training = False
        self._gradual = Gradual(self.schedule, self.phases)
        self._exact = ExactFit()
        self._resumes_exactly = exact_resume

    def __getstate__(self) -> dict[str, Any]:
        """Without the objects of this fit: a copy, or the callback in a spawned process, serves another fit."""
        return {
            **kept(self),
            "_watches": [],
            "_coverage": None,
            "_training": False,
            "_trainable": [],
            "_exact": ExactFit(),
        }

    # Before the run --------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the Trainer, and freeze the layers with rate 0 before the strategy wraps the model."""
        self._in_use = True
        check_trainer(trainer)
        if stage != "fit":
            return
        check_strategy(trainer)
        check_callbacks(trainer)
        check_alone(trainer, LayerwiseLR)
        if self._gradual.freezes or self.schedule:
            check_not_unfrozen_twice(trainer)
        # Forget an earlier fit of this callback.
        self._num_layers, self._group_names, self._optimization, self._loaded = None, [], {}, None
        self._found_lr, self._watches, self._coverage, self._training = None, [], None, False
        self._hyperparameters.wrap_loggers(trainer, self._described)
        self._gradual.join(trainer)
        self._exact.close()
        self._exact = ExactFit()
        others = callbacks_of(trainer)
        self._resumes_exactly = self.exact_resume and not any(isinstance(other, ExactResume) for other in others)
        before_weights(trainer, lambda checkpoint: self._check_resumed(trainer, checkpoint))
        # A model that `configure_model` builds does not exist yet.
        if part_of(trainer, "utilities.model_helpers").is_overridden("configure_model", pl_module):
            after_configure_model(pl_module, lambda: self._before_wrapping(pl_module))
        else:
            self._before_wrapping(pl_module)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Split the groups of the optimizers that hold the transformer's layers, and rewrite their schedulers."""
        check_parameters(pl_module)
        if scales := unread_scales([unwrapped(optimizer) for optimizer in trainer.optimizers]):
            rank_zero_warn(f"LayerwiseLR: {describe_unread(scales)}", category=UnreadScaleWarning)
        optimizers = self._split(trainer, pl_module)
        if not any(parameter.requires_grad for parameter in pl_module.parameters()):
            raise NothingToTrainError(
                f"No parameter of {type(pl_module).__name__} is left to train: the distribution {self.distribution} "
                "and the requires_grad flags of the model freeze every layer. Give one layer a rate above 0."
            )
        for optimizer in optimizers:
            check_processes_agree(trainer, optimizer)
            check_averaging(trainer, optimizer)
            self._warn_once([*lost_steps(optimizer), *optimizer_warnings(optimizer, self.distribution)])
        if self._loaded is not None:
            check_same(self._loaded, self.state_dict(), self.distribution)
        if self.verbose and not self._printed and trainer.is_global_zero:
            self._printed = True
            sizes = {id(p): self._sizes.get(clean_name(n), p.numel()) for n, p in pl_module.named_parameters()}
            for optimizer in optimizers:
                print_table(optimizer, self._text(), self.distribution.relative, sizes, self._gradual.describe())
        if self._resumes_exactly:
            self._exact.on_fit_start(trainer)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with the checkpoint again: some strategies load the callbacks' state only after `on_fit_start`."""
        if self._loaded is not None:
            check_same(self._loaded, self.state_dict(), self.distribution)
        if self._resumes_exactly:
            self._exact.on_train_start(trainer)
        self._trainable, self._training = [], True

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore the rates if the optimizer was changed, usually by a callback at the start of an epoch."""
        self._follow(trainer, pl_module)
        self._hyperparameters.finish(trainer)
        if batch_idx == 0:
            self._check_model(trainer)

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """The same for changes by the module, at the last moment before the rates are used."""
        self._follow(trainer, pl_module)
        if trainer.global_step == 0:
            self._check_model(trainer)
        self._exact.on_before_optimizer_step(optimizer)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record that validation is done: a run resumed from a later checkpoint must not repeat it."""
        self._exact.on_validation_end()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Undo the freezing if the fit fails before training starts."""
        for parameter, trainable in self._trainable:
            parameter.requires_grad_(trainable)
        # Lightning does not call `teardown` after an exception.
        self._trainable, self._watches, self._coverage, self._training = [], [], None, False
        self._hyperparameters.close()
        give_back(self)
        # A checkpoint that is written from here on must not wait for the other processes.
        self._exact.on_exception()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Drop the run's objects; keep only the rate that `Tuner.lr_find` found, for the next fit."""
        if not self._watches:
            self._suggested = suggestions(trainer) or self._suggested
        self._trainable, self._watches, self._coverage, self._training = [], [], None, False
        self._hyperparameters.close()
        give_back(self)
        release(trainer.strategy)
        self._exact.teardown(trainer)

    def _warn_once(self, issues: Sequence[UserWarning]) -> None:
        """Issue each warning once: `Tuner.lr_find` and a second fit call this again."""
        for issue in issues:
            if str(issue) not in self._warned:
                self._warned.add(str(issue))
                rank_zero_warn(issue)

    def _before_wrapping(self, pl_module: L.LightningModule) -> None:
        check_parameters(pl_module)
        self._trainable = [(parameter, parameter.requires_grad) for parameter in pl_module.parameters()]
        self._num_layers = self._freeze(pl_module).num_layers
        # Taken before FSDP shards the parameters.
        self._sizes = {clean_name(name): parameter.numel() for name, parameter in pl_module.named_parameters()}

    def _freeze(self, pl_module: L.LightningModule) -> LayerMap:
        layer_map = assign_layers(pl_module, self.overrides, self.stacks)
        rates = layer_map.rates(self.distribution.rates)
        check_trains(self.distribution, rates)
        freeze_layers(pl_module, layer_map, rates)
        return layer_map

    def _split(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Optimizer]:
        """Split the groups of the optimizers that hold the layers, and return these optimizers."""
        layer_map = self._freeze(pl_module)
        placement = Placement.of(pl_module, layer_map)
        optimizers = [unwrapped(optimizer) for optimizer in trainer.optimizers]
        holders = optimizers_to_split(optimizers, placement)
        check_replaced(optimizers, placement, pl_module)
        check_coverage(pl_module, optimizers, placement)
        if self._gradual.acts and len(holders) > 1:
            raise UnsupportedOptimizerError(
                f"{len(holders)} optimizers hold the transformer's layers, and unfreezing, warm-up by layer and "
                "phases count the steps of one. Put all layers into one optimizer, or leave out these options."
            )
        hidden = {id(optimizer): kept_for(trainer, pl_module, optimizer, LayerwiseLR) for optimizer in holders}
        pairs = [(optimizer, [*schedulers_of(trainer, optimizer), *hidden[id(optimizer)]]) for optimizer in holders]
        self._num_layers = layer_map.num_layers
        if len(pairs) == 1:  # Lightning's finder works with one optimizer.
            suggested = found_rate([*suggestions(trainer), *self._suggested], *pairs[0])
            if suggested is not None:
                rank_zero_info(describe(self.distribution, suggested))
            self._found_lr = suggested or self._found_lr or (self._loaded or {}).get("found_lr")
            if self._found_lr is not None:
                anchor_at(self._found_lr, *pairs[0])
        # Schedulers that the module steps itself are accepted whatever their type: `RateCheck` compares their rates.
        allowed = (
            *self.allow_schedulers,
            *types_of(scheduler for schedulers in hidden.values() for scheduler in schedulers),
        )
        results = regroup_all(pairs, placement, self._applied(), allow_schedulers=allowed)
        if (ratios := results[0].ratios.describe()) and not self._watches:
            rank_zero_warn(f"LayerwiseLR: {ratios}", category=OwnRatiosWarning)
        self._remember(
            trainer, pl_module, [(optimizer, result.tracks) for optimizer, result in zip(holders, results, strict=True)]
        )
        return holders

    def _follow(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Split the groups again if they were changed during the run; warn if rates were overwritten."""
        for watch in self._watches:
            # Compare and split the rates without the factors of a single step.
            with StepFactors.paused(watch.optimizer):
                if watch.is_replaced(trainer.optimizers) or watch.has_new_suggestion():
                    self._split(trainer, pl_module)
                    return
                if watch.has_other_groups():
                    self._split_added(trainer, pl_module, watch.optimizer)
                    return
                watch.warn_of_other_rates(trainer.global_step)

    def _split_added(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        is_split = ["layer_lr" in group for group in optimizer.param_groups]
        if not any(is_split):
            self._split(trainer, pl_module)
            return
        if not all(is_split):
            placement = Placement.of(pl_module, self._freeze(pl_module))
            schedulers = [*schedulers_of(trainer, optimizer), *kept_for(trainer, pl_module, optimizer, LayerwiseLR)]
            new = regroup_added(optimizer, schedulers, placement, self._applied())
            rates = ", ".join(f"{group['name']} at {group['layer_lr']:.3g}" for group in new)
            rank_zero_info(f"LayerwiseLR: groups that were added to {type(optimizer).__name__} were split: {rates}.")
            layers, _ = uncovered([unwrapped(optimizer) for optimizer in trainer.optimizers], placement, pl_module)
            if layers:
                rank_zero_warn(f"{without_rate(layers)} They were unfrozen, but not added to the optimizer.")
        self._remember(trainer, pl_module, [(watch.optimizer, watch.tracks) for watch in self._watches])

    def _remember(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        split: Sequence[tuple[Optimizer, Sequence[Hashable] | None]],
    ) -> None:
        self._group_names = [group["name"] for optimizer, _ in split for group in optimizer.param_groups]
        self._optimization = optimization(trainer)
        self._watches = [Watch(optimizer, finders(trainer), tracks) for optimizer, tracks in split]
        assert self._num_layers is not None
        self._gradual.attach(split[0][0], self._num_layers)
        optimizers = [unwrapped(optimizer) for optimizer in trainer.optimizers]
        tell_of_groups(trainer, pl_module, optimizers)
        if keeps_parameters(trainer):
            self._coverage = Coverage(
                pl_module,
                optimizers,
                lambda: Placement.of(pl_module, self._freeze(pl_module)),
                when="in Lightning: in `__init__`, `setup` or `configure_model`",
            )

    def _check_model(self, trainer: L.Trainer) -> None:
        if self._coverage is not None:
            warning = self._coverage.warning(started=trainer.global_step > 0)
            if warning is not None:
                rank_zero_warn(warning)

    def _described(self) -> dict[str, Any]:
        optimizer = self._watches[0].optimizer if self._watches else None
        return {**described(self.distribution, self._num_layers, optimizer), "distribution": self._text()}

    def _text(self) -> str:
        return str(self.phases or self._applied())

    def _applied(self) -> LRDistribution:
        """The distribution, scaled to the rate that a LearningRateFinder found, if there is one."""
        if self._found_lr is None or self._num_layers is None:
            return self.distribution
        return anchored(self.distribution, self._found_lr, self._num_layers)

    # Checkpoints -----------------------------------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        """The same for every distribution, so that a checkpoint with another one is found and refused.

        Before a Trainer uses the callback, the key is unique: Lightning compares the keys when a Trainer is made, and
        would refuse two callbacks before `setup` can raise the error that says what to do instead.
        """
        return "LayerwiseLR" if self._in_use else f"LayerwiseLR {id(self)}"

    @override
    def state_dict(self) -> dict[str, Any]:
        """Plain data only, so that a checkpoint loads with `weights_only=True`."""
        self._in_use = True
        state = identity(self.distribution, self.overrides, self._num_layers, self._group_names, self._optimization)
        return {
            **state,
            "found_lr": self._found_lr,
            "schedule": self.schedule.to_dict() if self.schedule else None,
            "phases": str(self.phases) if self.phases else None,
            "gradual": self._gradual.state(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until `on_train_start`; the rates themselves come from the constructor's arguments."""
        self._loaded = {key: value for key, value in state_dict.items() if key != HOST_KEY}
        self._gradual.load(state_dict.get("gradual"))

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run that had other rates.

        Raises:
            ResumeMismatchError: the checkpoint was written without this callback, or with another distribution.
        """
        if resumes_a_fit(trainer) and not self._training:
            self._check_resumed(trainer, checkpoint)
            if self._resumes_exactly:
                self._exact.load(trainer, checkpoint)

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what an exact resume needs; Lightning calls this in every process."""
        if (state := self._exact.state(trainer, pl_module)) is not None:
            checkpoint["callbacks"][self.state_key][HOST_KEY] = state

    def _check_resumed(self, trainer: L.Trainer, checkpoint: Mapping[str, Any]) -> None:
        # During training a callback may load a checkpoint: FinetuningScheduler loads its best one before each phase.
        if not self._training and not is_own_checkpoint_of_a_tuner(trainer):
            check_resumed_without_tuner(trainer)
            check_resumed_callbacks(trainer)
            check_complete(checkpoint, trainer.ckpt_path)
            self._check_loaded(trainer, checkpoint.get("callbacks", {}).get(self.state_key))

    def _check_loaded(self, trainer: L.Trainer, state: Mapping[str, Any] | None) -> None:
        present = check_present(state, self.distribution, trainer.ckpt_path)
        check_same(present, self.state_dict(), self.distribution)
        self._gradual.before_loading(present.get("gradual"))
