"""What a recommendation depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError, shown


@dataclass(frozen=True)
class Case:
    """A fine-tuning for which advice is asked.

    Attributes:
        family: the model's family as transformers names it (`model_type`): bert, vit, ...
        layers: number of layers.
        tasks: the tasks in the order of learning.
        examples: training examples of each task.
        batch_size: examples in each step of the optimizer.
        fine_tuned: whether the model knows a task already that should be kept.

    Raises:
        ConfigurationError: no task, or a number that is not a whole number from 1.
    """

    family: str
    layers: int
    tasks: tuple[str, ...]
    examples: int
    batch_size: int = 32
    fine_tuned: bool = False

    def __post_init__(self) -> None:
        if not self.tasks or not all(isinstance(task, str) and task.strip() for task in self.tasks):
            raise ConfigurationError(
                f"tasks must be one name or more, in the order of learning, not {shown(self.tasks)}."
            )
        for key in ("layers", "examples", "batch_size"):
            check_whole(key, getattr(self, key), 1, error=ConfigurationError)

    @property
    def in_sequence(self) -> bool:
        """Whether something that was learned before can be forgotten: several tasks, or a model that knows one."""
        return len(self.tasks) > 1 or self.fine_tuned or any("@" in task for task in self.tasks)


def case_of(
    model: str, tasks: Sequence[str], examples: int, *, start: str | Path | None = None, batch_size: int = 32
) -> Case:
    """Read family and number of layers from the model's configuration; no weights are loaded.

    Args:
        model: `minilm`, a name on the hub, or a folder.
        tasks: names of the tasks in the order of learning.
        examples: training examples of each task.
        start: folder of a fine-tuned model, which takes the place of `model`.
        batch_size: examples in each step of the optimizer.

    Raises:
        ModelLoadError: no such model, or one that cannot be read.
        ConfigurationError: what `Case` raises.
    """
    if isinstance(tasks, str):
        raise ConfigurationError(f"tasks must be a list of names, as in ['sst2', 'qqp'], not {shown(tasks)}.")
    # Checked before the model is read.
    Case("unknown", 1, tuple(tasks), examples, batch_size)
    family, layers = family_and_layers(model if start is None else str(start))
    return Case(family, layers, tuple(tasks), examples, batch_size, fine_tuned=start is not None)


def family_and_layers(model: str) -> tuple[str, int]:
    """The model's family as transformers names it (`model_type`), and its number of layers; only its configuration is
    read.

    Raises:
        ModelLoadError: no such model, or one that cannot be read.
        LRDistError: what `assign_layers` raises.
    """
    from lr_dist.layers import assign_layers
    from lr_dist.models import load_skeleton

    skeleton = load_skeleton(model)
    family = getattr(getattr(skeleton, "config", None), "model_type", "unknown")
    return str(family), assign_layers(skeleton).num_layers
