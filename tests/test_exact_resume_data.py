"""A resumed run goes on with the batches that the unbroken run would have read next, whatever they come from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from exact import Case, assert_resumes
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler, random_split

EXAMPLES = tiny.batches(6).dataset
MID_EPOCH = {2, 5, 9}


class Augmented(Dataset):
    """Draws from all three global generators for each example, in the main process or in a worker."""

    def __len__(self) -> int:
        return len(EXAMPLES)

    def __getitem__(self, index: int) -> Any:
        tokens, label = EXAMPLES[index]
        noise = [torch.randint(40, ()), torch.tensor(np.random.randint(40))]
        return torch.cat([tokens[:5], torch.stack(noise)]), label


class Stream(IterableDataset):
    """Examples one by one, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter([EXAMPLES[i] for i in range(len(EXAMPLES))])


class Lasting:
    """A loader that keeps its position and goes on with one generator from epoch to epoch."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.order: list[int] = []
        self.position = 0

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[Any]:
        if self.position in (0, 6):
            self.order, self.position = torch.randperm(24, generator=self.generator).tolist(), 0
        while self.position < 6:
            self.position += 1
            chosen = [EXAMPLES[i] for i in self.order[4 * self.position - 4 : 4 * self.position]]
            yield torch.stack([tokens for tokens, _ in chosen]), torch.stack([label for _, label in chosen])

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "order": self.order, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.order, self.position = state["order"], state["position"]


def sampled(sampler: Any) -> DataLoader:
    return DataLoader(EXAMPLES, batch_size=4, sampler=sampler)


LOADERS = {
    "a generator of its own": lambda: tiny.shuffled(generator=torch.Generator().manual_seed(5)),
    "weighted": lambda: sampled(WeightedRandomSampler([1.0 + i for i in range(24)], 24)),
    "with replacement": lambda: sampled(RandomSampler(EXAMPLES, replacement=True, num_samples=24)),
    "augmented": lambda: DataLoader(Augmented(), batch_size=4, shuffle=True),
    "stream": lambda: DataLoader(Stream(), batch_size=4),
    "keeps its position": Lasting,
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_run_resumes_exactly_with_every_loader(name: str, tmp_path: Path) -> None:
    assert assert_resumes(Case(data=LOADERS[name]), tmp_path, "on_train_batch_end", at=MID_EPOCH) == 3
    assert assert_resumes(Case(data=LOADERS[name]), tmp_path, "on_train_epoch_end", at={6}) == 1


@pytest.mark.parametrize(
    "options",
    [{}, {"generator": torch.Generator()}, {"persistent_workers": True}],
    ids=["fresh", "generator", "persistent"],
)
def test_a_run_resumes_exactly_with_workers(options: dict[str, Any], tmp_path: Path) -> None:
    # Workers that live on keep random states of their own from epoch to epoch, so they get nothing to draw here.
    examples = EXAMPLES if "persistent_workers" in options else Augmented()

    def loader() -> DataLoader:
        if "generator" in options:
            options["generator"].manual_seed(5)
        return DataLoader(examples, batch_size=4, shuffle=True, num_workers=2, **options)

    assert assert_resumes(Case(data=loader), tmp_path, "on_train_batch_end", at={2, 9}) == 2


class TwoLoaders(tiny.Unseeded):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        one, other = batch["one"] or batch["other"], batch["other"] or batch["one"]
        return super().training_step([torch.cat([one[i], other[i]]) for i in range(2)], batch_idx)


@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size", "max_size"])
def test_a_run_resumes_exactly_with_two_loaders(mode: Any, tmp_path: Path) -> None:
    def both() -> CombinedLoader:
        return CombinedLoader({"one": tiny.shuffled(6), "other": tiny.shuffled(5)}, mode)

    case = Case(module=TwoLoaders, data=both)
    assert assert_resumes(case, tmp_path, "on_train_batch_end", at={3, 5, 8}) == 3


def test_a_loader_that_keeps_its_position_beside_one_that_does_not(tmp_path: Path) -> None:
    def both() -> dict[str, Any]:
        return {"one": tiny.shuffled(6), "other": tiny.ShuffledBatches(6)}

    assert assert_resumes(Case(module=TwoLoaders, data=both), tmp_path, "on_train_batch_end", at={3, 8}) == 2


@pytest.mark.parametrize("options", [{"limit_train_batches": 4}, {"overfit_batches": 3}], ids=str)
def test_a_run_on_a_part_of_the_data_resumes_exactly(options: dict[str, Any], tmp_path: Path) -> None:
    case = Case(options=options)
    assert assert_resumes(case, tmp_path, "on_train_batch_end", at={2, 5}) == 2
    assert assert_resumes(case, tmp_path, "on_train_epoch_end") == 2


class OwnData(tiny.Unseeded):
    """Another random part of the examples each time the loader is asked for."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(random_split(EXAMPLES, [20, 4])[0], batch_size=4, shuffle=True)


@pytest.mark.parametrize("every", [0, 1, 2])
def test_a_loader_that_is_drawn_at_random_is_drawn_the_same(every: int, tmp_path: Path) -> None:
    case = Case(
        module=OwnData, data=lambda: None, options={"reload_dataloaders_every_n_epochs": every, "max_epochs": 4}
    )
    assert assert_resumes(case, tmp_path, "on_train_batch_end", at={2, 8, 12}) == 3
    assert assert_resumes(case, tmp_path, "on_train_epoch_end", at={5, 15}) == 2


class TakesBatchesItself(tiny.Unseeded):
    def training_step(self, dataloader_iter: Any) -> torch.Tensor:  # type: ignore[override]
        batch, batch_idx, _ = next(dataloader_iter)
        loss = self.model(input_ids=batch[0], labels=batch[1]).loss
        self.seen.append((self.trainer.current_epoch * 1000 + batch_idx, int(batch[0].sum()), 0.0, 0.0))
        return loss


def test_a_step_that_takes_batches_itself_resumes_exactly(tmp_path: Path) -> None:
    case = Case(module=TakesBatchesItself)
    assert assert_resumes(case, tmp_path, "on_train_batch_end", at={2, 8}) == 2


def test_the_order_of_the_data_takes_part_in_these_runs(tmp_path: Path) -> None:
    from exact import run

    one, other = run(Case()), run(Case(data=partial(tiny.batches, 6)))
    assert [tokens for _, tokens, *_ in one.module.seen] != [tokens for _, tokens, *_ in other.module.seen]
    epochs = [tokens for _, tokens, *_ in one.module.seen]
    assert epochs[:6] != epochs[6:]
    assert sorted(epochs[:6]) != sorted(epochs[6:])
