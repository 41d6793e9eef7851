"""Run, save wherever a hook is called, resume, and compare everything with the run that was not stopped."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import tiny
import torch

from lr_dist import LayerwiseLR, LRDistribution

BASE = 2e-3
DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)


@dataclass
class Case:
    """A run: what makes its module and its data anew, and the Trainer's options.

    Attributes:
        schedule: makes the scheduler, or Lightning's dictionary around one, of an optimizer; None for no schedule.
        module: makes the module of a function that makes its optimizer.
        data, validation: make the loaders.
        options: of the Trainer.
        callbacks: make the Trainer's callbacks beside LayerwiseLR.
    """

    schedule: Callable[[Any], Any] | None = None
    module: Callable[[Any], Any] = tiny.Unseeded
    data: Callable[[], Any] = tiny.shuffled
    validation: Callable[[], Any] = lambda: None
    options: dict[str, Any] | None = None
    callbacks: Callable[[], Iterable[Any]] = tuple

    def configure(self, own: Any) -> Any:
        optimizer = torch.optim.AdamW(own.parameters(), lr=BASE)
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer)}


@dataclass
class Ended:
    """How a run ended: all of what is compared, and the Trainer."""

    trainer: Any
    module: Any
    rates: dict[str, list[float]]
    random: tuple[float, float, float]

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.trainer.callback_metrics)

    @property
    def schedulers(self) -> list[Any]:
        return [config.scheduler.state_dict() for config in self.trainer.lr_scheduler_configs]


def run(case: Case, *callbacks: Any, layerwise: bool = True, seed: int = 1, ckpt: Any = None, **options: Any) -> Ended:
    """Train from `seed`, or from the checkpoint `ckpt`."""
    module, rates = case.module(case.configure), tiny.Recorder()
    own = [LayerwiseLR(DISTRIBUTION, verbose=False)] if layerwise else []
    loading = tiny.loaded_with(options.pop("weights_only", None))
    trainer = tiny.trainer(
        *callbacks, *own, *case.callbacks(), rates, **{"max_epochs": 2, **(case.options or {}), **options}
    )
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        trainer.fit(module, case.data(), case.validation(), ckpt_path=ckpt, **loading)
    return Ended(trainer, module, rates.rates, (random.random(), np.random.rand(), torch.rand(()).item()))


class Saver(L.Callback):
    """Saves at every call of the given hooks; `paths` are by hook and by how many batches the run has begun."""

    def __init__(self, folder: Path, *hooks: str) -> None:
        self.paths: dict[tuple[str, int], Path] = {}
        for hook in hooks:
            setattr(self, hook, self._saving(folder, hook))

    def _saving(self, folder: Path, hook: str) -> Callable[..., None]:
        def save(trainer: L.Trainer, *_: Any) -> None:
            if not trainer.sanity_checking:
                batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
                self.paths[hook, batches] = folder / f"{hook}-{batches}.ckpt"
                trainer.save_checkpoint(self.paths[hook, batches])

        return save


def assert_same(resumed: Ended, unbroken: Ended) -> None:
    """Everything at the end, and each batch and rate on the way there since the checkpoint."""
    steps = len(resumed.module.seen)
    assert resumed.module.seen == unbroken.module.seen[len(unbroken.module.seen) - steps :]
    assert resumed.trainer.global_step == unbroken.trainer.global_step
    assert resumed.trainer.current_epoch == unbroken.trainer.current_epoch
    for name, rates in resumed.rates.items():
        assert rates == unbroken.rates[name][len(unbroken.rates[name]) - len(rates) :], name
    assert_equal(resumed.module.state_dict(), unbroken.module.state_dict(), "weights")
    for one, other in zip(resumed.trainer.optimizers, unbroken.trainer.optimizers, strict=True):
        assert_equal(one.state_dict(), other.state_dict(), "optimizer")
    assert_equal(resumed.schedulers, unbroken.schedulers, "schedulers")
    assert_equal(resumed.metrics, unbroken.metrics, "metrics")
    assert resumed.random == unbroken.random


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    """The same to the last bit, through dictionaries and lists."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert list(left) == list(right), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    else:
        assert left == right, where


def assert_resumes(case: Case, folder: Path, *hooks: str, at: Iterable[int] | None = None) -> int:
    """Save at every one of `hooks` (and after the batches in `at` only), resume from each, and compare.

    Returns:
        how many checkpoints were resumed.
    """
    saver = Saver(folder, *hooks)
    unbroken = run(case, saver)
    chosen = [path for (_, batches), path in saver.paths.items() if at is None or batches in at]
    for path in chosen:
        # Another seed: what is equal at the end comes from the checkpoint.
        assert_same(run(case, seed=2, ckpt=path, weights_only=True), unbroken)
    return len(chosen)
