"""Base class of the methods against forgetting: a Lightning callback with a name and a text form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from lr_dist._callback.finder import resumes_a_fit
from lr_dist._lightning import Callback, DeepSpeedStrategy, FSDPStrategy, L
from lr_dist.errors import ResumeMismatchError, UnsupportedStrategyError


@dataclass(frozen=True)
class Needs:
    """Parts of the model that a method or an observer needs; `lr_dist.sequence` leaves out those that are not needed.

    Attributes:
        full_vocabulary: all rows of the word embeddings, for texts other than those of the tasks.
        all_tokens: the last layer's states of all tokens, not only of the one that the head reads.
    """

    full_vocabulary: bool = False
    all_tokens: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.full_vocabulary or other.full_vocabulary, self.all_tokens or other.all_tokens)


class Method(Callback):
    """A callback that works against forgetting in any Trainer. One fit is one stage: it learns one task.

    What a method has learned from earlier stages (an anchor, importances, examples) stays in the instance: use the same
    instance for every stage of a sequence, and a new one for a new sequence. It is part of the Trainer's checkpoints,
    so a stage that was stopped resumes exactly.

    Write a subclass in a new file, and add it to `METHODS`. The numeric keyword arguments of the constructor are the
    keys of its text form, `name:key=value,...`.

    Attributes:
        name: the first word of the text form.
        needs: parts of the model that the method needs when `lr_dist.sequence` trains.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()

    def settings(self) -> dict[str, float]:
        """The numbers of the text form; a checkpoint of other settings is refused."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The text form."""
        values = ",".join(f"{key}={value!r}" for key, value in self.settings().items())
        return f"{self.name}:{values}" if values else self.name

    @property
    @override
    def state_key(self) -> str:
        """Without the settings, so that a checkpoint of other settings is recognised."""
        return f"lr_dist.{self.name}"

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse strategies under which a process does not hold weights by name.

        Raises:
            UnsupportedStrategyError: FSDP1 or DeepSpeed.
        """
        if stage == "fit" and isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
            raise UnsupportedStrategyError(
                f"{self.name} needs every parameter by its name and in its shape, which "
                f"{type(trainer.strategy).__name__} does not keep. Use ModelParallelStrategy (FSDP2) or DDPStrategy."
            )

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run without this method or with other settings.

        Raises:
            ResumeMismatchError: the checkpoint was written without this method, or with other settings.
        """
        if not resumes_a_fit(trainer):
            return
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is not None and state["settings"] == self.settings():
            return
        then = "without it" if state is None else f"with {state['settings']}"
        raise ResumeMismatchError(
            f"This run has {self}; the checkpoint was written {then}, so the run would not continue that one. Use the "
            "same methods and settings, or start a new run from the checkpoint's weights alone, without ckpt_path."
        )
