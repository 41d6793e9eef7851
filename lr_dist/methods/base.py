"""Base class of the methods against forgetting: a Lightning callback with a name and a text form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import override

from lr_dist._callback.finder import resumes_a_fit
from lr_dist._callback.other_callbacks import check_whole_parameters
from lr_dist._lightning import Callback, L, ModelParallelStrategy, isolate_rng
from lr_dist.errors import ConfigurationError, ResumeMismatchError, UnsupportedStrategyError
from lr_dist.methods.context import StageContext

if TYPE_CHECKING:
    from lr_dist.tasks import TokenizedTask

Setting = float | int | str


@dataclass(frozen=True)
class Needs:
    """Parts of the model that a method or an observer needs; `lr_dist.sequence` leaves out those that are not needed.

    Attributes:
        full_vocabulary: all rows of the word embeddings, for texts other than those of the tasks.
        all_tokens: the last layer's states of all tokens, not only of the one that the head reads.
        plain_modules: the modules as transformers makes them, computing padded batches in their own `forward`; for
            adapters and hooks on them.
        held_out: scores on held-out examples, `StageContext.held_out`.
    """

    full_vocabulary: bool = False
    all_tokens: bool = False
    plain_modules: bool = False
    held_out: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(**{each.name: getattr(self, each.name) or getattr(other, each.name) for each in fields(self)})


class Order(IntEnum):
    """When a method acts at the end of a stage; `lr_dist.sequence` sorts the methods of an arm by it."""

    FINISH = 0
    """Ends the training: merges adapters, takes over averaged weights."""
    BORDER = 1
    """Changes the weights that the training left, such as an interpolation."""
    LEARN = 2
    """Learns from the final weights and the stage's data: importances, examples."""


@dataclass(frozen=True)
class MethodInfo:
    """What `lr-dist methods` and the documentation say of a method.

    Attributes:
        summary: one line.
        source: paper, with its number on arXiv.
        stores: what it keeps from stage to stage, such as `one copy of the weights`.
        earlier_data: whether it keeps examples of earlier tasks.
        fsdp2: whether it works under ModelParallelStrategy.
    """

    summary: str
    source: str
    stores: str = "nothing"
    earlier_data: bool = False
    fsdp2: bool = True


class Method(Callback):
    """A callback that works against forgetting in any Trainer. One fit is one stage: it learns one task.

    What a method has learned from earlier stages (an anchor, importances, examples) stays in the instance: use the same
    instance for every stage of a sequence, and a new one for a new sequence. It is part of the Trainer's checkpoints,
    so a stage that was stopped resumes exactly.

    Write a subclass in a new file, and add it to `METHODS`. Override `stage_started` and `stage_ended` for what happens
    at a stage's borders, Lightning's hooks for what happens in training, and `state` and `load_state`. The arguments of
    the constructor that are not keyword-only are the settings of the text form, `name:key=value,...`.

    Attributes:
        name: the first word of the text form.
        info: what the documentation says of it.
        order: when it acts at the end of a stage. In a Trainer, list the callbacks in this order.
        needs: parts of the model that the method needs when `lr_dist.sequence` trains.
        trains_earlier_heads: whether the heads of earlier tasks are trained, too, because the method has examples of
            these tasks.
        learns_jointly: whether a stage learns all tasks so far, from the weights before the first; only
            `lr_dist.sequence` can do this.
        records_training: whether what it knows of a task is recorded while the task is trained, so that it cannot
            protect what a model has learned before.
    """

    name: ClassVar[str]
    info: ClassVar[MethodInfo]
    order: ClassVar[Order] = Order.LEARN
    needs: Needs = Needs()
    trains_earlier_heads: ClassVar[bool] = False
    learns_jointly: ClassVar[bool] = False
    records_training: ClassVar[bool] = False

    _context: StageContext | None = None
    _stages = 0
    _ended = False

    def settings(self) -> dict[str, Setting]:
        """The settings of the text form; a checkpoint of other settings is refused."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The text form."""
        values = ",".join(f"{key}={_text(value)}" for key, value in self.settings().items())
        return f"{self.name}:{values}" if values else self.name

    @property
    def context(self) -> StageContext:
        """The stage; in a user's own Trainer, counted by the fits of this instance."""
        return self._context or StageContext(self._stages, f"task {self._stages + 1}")

    def enter(self, context: StageContext) -> None:
        """Say which stage the next fit is. Without it, stages are counted by fits."""
        self._context = context

    def trains_in(self, context: StageContext) -> bool:
        """Whether it changes, or records, the training of a stage; only settings and context may decide it.

        Where it does not, `lr_dist.sequence` trains the stage once for this arm and those without the method.
        """
        return True

    def changes_weights_in(self, context: StageContext) -> bool:
        """Whether it may change the weights that a stage's training left; only settings and context may decide it.

        By default, methods at the border do, from the second stage on: in the first one there is no earlier task.
        Where it does not, `lr_dist.sequence` trains the next stage once for this arm and those without the method.
        """
        return self.order is Order.BORDER and context.index > 0

    def check_tasks(self, tasks: Sequence[TokenizedTask]) -> None:
        """Called by comparisons before anything is trained; raise ConfigurationError for tasks that do not fit.

        Args:
            tasks: in the order in which they will be learned.
        """

    def stage_started(self, module: L.LightningModule) -> None:
        """Called before the first step with the module's weights, and again when a fit resumes."""

    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        """Called after the last step.

        Random numbers that it draws leave no trace in the run's; the module is in training mode before and after.

        Args:
            module: with the weights at the end.
            loader: the stage's training data, as it was given to the Trainer (mostly a DataLoader).
        """

    def outcome(self) -> dict[str, Any]:
        """What it chose or measured in the last stage, as plain data for a result file; empty if there is nothing."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold: tensors and plain data, for `torch.load(weights_only=True)`."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""

    def end_stage(self, module: L.LightningModule, loader: Any) -> None:
        """Call `stage_ended` without a trace in the random numbers, and count the stage."""
        with isolate_rng():
            torch.manual_seed(self.context.generator(self.name).initial_seed() % 2**31)
            self.stage_ended(module, loader)
        self._count_stage()

    def take_over_stage(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave after the end of the stage, which another run has trained."""
        self.load_state(state)
        self._count_stage()

    def _count_stage(self) -> None:
        self._stages = self.context.index + 1
        self._context = None
        self._ended = True

    def held(self) -> tuple[int, int]:
        """What is kept from stage to stage now: number of bytes, and number of examples."""
        return _bytes_in(self.state()), 0

    @property
    @override
    def state_key(self) -> str:
        """Without the settings, so that a checkpoint of other settings is recognised."""
        return f"lr_dist.{self.name}"

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse strategies under which a process does not hold weights by name.

        Raises:
            UnsupportedStrategyError: FSDP1 or DeepSpeed; FSDP2 for a method that does not work with shards.
            ConfigurationError: methods that are not listed in the order in which they have to act at the end.
        """
        if stage != "fit":
            return
        _check_order(trainer)
        better = {} if self.info.fsdp2 else {"better": "DDPStrategy"}
        check_whole_parameters(trainer, self.name, **better)
        if not self.info.fsdp2 and isinstance(trainer.strategy, ModelParallelStrategy):
            raise UnsupportedStrategyError(
                f"{self.name} needs whole parameters, and {type(trainer.strategy).__name__} (FSDP2) gives each process "
                "a part of them. Use DDPStrategy."
            )

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ended = False
        self.stage_started(pl_module)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end_stage(pl_module, trainer.train_dataloader)

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run without this method or with other settings.

        Raises:
            ResumeMismatchError: the checkpoint was written without this method, with other settings, or after the stage
                had ended for a method that had then learned from it.
        """
        if not resumes_a_fit(trainer):
            return
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None or state["settings"] != self.settings():
            then = "without it" if state is None else f"with {state['settings']}"
            raise ResumeMismatchError(
                f"This run has {self}; the checkpoint was written {then}, so the run would not continue that one. Use "
                "the same methods and settings, or start a new run from the checkpoint's weights alone, without "
                "ckpt_path."
            )
        if state.get("ended") and type(self).stage_ended is not Method.stage_ended:
            raise ResumeMismatchError(
                f"The checkpoint was written when the fit had ended and {self.name} had learned from its data; going "
                "on would count that data twice. Resume from a checkpoint that was written during the fit, or learn "
                "the next task in a new fit without ckpt_path."
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"settings": self.settings(), "stages": self._stages, "ended": self._ended, **self.state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Checkpoints of version 0.1 did not count stages.
        self._stages = state_dict.get("stages", 0)
        self.load_state(state_dict)


def _check_order(trainer: L.Trainer) -> None:
    # Lightning's type of the list is not that of a twin's callbacks.
    callbacks: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
    methods = [callback for callback in callbacks if isinstance(callback, Method)]
    ordered = sorted(methods, key=lambda method: method.order)
    if methods != ordered:
        raise ConfigurationError(
            f"At the end of the fit the methods act in the order in which they are listed: "
            f"{', '.join(method.name for method in methods)}. List them so: "
            f"callbacks=[..., {', '.join(type(method).__name__ for method in ordered)}]."
        )


def _bytes_in(value: Any) -> int:
    """Bytes of all tensors in nested plain data."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes_in, value.values()))
    return sum(map(_bytes_in, value)) if isinstance(value, (list, tuple)) else 0


def _text(value: Setting) -> str:
    """A setting in the text form; texts with signs of their own are put in parentheses."""
    if isinstance(value, str):
        return f"({value})" if re.search(r"[,:=+| ]", value) else value
    return repr(value)
