"""`RehearsalBuffer`: examples of earlier tasks, a fixed number in all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, SubsetRandomSampler

from lr_dist._lightning import rank_zero_warn
from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError, UnfilledBufferWarning
from lr_dist.methods.examples import Block, block_of, collated_block, count, joined, leaves, plain, rows, signature
from lr_dist.methods.task_functions import TaskFunctions
from lr_dist.names import one_of

Targets = Callable[[Any], Tensor]
POLICIES = ("reservoir", "balanced")
_CHUNK = 256


@dataclass(frozen=True)
class Memory:
    """The examples that are kept of one task.

    Attributes:
        task: its name.
        head: the head that it trained; None for modules with one head.
        blocks: the examples.
        order: block and row of each example [n, 2]. The first k of them are a sample of the task's data by the
            buffer's policy, for every k, so that a buffer is made smaller by dropping the last ones.
        outputs: a recorded output for each row of each block [rows, ...]; empty if none was recorded.
    """

    task: str
    head: str | None
    blocks: tuple[Block, ...]
    order: Tensor
    outputs: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.order)

    def first(self, number: int) -> Memory:
        """The first examples in `order` alone."""
        if number >= len(self):
            return self
        order = self.order[:number]
        places = torch.empty_like(order)
        blocks: list[Block] = []
        outputs: list[Tensor] = []
        for index in order[:, 0].unique().tolist():
            chosen = order[:, 0] == index
            kept = order[chosen, 1]
            places[chosen] = torch.stack([torch.full_like(kept, len(blocks)), torch.arange(len(kept))], dim=1)
            blocks.append(self.blocks[index].select(kept))
            outputs += [self.outputs[index][kept].clone()] if self.outputs else []
        return replace(self, blocks=tuple(blocks), order=places, outputs=tuple(outputs))

    def state(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "head": self.head,
            "blocks": [block.state() for block in self.blocks],
            "order": self.order,
            "outputs": list(self.outputs),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Memory:
        blocks = tuple(Block.from_state(block) for block in state["blocks"])
        return cls(state["task"], state["head"], blocks, state["order"], tuple(state["outputs"]))


@dataclass(frozen=True)
class Portion:
    """Drawn examples that are passed through the model together.

    Attributes:
        memory: the task that they are of.
        block: the number of their block.
        rows: their places in the block [n].
        positions: their places among all that were drawn [n].
    """

    memory: Memory
    block: int
    rows: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def batch(self) -> Any:
        """The examples, padded to the longest of them."""
        return self.memory.blocks[self.block].take(self.rows)

    @property
    def outputs(self) -> Tensor:
        """What `RehearsalBuffer.record` stored for them [n, ...]."""
        return self.memory.outputs[self.block][self.rows]


class RehearsalBuffer:
    """Up to `size` examples of earlier tasks, shared equally between the tasks.

    When a task comes in, each earlier one gives up a random part of its examples. What a task with little data leaves
    of its share goes to the others.

    Policies:

    - `reservoir`: every example of a task is kept with the same probability. Streams (an IterableDataset) are read
      once, by reservoir sampling (Vitter 1985, algorithm R).
    - `balanced`: as many examples of each class as of every other, or as many as there are; chosen at random within a
      class. It reads the whole data once, for the labels.

    Args:
        size: number of examples of all tasks together, at least 1.
        policy: `reservoir` or `balanced`.

    Raises:
        ConfigurationError: an invalid size or an unknown policy.
    """

    def __init__(self, size: int = 500, policy: str = "reservoir") -> None:
        self.size = check_whole("size", size, 1, error=ConfigurationError, hint="It is the number of examples kept.")
        if policy not in POLICIES:
            raise ConfigurationError(f"policy must be {one_of(POLICIES, policy)}")
        self.policy = policy
        self.memories: list[Memory] = []

    @classmethod
    def filled(
        cls,
        loaders: Mapping[str, Any],
        size: int = 500,
        policy: str = "reservoir",
        *,
        seed: int = 0,
        functions: TaskFunctions | None = None,
    ) -> RehearsalBuffer:
        """A buffer with examples of tasks that the model has learned already.

            Replay(ratio=0.05, buffer=RehearsalBuffer.filled({"sst2": old_loader}, size=200))

        Args:
            loaders: task -> loader of its training data. For modules with a head for each task, use `add`.
            size: see `RehearsalBuffer`.
            policy: see `RehearsalBuffer`.
            seed: of the random choice.
            functions: how the labels of a batch are read, for `balanced`.

        Raises:
            ConfigurationError: an invalid setting, or batches that cannot be kept.
        """
        buffer = cls(size, policy)
        generator = torch.Generator().manual_seed(seed)
        for task, loader in loaders.items():
            buffer.add(task, None, loader, generator, (functions or TaskFunctions()).targets_of)
        return buffer

    def __len__(self) -> int:
        """Number of examples held."""
        return sum(map(len, self.memories))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(leaf.nbytes for leaf in leaves(self.state()) if isinstance(leaf, Tensor))

    def choose(self, loader: Any, number: int, generator: torch.Generator, targets_of: Targets) -> Memory:
        """Up to `number` examples of the data that `loader` reads, by the policy; override it for another policy.

        Args:
            loader: of the training data.
            number: at least 1.
            generator: of random numbers.
            targets_of: batch -> labels [examples].

        Returns:
            A memory without a name, in whose `order` every beginning is a sample, too.
        """
        labels_of = (lambda batch: classes_of(targets_of(batch))) if self.policy == "balanced" else None
        if is_indexed(loader):
            examples = indices_of(loader)
            if labels_of is None:
                chosen = torch.randperm(len(examples), generator=generator)[:number].tolist()
            else:
                chunks = (examples[start : start + _CHUNK] for start in range(0, len(examples), _CHUNK))
                labels = [label for chunk in chunks for label in labels_of(loader.collate_fn(fetch(loader, chunk)))]
                chosen = _balanced(labels, number, generator)
            block = collated_block(fetch(loader, [examples[index] for index in chosen]), loader.collate_fn)
            return _memory([block], torch.arange(len(chosen)))
        if isinstance(getattr(loader, "dataset", None), IterableDataset) and getattr(loader, "batch_size", None):
            label_of = None if labels_of is None else (lambda row: labels_of(loader.collate_fn([row]))[0])
            kept = _sampled(loader.dataset, number, generator, label_of)
            return _memory([collated_block(kept, loader.collate_fn)], torch.arange(len(kept)))
        single = None if labels_of is None else (lambda row: labels_of(row)[0])
        return _grouped(_sampled(_rows_of(loader), number, generator, single))

    def add(self, task: str, head: str | None, loader: Any, generator: torch.Generator, targets_of: Targets) -> Memory:
        """Keep examples of a task that has been learned, and fewer of the earlier ones.

        Returns:
            The task's memory, the last of `memories`.
        """
        # With it, as many as if all tasks had data enough; `shares` may give it more.
        chosen = self.choose(loader, self.size, generator, targets_of)
        parts = shares(self.size, [len(each) for each in self.memories] + [len(chosen)])
        wanted = self.size // (len(self.memories) + 1)
        if len(chosen) < wanted:
            rank_zero_warn(
                UnfilledBufferWarning(
                    f"The buffer has room for {wanted} examples of {task}, and its data holds {len(chosen)}: all of "
                    "them are kept. Lower size if that is more than you want to store."
                )
            )
        chosen = replace(chosen, task=task, head=head)
        self.memories = [each.first(part) for each, part in zip([*self.memories, chosen], parts, strict=True)]
        return self.memories[-1]

    def record(self, memory: Memory, outputs_of: Callable[[Any], Tensor]) -> None:
        """Store what `outputs_of(batch)` [examples, ...] gives for a memory's examples."""
        recorded = []
        for block in memory.blocks:
            chunks = torch.arange(len(block)).split(32)
            recorded.append(torch.cat([outputs_of(block.take(chunk)).detach().float().cpu() for chunk in chunks]))
        index = next(index for index, each in enumerate(self.memories) if each is memory)
        self.memories[index] = replace(memory, outputs=tuple(recorded))

    def portions(self, indices: Tensor, positions: Tensor) -> list[Portion]:
        """The examples at `indices` [n] of all that are held, in batches that one head computes.

        Args:
            indices: numbers from 0 to `len(self) - 1`.
            positions: what `Portion.positions` says of each [n].
        """
        found = []
        start = 0
        for memory in self.memories:
            inside = (indices >= start) & (indices < start + len(memory))
            places, order = positions[inside], memory.order[indices[inside] - start]
            for block in order[:, 0].unique().tolist():
                chosen = order[:, 0] == block
                found.append(Portion(memory, block, order[chosen, 1], places[chosen]))
            start += len(memory)
        return found

    def state(self) -> dict[str, Any]:
        return {"memories": [memory.state() for memory in self.memories]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.memories = [Memory.from_state(memory) for memory in state["memories"]]


def shares(size: int, available: Sequence[int]) -> list[int]:
    """`size` places, shared equally between tasks that have so many examples; earlier tasks get what is left over.

    What a task cannot fill is shared by the others.
    """
    given = [0] * len(available)
    while (left := size - sum(given)) and (open_ := [i for i, n in enumerate(available) if given[i] < n]):
        each, more = divmod(left, len(open_))  # `more`: fewer places than tasks
        for place, index in enumerate(open_):
            given[index] = min(available[index], given[index] + (each or place < more))
    return given


def is_indexed(loader: Any) -> bool:
    """Whether single examples can be read: a DataLoader of a dataset with indices, which makes the batches itself."""
    dataset = getattr(loader, "dataset", None)
    return (
        not isinstance(dataset, IterableDataset)
        and hasattr(dataset, "__getitem__")
        and hasattr(dataset, "__len__")
        and getattr(loader, "batch_sampler", None) is not None
        and callable(getattr(loader, "collate_fn", None))
    )


def indices_of(loader: Any) -> Sequence[int]:
    """The indices of the dataset that the loader reads."""
    sampler = getattr(loader, "sampler", None)
    return list(sampler.indices) if isinstance(sampler, SubsetRandomSampler) else range(len(loader.dataset))


def fetch(loader: Any, indices: Sequence[int]) -> list[Any]:
    """Examples of the dataset, as the loader reads them."""
    dataset = loader.dataset
    if getattr(dataset, "__getitems__", None):
        return list(dataset.__getitems__(list(indices)))
    return [dataset[index] for index in indices]


def _memory(blocks: Sequence[Block], number: Tensor) -> Memory:
    return Memory("", None, tuple(blocks), torch.stack([torch.zeros_like(number), number], dim=1))


def _grouped(examples: Sequence[Any]) -> Memory:
    """Single examples, in a block for each form."""
    places: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        places.setdefault(signature(example), []).append(index)
    order = torch.empty(len(examples), 2, dtype=torch.int64)
    blocks = []
    for number, members in enumerate(places.values()):
        blocks.append(block_of(joined([examples[index] for index in members])))
        order[members] = torch.tensor([[number, row] for row in range(len(members))])
    return Memory("", None, tuple(blocks), order)


def _rows_of(loader: Iterable[Any]) -> Iterator[Any]:
    """The examples of the batches, one at a time."""
    for batch in loader:
        kept = plain(batch)
        for index in range(count(kept)):
            yield rows(kept, torch.tensor([index]))


def classes_of(targets: Any) -> list[int]:
    """The classes of a batch's examples.

    Raises:
        ConfigurationError: these are not one whole number an example.
    """
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.ndim != 1:
        what = f"{targets.dtype} {list(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise ConfigurationError(
            f"policy=balanced needs one class an example (whole numbers [examples]); the targets are {what}. Use "
            "policy=reservoir."
        )
    return targets.tolist()


def _balanced(labels: Sequence[int], number: int, generator: torch.Generator) -> list[int]:
    """Indices, of each class in turn a random one, until there are `number`."""
    by_class: dict[int, list[int]] = {}
    for index in torch.randperm(len(labels), generator=generator).tolist():
        by_class.setdefault(labels[index], []).append(index)
    return _in_turn(list(by_class.values()), number)


def _in_turn(groups: Sequence[Sequence[Any]], number: int) -> list[Any]:
    longest = max(map(len, groups), default=0)
    return [group[place] for place in range(longest) for group in groups if place < len(group)][:number]


class Reservoir:
    """A uniform sample of a stream of unknown length (Vitter 1985, algorithm R).

    Args:
        size: of the sample.
        generator: of random numbers.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self._size = size
        self._generator = generator
        self._seen = 0
        self._kept: list[Any] = []

    def offer(self, example: Any) -> None:
        """Tell of the stream's next example."""
        self._seen += 1
        if len(self._kept) < self._size:
            self._kept.append(example)
        elif (place := int(torch.randint(self._seen, (), generator=self._generator))) < self._size:
            self._kept[place] = example

    def sample(self) -> list[Any]:
        """The kept examples in random order, so that every beginning is a uniform sample."""
        return [self._kept[index] for index in torch.randperm(len(self._kept), generator=self._generator).tolist()]


def _sampled(
    stream: Iterable[Any], number: int, generator: torch.Generator, label_of: Callable[[Any], int] | None
) -> list[Any]:
    reservoirs: dict[int, Reservoir] = {}
    for example in stream:
        label = label_of(example) if label_of else 0
        reservoirs.setdefault(label, Reservoir(number, generator)).offer(example)
    order = torch.randperm(len(reservoirs), generator=generator).tolist()
    samples = [reservoir.sample() for reservoir in reservoirs.values()]
    return _in_turn([samples[index] for index in order], number)
