"""`LayerwiseTrainerMixin`: a learning rate for every layer under the Trainers of transformers and their subclasses."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lr_dist.extras import require_libraries

require_libraries("huggingface", "transformers", "accelerate")

from accelerate.utils import DistributedType
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import is_sagemaker_mp_enabled, logging

from lr_dist._callback.identity import identity
from lr_dist._callback.layer_switch import is_compiled, recomputes
from lr_dist._callback.precision import lost_steps
from lr_dist._callback.rate_warnings import optimizer_warnings
from lr_dist._callback.step_phases import StepPhases
from lr_dist._callback.table import print_table
from lr_dist._callback.trainer_rates import CHECK, PHASES, LayerwiseRates, torch_optimizer
from lr_dist.coverage import Coverage
from lr_dist.distribution import LRDistribution, shown_distribution
from lr_dist.errors import (
    ConfigurationError,
    InvalidScheduleError,
    NothingToTrainError,
    OptimizerCoverageError,
    OwnRatiosWarning,
    ResumeMismatchError,
    UnreadScaleWarning,
    UnsupportedOptimizerError,
    UnsupportedSchedulerError,
    UnsupportedStrategyError,
    UnsupportedTrainerError,
    listed,
    shown,
)
from lr_dist.groups import freeze_layers
from lr_dist.layers import LayerMap, Overrides, Stacks, assign_layers
from lr_dist.presets import resolve_stage
from lr_dist.rate_check import RateCheck
from lr_dist.rate_plan import Phases, highest
from lr_dist.regroup import Placement, check_replaced, describe_unread, regroup, uncovered, unread_scales
from lr_dist.schedulers import check_schedulers

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object

logger = logging.get_logger(__name__)

# Here the model's parameters stay the objects that the optimizer was made from; FSDP replaces them.
_WHOLE_PARAMETERS = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


class LayerwiseTrainerMixin(_Trainer):
    """Gives a `transformers.Trainer`, or any subclass of it, a learning rate for every layer.

        class LayerwiseTrainer(LayerwiseTrainerMixin, Trainer): ...

        trainer = LayerwiseTrainer(model=model, args=args, train_dataset=data, layerwise_lr="decay:lr=4e-4,factor=0.7")

    The Trainer makes its optimizer and its schedule as usual, from the TrainingArguments or from its arguments. Then
    the optimizer's groups are split by layer, in place. The distribution replaces (absolute) or multiplies (relative)
    the learning rate of each group, usually `TrainingArguments.learning_rate`. At every step

        rate of a layer = its rate in the distribution x factor of the schedule.

    Layers with rate 0 are frozen before the optimizer is made and the model is wrapped. With
    `learning_rate` (the rate of its first group) the Trainer also logs `learning_rate/embeddings`,
    `learning_rate/layers.0`, ... The state is saved in the `trainer_state.json` of checkpoints; resuming is exact if
    the Trainer's is.

    Args:
        layerwise_lr: a preset's name, a YAML path, `family:key=value,...`, a mapping, or an `LRDistribution`; or phases
            of the run, as `flat:lr=1e-3,freeze=embeddings..layers.-1 @ 20% > flat:lr=1e-4` or `Phases`. A layer that
            waits in a phase gets no gradient, no optimizer state and no weight decay.
        layerwise_overrides: ordered regex -> group name, for parameters that no rule places (see `assign_layers`).
        layerwise_stacks: submodules that each have their own depth, as the two encoders of a Router (see
            `assign_layers`).
        layerwise_allow_schedulers: scheduler classes to accept besides the tested ones. They must compute each group's
            rate from `base_lrs` or from the group's own `lr`.
        layerwise_verbose: whether to print the table of groups and rates once, on the first process.
        *args: the Trainer's arguments, as all other keywords.

    Raises:
        UnsupportedTrainerError: the class is not a Trainer, or has the mixin after the Trainer.
        LRDistError: what `resolve_distribution` raises. `train` raises named errors for the model, the optimizer, the
            schedule, the strategy or the checkpoint before a step is taken.
    """

    def __init__(
        self,
        *args: Any,
        layerwise_lr: str | Path | Mapping[str, Any] | LRDistribution | Phases,
        layerwise_overrides: Overrides | None = None,
        layerwise_stacks: Stacks | None = None,
        layerwise_allow_schedulers: Sequence[type] = (),
        layerwise_verbose: bool = True,
        **kwargs: Any,
    ) -> None:
        if not isinstance(self, Trainer):
            raise UnsupportedTrainerError(
                f"{type(self).__name__} is not a transformers.Trainer, which LayerwiseTrainerMixin needs. Write "
                f"class {type(self).__name__}(LayerwiseTrainerMixin, Trainer)."
            )
        self._layerwise_overrides = layerwise_overrides
        self._layerwise_stacks = layerwise_stacks
        self._use_rates(resolve_stage(layerwise_lr))
        self._layerwise_allow_schedulers = tuple(layerwise_allow_schedulers)
        self._layerwise_verbose = layerwise_verbose
        self._layerwise_module: nn.Module | None = None
        self._layerwise_optimizer: Optimizer | None = None
        self._layerwise_resumed: Mapping[str, Any] | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(LayerwiseRates())
        self._refuse_unsupported()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__bases__:
            if issubclass(base, LayerwiseTrainerMixin):
                break
            if issubclass(base, Trainer):
                raise UnsupportedTrainerError(
                    f"{cls.__name__} has {base.__name__} before LayerwiseTrainerMixin, so the mixin has no effect. "
                    f"Write the mixin first: class {cls.__name__}(LayerwiseTrainerMixin, {base.__name__})."
                )

    @property
    def layerwise_lr(self) -> LRDistribution | Phases:
        """The rates of the next `train`. They can be set until it makes its optimizer: in `model_init(trial)` for each
        trial of `hyperparameter_search`. Rate 0 freezes, so set other ones together with a new model."""
        return self._layerwise_phases or self._layerwise_distribution

    @layerwise_lr.setter
    def layerwise_lr(self, value: str | Path | Mapping[str, Any] | LRDistribution | Phases) -> None:
        self._use_rates(resolve_stage(value))
        self._refuse_unsupported()

    def _use_rates(self, rates: LRDistribution | Phases) -> None:
        phases = rates if isinstance(rates, Phases) else None
        if phases is not None and self._layerwise_stacks is not None:
            raise InvalidScheduleError(
                "With layerwise_stacks=..., each submodule has its own depth, and phases of several depths are not "
                "supported. Leave out the phases, or layerwise_stacks."
            )
        self._layerwise_distribution = highest(rates)
        self._layerwise_phases = phases
        self._layerwise_steps = StepPhases(phases)

    # Methods that the Trainer calls ----------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`; refuses a checkpoint with another distribution before anything is loaded.

        Raises:
            ResumeMismatchError: the checkpoint was written without the mixin, or with another distribution or phases.
            InvalidPlanError: phases that are longer than the run.
            LRDistError: see the class.
        """
        self._layerwise_resumed = None
        checkpoint = _checkpoint_folder(resume_from_checkpoint, self.args.output_dir)
        trainer_state = _trainer_state(checkpoint)
        if trainer_state is not None:
            self._layerwise_resumed = self._check_resumed(_written(trainer_state), checkpoint)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._layerwise_steps.end()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.training_step`, in the phase of the step that it belongs to."""
        if not self._layerwise_steps:
            return super().training_step(*args, **kwargs)
        self._layerwise_steps.before(self.state.global_step)
        loss = super().training_step(*args, **kwargs)
        # Here, because the Trainer clips gradients before it calls its callbacks.
        self._layerwise_steps.drop_gradients()
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """`Trainer.create_optimizer`, after freezing the layers with rate 0."""
        self._refuse_unsupported()
        placed = self._module_to_place(self.model if model is None else model)
        self._freeze(placed)
        self._layerwise_module = placed
        return super().create_optimizer() if model is None else super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """`Trainer.create_scheduler`; then sets the layers' rates in the optimizer and the schedule."""
        options = {} if optimizer is None else {"optimizer": optimizer}
        scheduler = super().create_scheduler(num_training_steps, **options)
        self._set_rates(
            torch_optimizer(self.optimizer if optimizer is None else optimizer), scheduler, int(num_training_steps)
        )
        return scheduler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in the Trainer; without weight decay all names, because two groups would be equal."""
        if not self.args.weight_decay:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """`Trainer.log`; adds the rates of all layers in the step whose `learning_rate` is logged."""
        if "learning_rate" in logs:
            rates = self._layerwise_callback.rates
            logs = {**logs, **{f"learning_rate/{name}": rate for name, rate in rates.items()}}
        super().log(logs, *args, **kwargs)

    # Rates -----------------------------------------------------------------------------------------------

    @property
    def _layerwise_callback(self) -> LayerwiseRates:
        # Looked up each time: the Trainer may replace its callbacks by those of a checkpoint.
        return next(c for c in self.callback_handler.callbacks if isinstance(c, LayerwiseRates))

    def _refuse_unsupported(self) -> None:
        if self.is_deepspeed_enabled or is_sagemaker_mp_enabled() or self.is_fsdp_xla_enabled:
            raise UnsupportedStrategyError(
                "LayerwiseTrainerMixin does not work under DeepSpeed, SageMaker's model parallelism and FSDP for XLA: "
                "they rebuild the optimizer's groups, which was not tested. Use DDP or FSDP of PyTorch."
            )
        plugin: Any = getattr(self.accelerator.state, "fsdp_plugin", None)
        if self.is_fsdp_enabled and plugin.fsdp_version == 1 and not plugin.use_orig_params:
            raise UnsupportedStrategyError(
                "FSDP version 1 without use_orig_params flattens the parameters of several layers into one, which can "
                "have only one rate. Set fsdp_config={'use_orig_params': True}, or fsdp_config={'version': 2}."
            )
        if self.is_fsdp_enabled and self._layerwise_steps.clock.freezes:
            raise UnsupportedStrategyError(
                f"In the phases {shown(str(self._layerwise_phases))} layers wait, and FSDP saves the optimizer only if "
                "every parameter has a state. Use DDP, or rates above 0 in every phase."
            )
        name = str(getattr(self.args.optim, "value", self.args.optim))
        if (name.endswith("_layerwise") or name.endswith("lomo")) and self.optimizer is None:
            raise UnsupportedOptimizerError(
                f"optim={name!r} updates each parameter during the backward pass and has no parameter groups to "
                "split by layer. Use another, such as optim='adamw_torch'."
            )
        mapping = getattr(self.args, "learning_rate_mapping", None)
        if mapping and not self._layerwise_distribution.relative:
            raise ConfigurationError(
                f"learning_rate_mapping={mapping!r} and the absolute distribution "
                f"{self._layerwise_distribution} both set rates, and the distribution would overwrite the mapping's. "
                "Leave one out, or make the distribution relative (relative=true): it then multiplies those rates."
            )

    def _module_to_place(self, model: Any) -> nn.Module:
        """The module that holds all trained parameters: sentence-transformers also trains those of its losses."""
        loss = getattr(self, "loss", None)
        losses = nn.ModuleDict(loss) if isinstance(loss, dict) else loss
        if not isinstance(losses, nn.Module):
            return model
        in_model = {id(p) for p in model.parameters()}
        in_losses = {id(p) for p in losses.parameters()}
        if all(id(p) in in_model for p in losses.parameters() if p.requires_grad):
            return model
        # If the loss contains the model, its `forward` shows on which side of the model its parameters act.
        return losses if in_model <= in_losses else nn.ModuleDict({"model": model, "loss": losses})

    def _freeze(self, module: nn.Module) -> LayerMap:
        layer_map = assign_layers(module, self._layerwise_overrides, self._layerwise_stacks)
        freeze_layers(module, layer_map, layer_map.rates(self._layerwise_distribution.rates))
        if not any(p.requires_grad for p in module.parameters()):
            raise NothingToTrainError(
                f"No parameter of {type(module).__name__} is left to train: the distribution "
                f"{self._layerwise_distribution} and the requires_grad flags of the model freeze every layer. Give one "
                "layer a rate above 0."
            )
        return layer_map

    def _set_rates(self, optimizer: Optimizer, scheduler: Any, total_steps: int) -> None:
        module = self._layerwise_module or self._module_to_place(self.model)
        layer_map = self._freeze(module)
        placement = Placement.of(module, layer_map)
        self._check_schedule(scheduler)
        check_replaced([optimizer], placement, module)
        self._check_coverage(optimizer, placement, module)
        if scales := unread_scales([optimizer]):
            self._warn(UnreadScaleWarning(f"{type(self).__name__}: {describe_unread(scales)}"))
        # In a second `train` the optimizer is the same, split already, and the schedule is new.
        allowed = self._layerwise_allow_schedulers
        done = regroup(optimizer, [scheduler], placement, self._layerwise_distribution, allow_schedulers=allowed)
        if (ratios := done.ratios.describe()) and optimizer is not self._layerwise_optimizer:
            self._warn(OwnRatiosWarning(f"{type(self).__name__}: {ratios}"))
        if self._layerwise_phases is not None:
            self._layerwise_steps.end()
            self._layerwise_steps.attach(optimizer, layer_map.num_layers, may_switch=self._may_switch(module))
            self._layerwise_steps.begin(total_steps, (self._layerwise_resumed or {}).get("phase_starts", ()))
        first = optimizer is not self._layerwise_optimizer and self.is_world_process_zero()
        if first:
            for issue in (*lost_steps(optimizer), *optimizer_warnings(optimizer, self._layerwise_distribution)):
                warnings.warn(issue, stacklevel=2)
        if self._layerwise_verbose and first:
            sizes = {id(p): p.numel() for group in optimizer.param_groups for p in group["params"]}
            rates = self._layerwise_phases or self._layerwise_distribution
            print_table(optimizer, str(rates), rates.relative, sizes, self._layerwise_steps.describe())
        self._layerwise_optimizer = optimizer
        names = [group["name"] for group in optimizer.param_groups]
        overrides = self._layerwise_overrides
        written = identity(self._layerwise_distribution, overrides, layer_map.num_layers, names)
        if self._layerwise_phases is not None:
            written |= {"phases": str(self._layerwise_phases), "phase_starts": self._layerwise_steps.clock.state()}
        self._layerwise_callback.written = written
        self._layerwise_callback.coverage = self._coverage_check(optimizer)
        setattr(optimizer, PHASES, self._layerwise_steps)
        setattr(optimizer, CHECK, RateCheck(optimizer, done.tracks, type(self).__name__))
        if self._layerwise_resumed is not None:
            _compare(self._layerwise_resumed, written)

    def _may_switch(self, module: nn.Module) -> bool:
        """Whether `requires_grad` may change between steps; where it may not, gradients are only dropped."""
        return (
            self.accelerator.distributed_type == DistributedType.NO
            and self.args.n_gpu <= 1
            and not self.args.torch_compile
            and not any(is_compiled(each) or recomputes(each) for each in module.modules())
        )

    def _coverage_check(self, optimizer: Optimizer) -> Coverage | None:
        """Compares the model with `optimizer`; None if wrapping the model replaces its parameters."""
        if self.accelerator.distributed_type not in _WHOLE_PARAMETERS:
            return None
        module = self._layerwise_module or self._module_to_place(self.model)
        return Coverage(
            module,
            [optimizer],
            lambda: Placement.of(module, self._freeze(module)),
            when="before the Trainer is made, or in `model_init`",
        )

    def _warn(self, warning: Warning) -> None:
        if self.is_world_process_zero():
            warnings.warn(warning, stacklevel=2)

    def _check_schedule(self, scheduler: Any) -> None:
        try:
            check_schedulers([scheduler], self._layerwise_allow_schedulers)
        except UnsupportedSchedulerError as error:
            raise UnsupportedSchedulerError(
                f"{error} In this Trainer the argument is called layerwise_allow_schedulers."
            ) from None

    def _check_coverage(self, optimizer: Optimizer, placement: Placement, module: nn.Module) -> None:
        layers, others = uncovered([optimizer], placement, module)
        if layers:
            raise OptimizerCoverageError(
                f"{type(optimizer).__name__} does not hold {len(layers)} trainable parameter(s) of the transformer's "
                f"layers, which therefore get no rate: {listed(layers)}. Pass them to the optimizer; to freeze a "
                "layer, give it the rate 0 in the distribution."
            )
        if others:
            logger.warning(
                f"{type(optimizer).__name__} does not hold {len(others)} trainable parameter(s) outside the layers, so "
                f"they get no rate: {listed(others)}."
            )

    # Checkpoints -----------------------------------------------------------------------------------------

    def _check_resumed(self, state: Mapping[str, Any] | None, checkpoint: str | None) -> Mapping[str, Any]:
        if state is None:
            raise ResumeMismatchError(
                f"The checkpoint {checkpoint} was written by a Trainer without LayerwiseTrainerMixin, so its optimizer "
                f"does not have the groups of {self._layerwise_distribution}. Resume without the mixin, {_NEW_RUN}"
            )
        phases = None if self._layerwise_phases is None else str(self._layerwise_phases)
        if state.get("phases") != phases:
            raise ResumeMismatchError(
                f"The checkpoint {checkpoint} was written with the phases {shown(state.get('phases'))}, this Trainer "
                f"has {shown(phases)}. Use the same phases, {_NEW_RUN}"
            )
        if state.get("fingerprint") != self._layerwise_distribution.fingerprint:
            raise ResumeMismatchError(
                f"The checkpoint {checkpoint} was written under the distribution "
                f"{shown_distribution(state.get('distribution'))}, this Trainer has {self._layerwise_distribution}. "
                "Resuming would bring the old rates back. Give "
                f"layerwise_lr the checkpoint's distribution, {_NEW_RUN}"
            )
        return state


# Checkpoints ---------------------------------------------------------------------------------------------

_NEW_RUN = (
    "or start a new run from its weights alone: load the model with from_pretrained(checkpoint), and train() without "
    "resume_from_checkpoint."
)


def _checkpoint_folder(resume_from_checkpoint: str | bool | None, output_dir: str | None) -> str | None:
    """The folder that the Trainer is about to resume from."""
    if resume_from_checkpoint is True:
        return get_last_checkpoint(output_dir) if output_dir and os.path.isdir(output_dir) else None
    return os.fspath(resume_from_checkpoint) if resume_from_checkpoint else None


def _trainer_state(checkpoint: str | None) -> TrainerState | None:
    """The state in a checkpoint; None if it cannot be read, for which the Trainer raises its own error later."""
    try:
        return TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME)) if checkpoint else None
    except (OSError, ValueError, TypeError):
        return None


def _written(trainer_state: TrainerState) -> Mapping[str, Any] | None:
    """What `LayerwiseRates` wrote into a checkpoint, or None."""
    try:
        saved: Any = trainer_state.stateful_callbacks[LayerwiseRates.__name__]  # type: ignore[index, call-overload]
        state = saved["attributes"]["written"]
    except (TypeError, LookupError):
        return None
    return state if isinstance(state, Mapping) else None


def _compare(state: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    for key in ("overrides", "num_layers", "groups"):
        if state.get(key) != current[key]:
            raise ResumeMismatchError(
                f"The checkpoint was written with {key} = {state.get(key)!s:.300}, this Trainer has "
                f"{current[key]!s:.300}. Use the same model, TrainingArguments, optimizer groups and "
                f"layerwise_overrides, {_NEW_RUN}"
            )
