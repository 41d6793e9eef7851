"""The rehearsal buffer: what it keeps, of which data, and how it gives it back."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset as HFDataset
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset
from transformers import DataCollatorWithFlattening, DataCollatorWithPadding, PreTrainedTokenizerFast

from lr_dist.errors import ConfigurationError, UnfilledBufferWarning
from lr_dist.methods.buffer import Memory, RehearsalBuffer, Reservoir, shares
from lr_dist.methods.draws import Draws
from lr_dist.methods.examples import leaves
from lr_dist.methods.task_functions import TaskFunctions
from lr_dist.tasks.batches import Collator
from lr_dist.tasks.token_cache import FlatRows
from lr_dist.tasks.tokens import TokenSplit

TARGETS = TaskFunctions().targets_of


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int, classes: int = 2, start: int = 0) -> DataLoader:
    """Examples that are their own number, with the class number % classes."""
    numbers = torch.arange(start, start + count)
    return DataLoader(TensorDataset(numbers[:, None].float(), numbers % classes), batch_size=4)


def held(buffer: RehearsalBuffer, memory: int = 0) -> list[int]:
    """The numbers of a memory's examples in their order."""
    start = sum(len(each) for each in buffer.memories[:memory])
    indices = torch.arange(start, start + len(buffer.memories[memory]))
    found: dict[int, int] = {}
    for portion in buffer.portions(indices, indices):
        found.update(zip(portion.positions.tolist(), portion.batch[0][:, 0].int().tolist(), strict=True))
    return [found[index] for index in sorted(found)]


class Stream(IterableDataset):
    def __init__(self, rows: list) -> None:
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


# How many of which task ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "available", "expected"),
    [
        (10, [99], [10]),
        (10, [10, 99], [5, 5]),
        (10, [5, 5, 99], [4, 3, 3]),
        (10, [2, 99], [2, 8]),  # what a small task leaves goes to the others
        (10, [1, 99, 3, 99], [1, 3, 3, 3]),
        (10, [2, 3], [2, 3]),
        (2, [9, 9, 9], [1, 1, 0]),
    ],
)
def test_places_are_shared_equally(size, available, expected):
    assert shares(size, available) == expected


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_earlier_tasks_give_up_a_part_of_what_they_hold(policy):
    buffer = RehearsalBuffer(12, policy)
    buffer.add("a", None, numbered(50), seeded(0), TARGETS)
    first = held(buffer)
    assert len(set(first)) == 12
    buffer.add("b", "head-b", numbered(50, start=100), seeded(1), TARGETS)
    buffer.add("c", None, numbered(50, start=200), seeded(2), TARGETS)
    assert [(each.task, each.head, len(each)) for each in buffer.memories] == [
        ("a", None, 4),
        ("b", "head-b", 4),
        ("c", None, 4),
    ]
    assert held(buffer) == first[:4]
    assert all(100 <= number < 150 for number in held(buffer, 1))
    if policy == "balanced":
        assert all(Counter(number % 2 for number in held(buffer, index)) == {0: 2, 1: 2} for index in range(3))


def test_a_task_with_less_data_than_its_share_is_kept_whole_with_a_warning():
    buffer = RehearsalBuffer(10)
    buffer.add("a", None, numbered(20), seeded(), TARGETS)
    with pytest.warns(UnfilledBufferWarning, match="room for 5 examples of b, and its data holds 3"):
        buffer.add("b", None, numbered(3, start=100), seeded(), TARGETS)
    assert sorted(held(buffer, 1)) == [100, 101, 102]
    assert len(held(buffer, 0)) == 7


# Which examples -----------------------------------------------------------------------------------------------


def uniform(counts: Counter, of: int, draws: int) -> bool:
    """Whether every one of `of` was kept about equally often: chi-squared, with 1 in 100,000 wrong refusals."""
    expected = sum(counts.values()) / of
    # Of a sample without replacement, counts vary by (1 - share) less than independent ones.
    share = expected / draws
    statistic = sum((counts[index] - expected) ** 2 for index in range(of)) / (expected * (1 - share))
    freedom = of - 1
    return abs(statistic - freedom) < 4.3 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("kind", ["stream", "indexed"])
@pytest.mark.parametrize("kept", [8, 3])
def test_every_example_is_kept_with_the_same_probability(kind, kept):
    """Also of the first 3 of 8, to which the sample is cut when other tasks come."""
    counts, draws = Counter(), 2000
    for seed in range(draws):
        if kind == "stream":
            reservoir = Reservoir(8, seeded(seed))
            for number in range(40):
                reservoir.offer(number)
            counts.update(reservoir.sample()[:kept])
        else:
            buffer = RehearsalBuffer(8)
            memory = buffer.choose(numbered(40), 8, seeded(seed), TARGETS)
            counts.update(memory.blocks[0].batch[0][memory.order[:kept, 1], 0].int().tolist())
    assert uniform(counts, 40, draws)
    skewed = Counter({index: count + (60 if index < 20 else -60) for index, count in counts.items()})
    assert not uniform(skewed, 40, draws)


@pytest.mark.parametrize("kind", ["indexed", "stream", "batches"])
def test_a_balanced_buffer_holds_as_many_of_each_class(kind):
    # Classes 0, 1, 2 with 60, 30 and 2 examples.
    numbers = torch.arange(92)
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 2)
    rows = list(zip(numbers[:, None].float(), labels, strict=True))
    loader = {
        "indexed": DataLoader(TensorDataset(numbers[:, None].float(), labels), batch_size=4),
        "stream": DataLoader(Stream(rows), batch_size=4),
        "batches": list(DataLoader(Stream(rows), batch_size=5)),
    }[kind]
    buffer = RehearsalBuffer(20, "balanced")
    buffer.add("a", None, loader, seeded(), TARGETS)
    kept = held(buffer)
    assert len(set(kept)) == 20
    assert Counter(labels[kept].tolist()) == {0: 9, 1: 9, 2: 2}
    assert Counter(labels[kept[:6]].tolist()) == {0: 2, 1: 2, 2: 2}
    assert Counter(labels[kept[:15]].tolist()) in ({0: 7, 1: 6, 2: 2}, {0: 6, 1: 7, 2: 2})


def test_of_a_subset_sampler_only_its_examples_are_kept():
    dataset = numbered(50).dataset
    loader = DataLoader(dataset, batch_size=4, sampler=SubsetRandomSampler([3, 5, 7, 9]))
    buffer = RehearsalBuffer(4)
    buffer.add("a", None, loader, seeded(), TARGETS)
    assert sorted(held(buffer)) == [3, 5, 7, 9]


def test_the_choice_is_the_generators():
    first, again, other = (RehearsalBuffer(10) for _ in range(3))
    for buffer, seed in ((first, 1), (again, 1), (other, 2)):
        buffer.add("a", None, numbered(50), seeded(seed), TARGETS)
    assert held(first) == held(again) != held(other)


# Batches of any form ------------------------------------------------------------------------------------------


def token_split(label_dtype=torch.int64) -> DataLoader:
    lengths = np.array([5, 2, 9, 3, 7, 2])
    flat = np.arange(1, lengths.sum() + 1, dtype=np.int32)
    rows = FlatRows({"input_ids": flat}, np.concatenate([[0], np.cumsum(lengths)]))
    split = TokenSplit(rows, torch.tensor([0, 1, 0, 1, 0, 1], dtype=label_dtype))
    return DataLoader(split, batch_size=2, collate_fn=Collator(pad_token_id=0))


def tokenizer(side: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", padding_side=side)


def hugging_face(side: str) -> DataLoader:
    ids = [[2, 5, 3], [2, 3], [2, 6, 7, 8, 3], [2, 9, 3], [2, 4, 4, 3], [2, 8, 3]]
    data = HFDataset.from_dict({"input_ids": ids, "label": [0, 1, 1, 0, 1, 0]})
    return DataLoader(data, batch_size=2, collate_fn=DataCollatorWithPadding(tokenizer(side)))


def nested() -> DataLoader:
    rows = [
        {"x": (torch.full((3, 2), float(i)), torch.tensor(i)), "text": f"text {i}", "labels": torch.tensor([i / 2])}
        for i in range(6)
    ]
    return DataLoader(rows, batch_size=2)


@pytest.mark.parametrize(
    "loader",
    [token_split(), token_split(torch.float32), hugging_face("right"), hugging_face("left"), nested(), numbered(6)],
    ids=["tokens", "regression", "transformers", "padded on the left", "nested", "pairs"],
)
def test_stored_examples_come_back_as_the_loader_makes_them(loader, tmp_path):
    """Of the same types, and padded to the longest of them, as the collate function itself would have."""
    dataset = loader.dataset
    with_data = RehearsalBuffer(6)
    memory = with_data.choose(loader, 6, seeded(3), TARGETS)
    order = torch.randperm(6, generator=seeded(3)).tolist()  # the buffer's own choice
    with_data.memories = [memory]
    torch.save(with_data.state(), tmp_path / "state")
    restored = RehearsalBuffer(6)
    restored.load_state(torch.load(tmp_path / "state", weights_only=True))
    for indices in ([0], [1], [2, 0], [3, 4, 5], [5, 4, 3, 2, 1, 0]):
        expected = loader.collate_fn([dataset[order[index]] for index in indices])
        for buffer in (with_data, restored, cut(with_data, 6)):
            (portion,) = buffer.portions(torch.tensor(indices), torch.arange(len(indices)))
            same(portion.batch, expected)


def cut(buffer: RehearsalBuffer, number: int) -> RehearsalBuffer:
    """The same buffer, through `Memory.first` of a longer memory."""
    (memory,) = buffer.memories
    small = RehearsalBuffer(number)
    twice = Memory("", None, memory.blocks * 2, torch.cat([memory.order, memory.order + torch.tensor([1, 0])]))
    small.memories = [twice.first(number)]
    return small


def same(left, right) -> None:
    assert type(left) is type(right) or isinstance(left, dict)
    if isinstance(left, dict):
        assert set(left) == set(right)
    right = {key: right[key] for key in left} if isinstance(left, dict) else right
    for a, b in zip(leaves(left), leaves(right), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_batches_of_several_forms_are_kept_in_one_buffer():
    """Of a loader that gives batches only, padding stays as it is; a portion holds examples of one form."""
    loader = [{"input_ids": torch.full((3, width), width), "labels": torch.arange(3)} for width in (2, 5, 2)]
    buffer = RehearsalBuffer(9)
    buffer.add("a", None, loader, seeded(), TARGETS)
    portions = buffer.portions(torch.arange(9), torch.arange(9))
    assert sorted(tuple(portion.batch["input_ids"].shape) for portion in portions) == [(3, 5), (6, 2)]
    assert sorted(torch.cat([portion.positions for portion in portions]).tolist()) == list(range(9))
    assert all((portion.batch["input_ids"] == portion.batch["input_ids"].shape[1]).all() for portion in portions)


def test_recorded_outputs_stay_with_their_examples():
    buffer = RehearsalBuffer(8)
    memory = buffer.add("a", None, numbered(40), seeded(), TARGETS)
    buffer.record(memory, lambda batch: batch[0] * 10)
    buffer.add("b", None, numbered(40, start=100), seeded(), TARGETS)
    for portion in buffer.portions(torch.tensor([3, 0, 2]), torch.arange(3)):
        assert torch.equal(portion.outputs, portion.batch[0] * 10)


@pytest.mark.parametrize(
    ("collate", "says"),
    [
        (DataCollatorWithFlattening(), "makes a tensor or list of length 1 of 3 examples"),
        (lambda rows: {"rows": object()}, "hold a object, which cannot be kept"),
        (lambda rows: [np.zeros(len(rows))], "hold a ndarray"),
    ],
)
def test_batches_that_cannot_be_taken_apart_are_refused(collate, says):
    rows = [{"input_ids": [1, 2, 3], "labels": [0, 1, 0]}] * 5
    with pytest.raises(ConfigurationError, match=says):
        RehearsalBuffer(3).add("a", None, DataLoader(rows, collate_fn=collate), seeded(), TARGETS)


@pytest.mark.parametrize("targets", [torch.rand(6), torch.zeros(6, 2, dtype=torch.int64)])
def test_balanced_without_classes_is_refused(targets):
    loader = DataLoader(TensorDataset(torch.rand(6, 1), targets))
    with pytest.raises(ConfigurationError, match="balanced needs one class an example"):
        RehearsalBuffer(3, "balanced").add("a", None, loader, seeded(), TARGETS)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "a", float("nan")])
def test_an_invalid_size_is_refused(size):
    with pytest.raises(ConfigurationError, match="size must be a whole number of at least 1"):
        RehearsalBuffer(size)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ConfigurationError, match="one of reservoir, balanced, not 'newest'"):
        RehearsalBuffer(5, "newest")


# Which of them at which step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.05, 0.29, 1.0, 1 / 3, 2.5])
def test_as_many_are_drawn_as_the_ratio_says(ratio):
    draws = Draws(seeded(), 1)
    due = [draws.due(ratio, 32) for _ in range(100)]
    assert sum(due) == int(ratio * 3200 + 1e-9)
    assert set(due) <= {int(ratio * 32), int(ratio * 32) + 1}


def test_examples_are_gone_through_in_random_order_each_as_often():
    draws = Draws(seeded(), 1)
    taken = torch.cat([draws.take(3, 10) for _ in range(20)]).tolist()
    assert Counter(taken) == dict.fromkeys(range(10), 6)
    assert taken[:10] != taken[10:20]
    assert sorted(Draws(seeded(), 1).take(25, 10).tolist()) == sorted([*range(10), *range(10), *taken[20:25]])


def test_restored_draws_go_on_where_they_were(tmp_path):
    draws = Draws(seeded(5), 2)
    for _ in range(7):
        draws.take(draws.due(0.3, 8), 9)
    torch.save(draws.state(), tmp_path / "state")
    restored = Draws.from_state(torch.load(tmp_path / "state", weights_only=True))
    rest = [draws.take(draws.due(0.3, 8), 9).tolist() for _ in range(9)]
    assert [restored.take(restored.due(0.3, 8), 9).tolist() for _ in range(9)] == rest
    assert restored.stage == 2
