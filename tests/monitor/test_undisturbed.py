"""A fit that is watched is, bit for bit, the fit that is not."""

from __future__ import annotations

import random
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import tiny
import torch
from exact import Case, assert_same, run
from monitor.watched import monitor, old_loader
from torch.utils.data import DataLoader, TensorDataset


class Augmented(TensorDataset):
    """Draws from every generator for every row."""

    def __getitem__(self, index: int) -> Any:
        tokens, label = super().__getitem__(index)
        return (tokens + random.randrange(2) + int(np.random.randint(2)) + int(torch.randint(2, ()))) % 40, label


def augmented(**options: Any) -> DataLoader:
    return DataLoader(Augmented(*old_loader().dataset.tensors), batch_size=4, shuffle=True, **options)


@pytest.mark.parametrize("every", [{"every_n_steps": 1}, {"every_n_epochs": 1}], ids=["steps", "epochs"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_watched_fit_ends_bit_for_bit_where_the_other_does(workers: int, every: dict[str, int]) -> None:
    # Dropout, a shuffled loader, validation; numbers drawn from Python, numpy and torch in every step.
    case = Case(
        data=lambda: tiny.shuffled(4, num_workers=workers),
        validation=lambda: tiny.batches(2, seed=9),
        options={"max_epochs": 2, "accumulate_grad_batches": 2},
    )
    watching = monitor({"first": old_loader(shuffle=True), "second": augmented(num_workers=workers)}, **every)
    watched, plain = run(case, watching, layerwise=False), run(case, layerwise=False)
    extra = [name for name in watched.metrics if name.startswith(("old/", "forgotten/"))]
    assert sorted(extra) == ["forgotten/first", "forgotten/second", "old/first", "old/second"]
    for name in extra:
        del watched.trainer.callback_metrics[name]
    assert len(watching.history) == (5 if "every_n_steps" in every else 3)
    assert_same(watched, plain)


def test_a_generator_of_the_old_loader_goes_on_where_it_was() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    watching = monitor({"first": old_loader(shuffle=True, generator=generator)})
    tiny.fit(tiny.Unseeded(lambda m: torch.optim.SGD(m.parameters(), lr=0.1)), watching)
    assert torch.equal(generator.get_state(), before)
    # An augmented task sees the same augmentations at every measurement: with still weights, its score does not move.
    still = monitor({"first": augmented()}, every_n_steps=1)
    tiny.fit(tiny.Unseeded(lambda m: torch.optim.SGD(m.parameters(), lr=0.0)), still)
    assert len({row.old["first"] for row in still.history}) == 1


def test_every_submodule_stays_in_its_mode() -> None:
    modes: list[list[bool]] = []

    class PartlyFrozen(tiny.Unseeded):
        def on_train_start(self) -> None:
            self.model.bert.encoder.layer[0].eval()  # a user's own choice, of one layer

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            modes.append([part.training for part in self.modules()])
            assert torch.is_grad_enabled()

    module = PartlyFrozen(lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    tiny.fit(module, monitor(every_n_steps=1))
    assert len(modes) == 8
    assert all(each == modes[0] for each in modes)
    assert False in modes[0]
    assert True in modes[0]


def test_the_training_loader_is_not_taken_for_an_old_task() -> None:
    from lr_dist.errors import ConfigurationError

    data = tiny.shuffled(4)
    with pytest.raises(ConfigurationError, match="'first' is the training's own"):
        tiny.fit(tiny.Unseeded(lambda m: torch.optim.SGD(m.parameters(), lr=0.1)), monitor({"first": data}), data=data)


def test_scoring_runs_in_the_precision_of_the_trainer() -> None:
    kinds: list[torch.dtype] = []

    def score(module: L.LightningModule, batch: Any) -> Any:
        logits = module.model(input_ids=batch[0]).logits
        kinds.append(logits.dtype)
        return logits, batch[1]

    module = tiny.Unseeded(lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    tiny.fit(module, monitor(score=score), data=tiny.batches(2), precision="bf16-mixed")
    assert set(kinds) == {torch.bfloat16}
