"""LossAdaptiveLR in real Trainers: steps against factors computed by hand."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.optim import lr_scheduler as sch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from transformers.optimization import Adafactor as HFAdafactor

from lr_dist import LayerwiseLR, LossAdaptiveLR
from lr_dist.errors import (
    DivergedError,
    InvalidLossError,
    InvalidRateError,
    InvalidScheduleError,
    ResumeMismatchError,
    UnsupportedOptimizerError,
)

# Nothing here may be said to leave the distribution.
pytestmark = pytest.mark.filterwarnings("error::lr_dist.errors.RatesOffPlanWarning")

RATE = 0.5
LOSSES = [4.0, 1.0, 4.0, 16.0, 1000.0]
# Means before each step, with a momentum of 1/2: none, 4, (2/2 + 1/2) / (3/4) = 2, (1.5/2 + 2) / (7/8) = 22/7,
# (2.75/2 + 8) / (15/16) = 10.
FACTORS = [1.0, 1.8, math.sqrt(2 / 4), math.sqrt(22 / 7 / 16), 0.25]
SETTINGS = {"momentum": 0.5, "f_min": 0.25, "f_max": 1.8}


class Given(L.LightningModule):
    """One weight whose gradient is always 1, and a loss whose value is the batch's number, or the process's own."""

    def __init__(self, *, configure: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.configure = configure
        self.weights: list[float] = []

    def configure_optimizers(self) -> Any:
        return self.configure(self) if self.configure else torch.optim.SGD(self.parameters(), lr=RATE)

    def value(self, batch: torch.Tensor) -> torch.Tensor:
        loss = batch.flatten().double()
        return loss[self.global_rank % len(loss)] + self.weight - self.weight.detach()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.value(batch)

    def on_train_batch_end(self, *_: Any) -> None:
        self.weights.append(float(self.weight))

    def steps(self) -> list[float]:
        """How far each batch moved the weight, in multiples of the rate."""
        return [(before - after) / RATE for before, after in zip([0.0, *self.weights], self.weights, strict=False)]


def batches(losses: Sequence[Any]) -> DataLoader:
    return DataLoader(torch.tensor(losses), batch_size=1)


def adaptive(**options: Any) -> LossAdaptiveLR:
    return LossAdaptiveLR(**{**SETTINGS, **options})


def fit(module: L.LightningModule, losses: Sequence[Any], *callbacks: Any, **options: Any) -> Any:
    return tiny.fit(module, *(callbacks or (adaptive(),)), data=batches(losses), **options)


# The factor ----------------------------------------------------------------------------------------------


def test_each_step_has_the_factor_computed_by_hand() -> None:
    module = Given()
    run = fit(module, LOSSES)
    assert module.steps() == pytest.approx(FACTORS, rel=1e-6)
    assert run.optimizers[0].param_groups[0]["lr"] == RATE


def test_a_constant_loss_changes_nothing() -> None:
    module = Given()
    fit(module, [0.7] * 6, LossAdaptiveLR())
    assert module.steps() == pytest.approx([1.0] * 6, rel=1e-6)


def test_with_a_long_memory_the_rate_rises_as_the_loss_falls_up_to_the_bound() -> None:
    module = Given()
    fit(module, [2.0 * 0.6**i for i in range(12)], LossAdaptiveLR())
    steps = module.steps()
    assert steps[:4] == sorted(steps[:4])
    assert steps[:2] == pytest.approx([1.0, math.sqrt(1 / 0.6)], rel=1e-6)
    assert steps[4:] == pytest.approx([2.0] * 8)


def test_a_loss_of_zero_has_the_factor_of_the_limit() -> None:
    module = Given()
    fit(module, [0.0, 0.0, 4.0, 0.0])
    assert module.steps() == pytest.approx([1.0, 1.0, 0.25, 1.8])


def test_in_a_window_of_batches_the_loss_is_their_mean() -> None:
    module = Given()
    # Windows (3, 5), (1, 1) and, because the epoch ends, (4,); Lightning halves the gradient of the last one too.
    fit(module, [3, 5, 1, 1, 4], accumulate_grad_batches=2)
    assert module.steps() == pytest.approx([0, FACTORS[0], 0, FACTORS[1], FACTORS[2] / 2], rel=1e-6)


def test_a_window_that_grows_does_not_change_the_losses() -> None:
    module = Given()
    fit(module, [4, 4], adaptive(), GradientAccumulationScheduler({0: 1, 2: 2}), max_epochs=4)
    assert module.steps() == pytest.approx([1, 1, 1, 1, 0, 1, 0, 1])


def test_the_next_epoch_begins_a_window_of_its_own() -> None:
    module = Given()
    fit(module, [4, 4, 4], adaptive(f_max=9.0), accumulate_grad_batches=2, max_epochs=2)
    assert module.steps() == pytest.approx([0, 1, 0.5] * 2, rel=1e-6)


def test_the_loss_is_seen_as_it_was_before_the_gradient_scaler() -> None:
    class Half(Given):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx).float()

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    module = Half()
    fit(module, [4, 1, math.inf, 4, 16], plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    # The infinite loss makes no gradient infinite here, so the scaler takes the step; it has no factor.
    assert module.steps() == pytest.approx([*FACTORS[:2], 1.0, *FACTORS[2:4]], rel=1e-6)


def in_a_fresh_process(call: str) -> None:
    """Call a function of this file; a process that has used threads before may not fork."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; "
    subprocess.run([sys.executable, "-c", f"{code}import test_loss_adaptive as t; t.{call}"], check=True, timeout=120)


def fit_two_processes(folder: Path, accumulate: int) -> None:
    """Both processes write their steps; their losses are 4, 1, 4, 16 on average."""

    class Saved(Given):
        def on_train_end(self) -> None:
            (folder / f"{self.global_rank}.json").write_text(json.dumps(self.steps()))

    losses = [[1.0, 7.0], [1.5, 0.5], [6.0, 2.0], [10.0, 22.0]]
    fit(
        Saved(),
        [loss for loss in losses for _ in range(accumulate)],
        strategy="ddp_fork",
        devices=2,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_all_processes_use_the_factor_of_their_mean_loss(accumulate: int, tmp_path: Path) -> None:
    in_a_fresh_process(f"fit_two_processes(Path({str(tmp_path)!r}), {accumulate})")
    for rank in (0, 1):
        steps = json.loads((tmp_path / f"{rank}.json").read_text())
        assert [step for step in steps if step] == pytest.approx(FACTORS[:4], rel=1e-6), rank


def test_one_number_is_read_from_the_device_for_each_step() -> None:
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    counts = []
    for callbacks in ([L.Callback()], [adaptive()]):
        with Reads() as reads:
            fit(Given(), [3, 5, 1, 1, 4, 4, 2, 2], *callbacks, accumulate_grad_batches=4)
        counts.append(reads.count)
    assert counts[1] - counts[0] == 2


# Company -------------------------------------------------------------------------------------------------


def test_a_chainable_schedule_is_multiplied_and_not_changed() -> None:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
        return [optimizer], [{"scheduler": sch.ExponentialLR(optimizer, 0.5), "interval": "step"}]

    module = Given(configure=configure)
    run = fit(module, LOSSES)
    assert module.steps() == pytest.approx([f * 0.5**i for i, f in enumerate(FACTORS)], rel=1e-6)
    assert run.optimizers[0].param_groups[0]["lr"] == RATE / 2**5


def test_with_layerwise_lr_every_layer_has_the_same_factor() -> None:
    class Multiplied(tiny.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss - loss.detach() + LOSSES[batch_idx]

    module, rates = Multiplied(lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3)), tiny.Recorder()
    callbacks = [
        LayerwiseLR(tiny.EXPLICIT, verbose=False, unfreeze_every_n_steps=2, layer_warmup_steps=2),
        adaptive(),
        rates,
    ]
    for ordered in (callbacks, [callbacks[1], callbacks[0], rates]):
        rates.rates.clear()
        run = tiny.fit(module, *ordered, data=tiny.batches(5))
        own = {"head": [0.5, 1, 1, 1, 1], "layers.2": [0, 0, 0.5, 1, 1], "layers.1": [0, 0, 0, 0, 0.5]}
        for layer, factors in own.items():
            expected = [tiny.RATES[layer] * f * own for f, own in zip(FACTORS, factors, strict=True)]
            assert rates.rates[layer] == pytest.approx(expected, rel=1e-6), layer
        assert [group["lr"] for group in run.optimizers[0].param_groups] == list(tiny.RATES.values())


def test_the_factor_is_logged_only_if_asked_and_monitors_show_the_rate_without_it(tmp_path: Path) -> None:
    for log in (True, False):
        logger = CSVLogger(tmp_path / str(log))
        fit(Given(), LOSSES, adaptive(log=log), LearningRateMonitor("step"), logger=logger, log_every_n_steps=1)
        with next((tmp_path / str(log)).rglob("metrics.csv")).open() as file:
            rows = list(csv.DictReader(file))
        assert [float(row["lr-SGD"]) for row in rows if row["lr-SGD"]] == [RATE] * 5
        logged = [float(row["lr_factor"]) for row in rows if row.get("lr_factor")]
        assert logged == (pytest.approx(FACTORS, rel=1e-6) if log else [])


class Manual(Given):
    """Two optimizers that step after one backward pass, or after one each."""

    def __init__(self, *, together: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.together = together
        self.second = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.seconds: list[float] = []

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([self.weight], lr=RATE), torch.optim.SGD([self.second], lr=RATE)]

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        first, second = self.optimizers()
        extra = self.second - self.second.detach()
        if self.together:
            self.manual_backward(self.value(batch) + extra)
            first.step()
        else:
            self.manual_backward(self.value(batch))
            first.step()
            self.manual_backward(extra + 3.0)
        second.step()
        first.zero_grad()
        second.zero_grad()

    def on_train_batch_end(self, *_: Any) -> None:
        super().on_train_batch_end()
        self.seconds.append(float(self.second))


@pytest.mark.parametrize("together", [False, True])
def test_with_manual_optimization_a_step_has_the_loss_since_the_last_one(together: bool) -> None:
    module = Manual(together=together)
    fit(module, LOSSES, adaptive(), max_steps=100)
    assert module.steps() == pytest.approx(FACTORS, rel=1e-6)
    # Its own loss is always 3, which needs no factor.
    factors = FACTORS if together else [1.0] * 5
    seconds = [(b - a) / RATE for b, a in zip([0.0, *module.seconds], module.seconds, strict=False)]
    assert seconds == pytest.approx(factors, rel=1e-6)


def test_a_step_without_a_backward_pass_has_no_factor() -> None:
    class Without(Manual):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            if batch_idx < 3:
                super().training_step(batch, batch_idx)
                return
            self.weight.grad = torch.ones_like(self.weight)
            first, _ = self.optimizers(use_pl_optimizer=False)
            first.step()
            first.zero_grad()

    module = Without(together=True)
    fit(module, LOSSES, adaptive(), max_steps=100)
    assert module.steps() == pytest.approx([*FACTORS[:3], 1.0, 1.0], rel=1e-6)


# What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind", "match"),
    [
        (math.nan, DivergedError, "loss before step 2 is nan"),
        (math.inf, DivergedError, "loss before step 2 is inf"),
        (-0.5, InvalidLossError, r"loss before step 2 is -0\.5.*never below 0"),
    ],
)
def test_a_loss_without_a_root_is_refused_before_it_is_used(value: float, kind: type, match: str) -> None:
    module = Given()
    trainer = tiny.trainer(adaptive())
    with pytest.raises(kind, match=match):
        trainer.fit(module, batches([4, 1, value, 4.0]))
    assert module.steps() == pytest.approx(FACTORS[:2], rel=1e-6)
    assert float(module.weight) == module.weights[-1]
    assert trainer.optimizers[0].param_groups[0]["lr"] == RATE


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"momentum": 1.0}, InvalidScheduleError, r"momentum=1\.0 must be below 1"),
        ({"momentum": -0.1}, InvalidRateError, r"momentum must be a finite number of at least 0, not -0\.1"),
        ({"momentum": "0.9"}, InvalidRateError, r"momentum must be a finite number .*, not '0\.9'"),
        ({"f_min": math.nan}, InvalidRateError, "f_min must be a finite number .*, not nan"),
        ({"f_min": 3.0}, InvalidScheduleError, r"f_min=3\.0 and f_max=2\.0"),
        ({"f_min": 0, "f_max": 0}, InvalidScheduleError, "f_max above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], kind: type, match: str) -> None:
    with pytest.raises(kind, match=match):
        LossAdaptiveLR(**options)


def test_an_optimizer_that_sets_its_own_rate_is_refused_before_a_step() -> None:
    module = Given(configure=lambda m: HFAdafactor(m.parameters()))
    with pytest.raises(UnsupportedOptimizerError, match="relative_step=False"):
        fit(module, LOSSES)
    assert module.weights == []


# Resume and fit again ------------------------------------------------------------------------------------


def classifier() -> tiny.Classifier:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        return [optimizer], [{"scheduler": sch.ExponentialLR(optimizer, 0.97), "interval": "step"}]

    return tiny.Classifier(configure, dropout=0.2)


def resumable(module: Any, *callbacks: Any, **options: Any) -> Any:
    own = (LayerwiseLR("flat:lr=1e-2", verbose=False), LossAdaptiveLR(momentum=0.8))
    return tiny.fit(module, *own, *callbacks, data=tiny.ShuffledBatches(6), max_epochs=2, **options)


class SaveAfter(L.Callback):
    """Writes a checkpoint after a number of batches, in the middle of a window too."""

    def __init__(self, count: int, path: Path, *, stop: bool = True) -> None:
        self.count, self.path, self.stop = count, path, stop

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.count -= 1
        if self.count == 0:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = self.stop


@pytest.mark.parametrize(("count", "accumulate"), [(1, 1), (4, 1), (6, 1), (3, 2), (4, 3), (9, 2)])
def test_a_run_resumes_exactly_within_a_window_too(count: int, accumulate: int, tmp_path: Path) -> None:
    path = tmp_path / "stopped.ckpt"
    whole, whole_rates = classifier(), tiny.Recorder()
    resumable(whole, whole_rates, accumulate_grad_batches=accumulate)
    resumable(classifier(), SaveAfter(count, path), accumulate_grad_batches=accumulate)
    rest, rest_rates = classifier(), tiny.Recorder()
    resumable(rest, rest_rates, accumulate_grad_batches=accumulate, ckpt=path, weights_only=True)

    taken = torch.load(path, weights_only=True)["global_step"]
    assert len(rest_rates.rates["head"]) == 12 // accumulate - taken
    assert whole_rates.rates["head"][taken:] == rest_rates.rates["head"]
    assert len(set(whole_rates.rates["head"])) == 12 // accumulate
    for (name, ours), theirs in zip(whole.named_parameters(), rest.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def window_of_two_processes(folder: Path) -> None:
    """A whole run, and one that is resumed within a window; each process writes its rates."""

    class Rates(L.Callback):
        """The rate of each step, in a file for each process."""

        def __init__(self, name: str) -> None:
            self.name, self.rates = name, []

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.rates.append(optimizer.param_groups[0]["lr"])

        def on_train_end(self, trainer: Any, *_: Any) -> None:
            (folder / f"{self.name}.{trainer.global_rank}.json").write_text(json.dumps(self.rates))

    def run(name: str, *callbacks: Any, **options: Any) -> None:
        fit(
            Given(),
            # A plain DataLoader begins anew when it is resumed, so that its first batch has to be like its sixth.
            [[0.1, 3.0], [0.7, 0.2], [5.3, 1.0], [2.2, 4.0], [9.9, 0.3], [0.1, 3.0]],
            adaptive(),
            Rates(name),
            *callbacks,
            strategy="ddp_fork",
            devices=2,
            accumulate_grad_batches=3,
            use_distributed_sampler=False,
            max_epochs=2,
            **options,
        )

    run("whole", SaveAfter(5, folder / "stopped.ckpt", stop=False))
    run("rest", ckpt=folder / "stopped.ckpt", weights_only=True)


def test_every_process_has_its_own_part_of_a_window_back(tmp_path: Path) -> None:
    in_a_fresh_process(f"window_of_two_processes(Path({str(tmp_path)!r}))")
    windows = torch.load(tmp_path / "stopped.ckpt", weights_only=True)["callbacks"]["LossAdaptiveLR"]["windows"]
    assert windows == [[pytest.approx(12.1), 2], [pytest.approx(4.3), 2]]
    for rank in (0, 1):
        whole, rest = (json.loads((tmp_path / f"{name}.{rank}.json").read_text()) for name in ("whole", "rest"))
        assert len(whole) == 4
        assert whole[1:] == rest


def saved(tmp_path: Path, *callbacks: Any) -> Path:
    saver = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=2)
    fit(Given(), LOSSES, *callbacks, saver, max_steps=2, enable_checkpointing=True)
    return tmp_path / "stopped.ckpt"


def test_the_state_in_a_checkpoint_is_the_running_mean(tmp_path: Path) -> None:
    state = torch.load(saved(tmp_path, adaptive()), weights_only=True)
    assert state["callbacks"]["LossAdaptiveLR"] == {
        "settings": SETTINGS,
        "means": [[0, 2.5 - 1.0, 2]],
        "windows": [None],
    }
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == RATE


def test_resuming_with_other_settings_or_from_a_run_without_the_callback_raises(tmp_path: Path) -> None:
    with pytest.raises(ResumeMismatchError, match=r"momentum=0\.5, f_min=0\.25, f_max=1\.8.*this run has.*f_max=3"):
        fit(Given(), LOSSES, adaptive(f_max=3.0), ckpt=saved(tmp_path, adaptive()))
    with pytest.raises(ResumeMismatchError, match="a run with no LossAdaptiveLR"):
        fit(Given(), LOSSES, adaptive(), ckpt=saved(tmp_path / "without", L.Callback()))


def test_a_second_fit_of_the_same_trainer_continues_the_mean_and_one_of_another_starts_anew() -> None:
    module, callback = Given(), adaptive()
    run = fit(module, LOSSES, callback, max_steps=2)
    run.fit_loop.epoch_loop.max_steps = 4
    run.fit_loop.max_epochs = 5
    run.fit(module, batches([4, 16]))
    assert module.steps() == pytest.approx(FACTORS[:4], rel=1e-6)
    other = Given()
    fit(other, LOSSES, callback)
    assert other.steps() == pytest.approx(FACTORS, rel=1e-6)
