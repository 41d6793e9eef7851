"""`Rehearsal`: what the methods that keep examples of earlier tasks have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lr_dist._callback.internals import move_batch
from lr_dist._lightning import L, isolate_rng
from lr_dist.errors import ConfigurationError, LRDistError, UnsupportedStrategyError, listed, shown
from lr_dist.methods.base import Method, Setting
from lr_dist.methods.buffer import Memory, Portion, RehearsalBuffer, classes_of, fetch, indices_of, is_indexed
from lr_dist.methods.context import StageContext
from lr_dist.methods.draws import Draws
from lr_dist.methods.evaluating import batch_norms, evaluating
from lr_dist.methods.examples import collated_block, count, mapped, plain
from lr_dist.methods.task_functions import MultiHeadModule, TaskFunctions

if TYPE_CHECKING:
    from lr_dist.tasks import TokenizedTask


class Rehearsal(Method):
    """Base class of methods with a buffer of earlier examples.

    Examples are chosen at the end of a stage: of a DataLoader with an indexed dataset by index, and padded by its own
    `collate_fn`; of an iterable dataset or another iterable of batches by reading it once more. In the first stage
    there are none, so that the training is the one without the method. The examples, and which of them come next, are
    in the checkpoints.

    Stored examples are computed in training mode, with dropout, and batch norms use and keep their running statistics:
    those of one or two examples would be noise.

    In a Trainer with a single fit, give it the earlier data: `buffer=RehearsalBuffer.filled({"sst2": old_loader})`.

    Under DDP and FSDP2 every process holds the same buffer, and the examples of a step are divided between the
    processes.

    Args:
        size: examples kept of all tasks together.
        policy: `reservoir` or `balanced`, see `RehearsalBuffer`.
        buffer: takes the place of both, for a policy of your own.
        functions: how outputs, targets and loss of a batch are computed.
        only: names of the tasks of which examples are kept, joined by `+`; empty for all tasks.

    Raises:
        ConfigurationError: an invalid setting.
    """

    trains_earlier_heads: ClassVar[bool] = True

    def __init__(
        self, size: int, policy: str, buffer: RehearsalBuffer | None, functions: TaskFunctions | None, only: str = ""
    ) -> None:
        if not isinstance(only, str) or (only and not all(map(str.strip, only.split("+")))):
            raise ConfigurationError(f"only holds names of tasks, joined by +, such as sst2+mrpc, not {shown(only)}.")
        self.only = only
        self.buffer = buffer if buffer is not None else RehearsalBuffer(size, policy)
        self.functions = functions or TaskFunctions()
        self._draws = Draws(torch.Generator(), -1)  # of no stage
        self._restored = False
        self._tried = False
        self._new = 0  # examples of the batch that is being learned

    @override
    def check_tasks(self, tasks: Sequence[TokenizedTask]) -> None:
        names = [each.task.name for each in tasks]
        unknown = sorted(self._kept_tasks - set(names))
        if unknown:
            raise ConfigurationError(
                f"only={self.only} of {self.name}: {listed(unknown)} is no task of the sequence ({', '.join(names)})."
            )
        kept = [each for each in tasks if self._keeps(each.task.name)]
        self._check_size(len(kept[0].train))
        regression = next((each.task.name for each in kept if each.task.kind == "regression"), None)
        if self.buffer.policy == "balanced" and regression is not None:
            raise ConfigurationError(
                f"policy=balanced needs classes, and {regression} is a regression. Use policy=reservoir."
            )

    @property
    def _kept_tasks(self) -> set[str]:
        return {name.strip() for name in self.only.split("+")} if self.only else set()

    def _keeps(self, task: str) -> bool:
        """Whether examples of this task are kept."""
        return not self.only or task in self._kept_tasks

    def _only(self) -> dict[str, Setting]:
        """Its part of the settings; the default leaves texts and checkpoints as they were before it existed."""
        return {"only": self.only} if self.only else {}

    def _check_size(self, available: int) -> None:
        if self.buffer.size > available:
            first = f"the first task of {self.only}" if self.only else "the first task"
            raise ConfigurationError(
                f"size={self.buffer.size} examples are to be kept, and {first} has {available}. Lower size to "
                f"{available} or less, or train on all earlier tasks at once."
            )

    @override
    def trains_in(self, context: StageContext) -> bool:
        return context.index > 0

    @override
    def stage_started(self, module: L.LightningModule) -> None:
        if not (self._restored and self._draws.stage == self.context.index):
            self._draws = Draws(self.context.generator(f"{self.name}/draws"), self.context.index)
        self._restored = False

    @override
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        self._keep_examples(loader)

    def _keep_examples(self, loader: Any) -> Memory | None:
        """Keep examples of the stage's task; None if it is not one of those of which examples are kept."""
        context = self.context
        if not self._keeps(context.task):
            return None
        generator = context.generator(self.name)
        return self.buffer.add(context.task, context.head, loader, generator, self.functions.targets_of)

    @override
    def state(self) -> dict[str, Any]:
        return {"buffer": self.buffer.state(), "draws": self._draws.state()}

    @override
    def load_state(self, state: Mapping[str, Any]) -> None:
        self.buffer.load_state(state["buffer"])
        self._draws = Draws.from_state(state["draws"])
        self._restored = True

    @override
    def held(self) -> tuple[int, int]:
        return self.buffer.nbytes, len(self.buffer)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse data that could not be kept at the end of the stage.

        Raises:
            ConfigurationError: more examples to keep than the first task has, several loaders, a loader that can be
                read only once, batches that hold other things than tensors, texts and numbers, `balanced` without
                classes, or a module with several heads of which none is named.
            UnsupportedStrategyError: several processes with data that has no indices, or with a head for each task.
        """
        self._check_data(trainer)
        if isinstance(pl_module, MultiHeadModule) and self.context.head is None and self.functions.outputs is None:
            raise ConfigurationError(
                f"{type(pl_module).__name__} has a head for each task, and {self.name} has to know which one this fit "
                "trains. Before the fit: method.enter(StageContext(index, task, head=NAME))."
            )
        self._tried = False
        super().on_train_start(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compute outputs and loss of the first batch once as the method would, before the first step.

        Raises:
            ConfigurationError: that is not possible.
        """
        self._new = count(batch)
        if not self._tried:
            self._try(trainer, pl_module, batch)
            self._tried = True

    def _check_data(self, trainer: L.Trainer) -> None:
        loader: Any = trainer.train_dataloader
        _, replicas = processes(trainer)
        if isinstance(loader, (Mapping, list, tuple)):
            raise ConfigurationError(
                f"The Trainer has {len(loader)} training loaders, and {self.name} needs to know which one holds the "
                "task's examples. Give it one loader, such as that of a torch.utils.data.ConcatDataset."
            )
        if isinstance(loader, Iterator):
            raise ConfigurationError(
                f"The training data is a {type(loader).__name__}, which can be read only once, and {self.name} reads "
                "it again at the end. Give the Trainer a DataLoader."
            )
        if replicas > 1 and any(memory.head is not None for memory in self.buffer.memories):
            raise UnsupportedStrategyError(
                f"{self.name} trains the heads of earlier tasks with examples that differ between processes, which "
                "DistributedDataParallel cannot follow. Use one process, or a model with one head."
            )
        if not is_indexed(loader):
            if replicas > 1:
                raise UnsupportedStrategyError(
                    f"{self.name} needs the same examples in each of the {replicas} processes, and of data without "
                    "indices each reads a part of its own. Use a dataset with __getitem__ and __len__."
                )
            return
        indices = indices_of(loader)
        if not self.buffer.memories and self._keeps(self.context.task):
            self._check_size(len(indices))
        with isolate_rng():
            examples = fetch(loader, list(indices[:2]))
            collated_block(examples, loader.collate_fn)
            if self.buffer.policy == "balanced" and self._keeps(self.context.task):
                classes_of(self.functions.targets_of(loader.collate_fn(fetch(loader, list(indices[:2])))))

    def _try(self, trainer: L.Trainer, module: L.LightningModule, batch: Any) -> None:
        plain(batch)
        with isolate_rng(), evaluating(module), torch.no_grad(), trainer.precision_plugin.train_step_context():
            try:
                outputs = self.functions.outputs_of(module, batch, self.context.head)
                targets = self.functions.targets_of(batch)
                loss = self.functions.loss_of(outputs, targets)
            except (LRDistError, torch.OutOfMemoryError):
                raise
            except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
                raise ConfigurationError(
                    f"{self.name} could not compute the loss of a batch: {type(error).__name__}: {error}. Say how: "
                    "functions=TaskFunctions(outputs=lambda module, batch, head: ..., targets=lambda batch: ..., "
                    "loss=lambda outputs, targets: ...)."
                ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ConfigurationError(
                f"The loss of a batch must be one number, its examples' mean; {self.name} got {loss!s:.80}. Give "
                "functions=TaskFunctions(loss=...) that returns the mean."
            )
        self._check_outputs(outputs)

    def _check_outputs(self, outputs: Tensor) -> None:
        """Refuse outputs that the method cannot use."""

    def _portions(self, trainer: L.Trainer, number: int) -> list[tuple[Portion, float]]:
        """The next `number` examples: the part of this process, each batch with its weight.

        Every process gets as many batches, because under FSDP2 they compute in step; those that only fill up have the
        weight 0.
        """
        indices, positions = self._draws.take(number, len(self.buffer)), torch.arange(number)
        rank, replicas = processes(trainer)
        parts = [self.buffer.portions(indices[r::replicas], positions[r::replicas]) for r in range(replicas)]
        filling = next(part for part in parts if part)[0]
        filling = replace(filling, rows=filling.rows[:1], positions=filling.positions[:1])
        missing = max(map(len, parts)) - len(parts[rank])
        return [(portion, 1.0) for portion in parts[rank]] + [(filling, 0.0)] * missing

    def _forward(self, trainer: L.Trainer, module: L.LightningModule, portion: Portion) -> tuple[Tensor, Tensor]:
        """Outputs [n, ...] and targets [n] of stored examples."""
        batch = move_batch(trainer, portion.batch)
        with evaluating(*batch_norms(module)):
            outputs = self.functions.outputs_of(module, batch, portion.memory.head)
        return outputs, self.functions.targets_of(batch)


def moved_to(module: L.LightningModule, batch: Any) -> Any:
    """A batch as `training_step` receives it; of a module without a Trainer, on the module's device."""
    try:
        trainer = module.trainer
    except RuntimeError:  # what Lightning raises where there is none
        return mapped(batch, lambda leaf: leaf.to(module.device) if isinstance(leaf, Tensor) else leaf)
    return move_batch(trainer, batch)


def new_examples(trainer: L.Trainer, number: int) -> int:
    """The new examples of a step in all processes together, of which this one has `number`."""
    if processes(trainer)[1] == 1:
        return number
    counted = torch.tensor(float(number), device=trainer.strategy.root_device)
    reduced = trainer.strategy.reduce(counted, reduce_op="sum")
    return round(float(reduced))


def processes(trainer: L.Trainer) -> tuple[int, int]:
    """Number of this process, and of all that see different data."""
    known = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    return known.get("rank", 0), max(known.get("num_replicas", 1), 1)
