"""A run that is stopped and resumed ends bit for bit where the unbroken run ends, or is refused before a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import lr_scheduler as sch
from transformers import get_linear_schedule_with_warmup

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist.errors import ResumeMismatchError

BASE = 2e-3
BATCHES = 6
EPOCHS = 2
DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0")
# No improvement after the first epoch: a plateau with patience 0 reduces after the second.
SCORES = [0.5, 0.6, 0.7]


def step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step"}


def warm_up_then_cosine(optimizer: Any) -> Any:
    parts = [sch.LinearLR(optimizer, 0.1, total_iters=3), sch.CosineAnnealingLR(optimizer, 9, eta_min=BASE / 9)]
    return sch.SequentialLR(optimizer, parts, milestones=[3])


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "none": lambda o: None,
    "warm_up_then_linear": lambda o: step(get_linear_schedule_with_warmup(o, 3, 12)),
    "warm_up_then_cosine": lambda o: step(warm_up_then_cosine(o)),
    "restarts_with_floor": lambda o: step(sch.CosineAnnealingWarmRestarts(o, 3, 2, eta_min=BASE / 9)),
    "one_cycle": lambda o: step(sch.OneCycleLR(o, BASE, total_steps=13)),
    "cyclic": lambda o: step(sch.CyclicLR(o, BASE / 10, BASE, step_size_up=3)),
    "multistep": lambda o: step(sch.MultiStepLR(o, [2, 5, 9], 0.5)),
    "chained": lambda o: step(sch.ChainedScheduler([sch.ConstantLR(o, 0.5, 5), sch.ExponentialLR(o, 0.9)], o)),
}


def plateau(optimizer: Any) -> dict[str, Any]:
    scheduler = sch.ReduceLROnPlateau(optimizer, factor=0.3, patience=0, min_lr=BASE / 2)
    return {"scheduler": scheduler, "interval": "epoch", "monitor": "score"}


def module(schedule: Callable[[Any], Any] = SCHEDULES["warm_up_then_cosine"]) -> tiny.Classifier:
    def configure(own: Any) -> Any:
        decayed = [p for p in own.parameters() if p.ndim > 1]
        rest = [p for p in own.parameters() if p.ndim < 2]
        halves = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(halves, lr=BASE)
        scheduler = schedule(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": scheduler} if scheduler else optimizer

    return tiny.Classifier(configure, dropout=0.3, scores=SCORES)


def run(own: tiny.Classifier, *callbacks: Any, epochs: int = EPOCHS, **options: Any) -> Any:
    return tiny.fit(own, *callbacks, data=tiny.ShuffledBatches(BATCHES), max_epochs=epochs, **options)


def checkpoint_after(
    steps: int, folder: Path, own: tiny.Classifier, *callbacks: Any, epochs: int = EPOCHS, **options: Any
) -> Path:
    """Train for `steps` steps, stop, and return the checkpoint."""
    saver = ModelCheckpoint(folder, filename="stopped", every_n_train_steps=steps, save_top_k=-1)
    run(own, saver, *callbacks, epochs=epochs, max_steps=steps, enable_checkpointing=True, **options)
    return folder / "stopped.ckpt"


def layerwise(distribution: Any = DISTRIBUTION, **options: Any) -> LayerwiseLR:
    return LayerwiseLR(distribution, verbose=False, **options)


def assert_equal(left: Any, right: Any, where: str = "") -> None:
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


def assert_resumes_exactly(
    schedule: Any, steps: int, path: Path, *, epochs: int = EPOCHS, weights_only: bool | None = None
) -> None:
    """Compare the run resumed from the checkpoint `path`, written after `steps` steps, with the unbroken one."""
    whole, whole_rates = module(schedule), tiny.Recorder()
    unbroken = run(whole, layerwise(), whole_rates, epochs=epochs)
    rest, rest_rates = module(schedule), tiny.Recorder()
    resumed = run(rest, layerwise(), rest_rates, epochs=epochs, ckpt=path, weights_only=weights_only)

    assert resumed.global_step == unbroken.global_step == BATCHES * epochs
    assert_equal({n: rates[steps:] for n, rates in whole_rates.rates.items()}, rest_rates.rates, "rates")
    assert_equal(whole.state_dict(), rest.state_dict(), "weights")
    assert_equal(unbroken.optimizers[0].state_dict(), resumed.optimizers[0].state_dict(), "optimizer")
    for one, other in zip(unbroken.lr_scheduler_configs, resumed.lr_scheduler_configs, strict=True):
        assert_equal(one.scheduler.state_dict(), other.scheduler.state_dict(), "scheduler")
    stopped = torch.load(path, weights_only=True)
    assert stopped["global_step"] == steps
    assert not torch.equal(stopped["state_dict"]["model.classifier.weight"], rest.model.classifier.weight)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_stopped_within_an_epoch_resumes_exactly(name: str, tmp_path: Path) -> None:
    path = checkpoint_after(4, tmp_path, module(SCHEDULES[name]), layerwise())
    assert_resumes_exactly(SCHEDULES[name], 4, path)


@pytest.mark.parametrize("steps", [1, 6, 9, 11])
def test_a_run_resumes_exactly_wherever_it_was_stopped(steps: int, tmp_path: Path) -> None:
    schedule = SCHEDULES["warm_up_then_cosine"]
    assert_resumes_exactly(schedule, steps, checkpoint_after(steps, tmp_path, module(schedule), layerwise()))


@pytest.mark.parametrize("name", ["warm_up_then_cosine", "multistep", "cyclic"])
def test_a_run_resumes_exactly_from_a_checkpoint_read_as_plain_data(name: str, tmp_path: Path) -> None:
    path = checkpoint_after(4, tmp_path, module(SCHEDULES[name]), layerwise())
    assert_resumes_exactly(SCHEDULES[name], 4, path, weights_only=True)


def test_a_run_with_a_plateau_resumes_exactly_after_an_epoch(tmp_path: Path) -> None:
    # Lightning leaves out a plateau's step at the end of the epoch in which a run is resumed, with any callback or
    # none, and its ModelCheckpoint saves before that step; so this checkpoint is one of a finished fit.
    stopped = run(module(plateau), layerwise(), epochs=2)
    stopped.save_checkpoint(tmp_path / "epoch.ckpt")
    assert stopped.optimizers[0].param_groups[-1]["lr"] == pytest.approx(tiny.RATES["head"] / 2)
    assert_resumes_exactly(plateau, 2 * BATCHES, tmp_path / "epoch.ckpt", epochs=3, weights_only=True)


def test_dropout_takes_part_in_these_runs(tmp_path: Path) -> None:
    with_dropout, without = module(), module()
    for part in without.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    run(with_dropout, layerwise())
    run(without, layerwise())
    assert not torch.equal(with_dropout.model.classifier.weight, without.model.classifier.weight)


def test_the_state_in_a_checkpoint_is_plain_and_names_the_distribution(tmp_path: Path) -> None:
    callback = layerwise(overrides={"pooler": "layers.2"})
    path = checkpoint_after(2, tmp_path, module(), callback)
    state = torch.load(path, weights_only=True)["callbacks"]["LayerwiseLR"]
    assert LRDistribution.from_dict(state["distribution"]) == DISTRIBUTION
    assert state["fingerprint"] == DISTRIBUTION.fingerprint
    assert state["num_layers"] == 3
    assert state["overrides"] == [["pooler", "layers.2"]]
    assert state["groups"] == [f"{name}{end}" for name in tiny.RATES for end in ("", "/no_decay")]


# What is refused -----------------------------------------------------------------------------------------


def refused(path: Path, *callbacks: Any, match: str, own: tiny.Classifier | None = None) -> None:
    rates = tiny.Recorder()
    with pytest.raises(ResumeMismatchError, match=match):
        run(own or module(), rates, *callbacks, ckpt=path)
    assert rates.rates == {}


def test_resuming_with_another_distribution_raises_with_both_named(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module(), layerwise("decay:lr=1e-3,factor=0.5"))
    refused(path, layerwise("flat:lr=1e-4"), match=r"decay:lr=.*factor=0\.5.*flat:lr=.*1e-0?4")


def test_resuming_with_the_same_distribution_written_in_another_way_works(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module(), layerwise("decay:lr=1e-3,factor=0.5"))
    resumed = run(module(), layerwise({"family": "decay", "factor": 0.50, "lr": 0.001}), ckpt=path)
    assert resumed.global_step == BATCHES * EPOCHS


def test_resuming_a_run_that_had_no_layerwise_lr_raises(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module())
    refused(path, layerwise(), match=r"without LayerwiseLR.*weights.*without\s+ckpt_path")


def test_resuming_with_other_overrides_raises(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module(), layerwise())
    refused(path, layerwise(overrides={"pooler": "layers.2"}), match=r"overrides = \[\].*pooler")


def test_resuming_with_other_groups_of_the_optimizer_raises(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module(), layerwise())
    single = tiny.Classifier(lambda m: torch.optim.AdamW(m.parameters(), lr=BASE))
    refused(path, layerwise(), own=single, match=r"groups = .*embeddings/no_decay.*this run has")


def test_testing_a_checkpoint_of_another_distribution_is_no_matter(tmp_path: Path) -> None:
    class Tested(tiny.Classifier):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", self.model(input_ids=batch[0], labels=batch[1]).loss)

    path = checkpoint_after(2, tmp_path, module(), layerwise("decay:lr=1e-3,factor=0.5"))
    own = Tested(lambda m: None, dropout=0.3)
    results = tiny.trainer(layerwise("flat:lr=1e-4")).test(own, tiny.batches(2), ckpt_path=path, verbose=False)
    assert results[0]["loss"] > 0
