"""A run that is stopped anywhere and resumed ends bit for bit where the unbroken run ends.

Dropout is on, the loader is a plain one that shuffles with the global generator, and nothing is seeded in between.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from exact import BASE, Case, assert_resumes, assert_same, run
from torch.optim import lr_scheduler as sch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from lr_dist.schedulers import SUPPORTED_SCHEDULERS

WINDOW = {"accumulate_grad_batches": 4}  # of 6 batches: steps after 4 and 6, 10 and 12


def each_step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step"}


def sequential(optimizer: Any) -> Any:
    parts = [sch.LinearLR(optimizer, 0.1, total_iters=2), sch.CosineAnnealingLR(optimizer, 4, eta_min=BASE / 9)]
    return sch.SequentialLR(optimizer, parts, milestones=[2])


def plateau(optimizer: Any, monitor: str = "train_loss", interval: str = "epoch", **options: Any) -> dict[str, Any]:
    """Reduces at nearly every look: a step too many or too few shows."""
    scheduler = sch.ReduceLROnPlateau(optimizer, factor=0.3, patience=0, threshold=0.9)
    return {"scheduler": scheduler, "interval": interval, "monitor": monitor, **options}


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: each_step(sch.LambdaLR(o, lambda step: 1 / (1 + step))),
    "MultiplicativeLR": lambda o: each_step(sch.MultiplicativeLR(o, lambda step: 0.8)),
    "StepLR": lambda o: each_step(sch.StepLR(o, 2, 0.5)),
    "MultiStepLR": lambda o: each_step(sch.MultiStepLR(o, [1, 3], 0.5)),
    "ConstantLR": lambda o: each_step(sch.ConstantLR(o, 0.5, 2)),
    "LinearLR": lambda o: each_step(sch.LinearLR(o, 0.2, total_iters=3)),
    "ExponentialLR": lambda o: each_step(sch.ExponentialLR(o, 0.7)),
    "PolynomialLR": lambda o: each_step(sch.PolynomialLR(o, 6, 2.0)),
    "CosineAnnealingLR": lambda o: each_step(sch.CosineAnnealingLR(o, 6, eta_min=BASE / 9)),
    "CosineAnnealingWarmRestarts": lambda o: each_step(sch.CosineAnnealingWarmRestarts(o, 2, 2, eta_min=BASE / 9)),
    "CyclicLR": lambda o: each_step(sch.CyclicLR(o, BASE / 10, BASE, step_size_up=2, cycle_momentum=True)),
    "OneCycleLR": lambda o: each_step(sch.OneCycleLR(o, BASE, total_steps=5)),
    "ReduceLROnPlateau": plateau,
    "SequentialLR": lambda o: each_step(sequential(o)),
    "ChainedScheduler": lambda o: each_step(sch.ChainedScheduler([sch.ConstantLR(o, 0.5, 2), sch.StepLR(o, 1)], o)),
    "every epoch": lambda o: sch.StepLR(o, 1, 0.5),
    "transformers, linear": lambda o: each_step(get_linear_schedule_with_warmup(o, 2, 4)),
    "transformers, cosine": lambda o: each_step(get_cosine_schedule_with_warmup(o, 2, 4)),
}


def test_every_supported_scheduler_is_among_these() -> None:
    assert {kind.__name__ for kind in SUPPORTED_SCHEDULERS if "Layerwise" not in kind.__name__} <= set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_resumes_exactly_with_every_scheduler(name: str, tmp_path: Path) -> None:
    case = Case(SCHEDULES[name], options=WINDOW)
    # A step within the epoch, the middle of a window, the last batch of the epoch, and the epoch's end.
    assert assert_resumes(case, tmp_path, "on_train_batch_end", at={4, 5, 6, 9}) == 4
    assert assert_resumes(case, tmp_path, "on_train_epoch_end", at={6}) == 1


EVERY_HOOK = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
)


@pytest.mark.parametrize("hook", EVERY_HOOK)
def test_a_run_resumes_exactly_from_every_hook(hook: str, tmp_path: Path) -> None:
    # Validation within windows, between them, and twice an epoch.
    case = Case(validation=partial(tiny.batches, 2), options={**WINDOW, "val_check_interval": 3})
    assert assert_resumes(case, tmp_path, hook, at={0, 1, 3, 4, 5, 6, 9, 12}) >= 2


def test_the_callback_changes_no_random_number_of_a_run(tmp_path: Path) -> None:
    case = Case(validation=partial(tiny.batches, 2), options=WINDOW)
    with_callback, without = run(case), run(case, layerwise=False)
    assert with_callback.module.seen == without.module.seen
    assert with_callback.random == without.random


def test_a_run_that_was_resumed_twice_ends_where_the_unbroken_run_ends(tmp_path: Path) -> None:
    from exact import Saver

    case = Case(sequential, validation=partial(tiny.batches, 2), options=WINDOW)
    saver = Saver(tmp_path / "first", "on_train_batch_end")
    unbroken = run(case, saver)
    again = Saver(tmp_path / "second", "on_train_batch_end")
    run(case, again, seed=2, ckpt=saver.paths["on_train_batch_end", 3])
    assert_same(run(case, seed=3, ckpt=again.paths["on_train_batch_end", 5]), unbroken)
    assert_same(run(case, seed=4, ckpt=again.paths["on_train_batch_end", 10]), unbroken)


class DrawsInHooks(tiny.Unseeded):
    """Seeds every epoch, and draws when the training starts: between the loader's iterator and its first batch."""

    def on_train_start(self) -> None:
        torch.rand(3)

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(100 + self.current_epoch)


def test_a_module_that_draws_and_seeds_in_its_hooks_resumes_exactly(tmp_path: Path) -> None:
    case = Case(module=DrawsInHooks)
    assert assert_resumes(case, tmp_path, "on_train_batch_end", at={2, 8}) == 2
    assert assert_resumes(case, tmp_path, "on_train_epoch_end", at={6}) == 1
