"""LayerwiseLR beside LearningRateFinder and BatchSizeFinder: the suggestion is the anchor, the ratios stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch.optim import lr_scheduler as sch
from torch.utils.data import DataLoader

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist._distribution.sanity import brief
from lr_dist.errors import ResumeMismatchError

# Nothing here may be said to leave the distribution.
pytestmark = pytest.mark.filterwarnings("error::lr_dist.errors.RatesOffPlanWarning")

RELATIVE = "linear:first=0.1,last=3,relative=true"
# The tiny model's rates have their highest at the head.
BATCHES = 25
ABSOLUTE = LRDistribution.from_dict(tiny.EXPLICIT)


class Tuned(tiny.Classifier):
    """A module as Lightning's documentation of the finder shows it: `configure_optimizers` reads `self.lr`."""

    def __init__(self, schedule: Any = None, optimizer: Any = torch.optim.SGD) -> None:
        super().__init__(None)
        self.lr, self.schedule, self.optimizer = 1e-3, schedule, optimizer

    def configure_optimizers(self) -> Any:
        halves = [[p for p in self.parameters() if p.ndim > 1], [p for p in self.parameters() if p.ndim < 2]]
        groups = [{"params": halves[0], "weight_decay": 0.1}, {"params": halves[1], "weight_decay": 0.0}]
        optimizer = self.optimizer(groups, lr=self.lr)
        if self.schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": "step"}]


class Looked(LearningRateFinder):
    """The finder, and the rates of all groups at the first and the last step that it took."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **{"min_lr": 1e-4, "max_lr": 0.3, "num_training_steps": 24, "early_stop_threshold": None, **options}
        )
        self.seen: list[set[float]] = []
        self.found: list[float] = []

    def lr_find(self, trainer: Any, pl_module: Any) -> None:
        optimizer = trainer.optimizers[0]
        hook = optimizer.register_step_pre_hook(
            lambda o, *_: self.seen.append({float(group["lr"]) for group in o.param_groups})
        )
        super().lr_find(trainer, pl_module)
        hook.remove()

    @property
    def suggestion(self) -> float:
        rate = self.optimal_lr.suggestion()
        assert rate is not None
        return rate


def fit(module: Any, *callbacks: Any, **options: Any) -> Any:
    """The finder searches within one epoch: it ends where `max_epochs` does."""
    return tiny.fit(module, *callbacks, **{"data": tiny.batches(BATCHES), **options})


def layerwise(distribution: Any = RELATIVE, **options: Any) -> LayerwiseLR:
    return LayerwiseLR(distribution, **{"verbose": False, **options})


def shares(distribution: Any) -> dict[str, float]:
    """Each layer's rate where the finder's suggestion is 1."""
    if distribution is ABSOLUTE:
        return {name: rate / 7e-3 for name, rate in tiny.RATES.items()}
    return LRDistribution.parse(distribution).rates(tiny.LAYERS)


def expect(rates: dict[str, list[float]], suggestion: float, distribution: Any, factors: list[float]) -> None:
    for name, share in shares(distribution).items():
        for group in (name, f"{name}/no_decay"):
            assert rates[group] == pytest.approx([suggestion * share * factor for factor in factors], rel=1e-9), group


SCHEDULES: dict[str, tuple[Any, list[float]]] = {
    "none": (None, [1.0] * 4),
    "LambdaLR": (lambda o: sch.LambdaLR(o, lambda step: min(1, step / 2)), [0, 0.5, 1, 1]),
    "LinearLR": (lambda o: sch.LinearLR(o, 0.2, 1.0, 2), [0.2, 0.6, 1, 1]),
    "StepLR": (lambda o: sch.StepLR(o, 2, 0.1), [1, 1, 0.1, 0.1]),
    "OneCycleLR": (
        lambda o: sch.OneCycleLR(
            o, 1e-3, 4, pct_start=0.5, anneal_strategy="linear", cycle_momentum=False, div_factor=5, final_div_factor=2
        ),
        [0.2, 1.0, 0.55, 0.1],
    ),
    "SequentialLR": (
        lambda o: sch.SequentialLR(o, [sch.ConstantLR(o, 0.5, 9), sch.ExponentialLR(o, 0.5)], [2]),
        [0.5, 0.5, 1, 0.5],
    ),
}


@pytest.mark.parametrize("distribution", [RELATIVE, ABSOLUTE], ids=["relative", "absolute"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_layer_has_its_share_of_the_suggestion_throughout_the_schedule(
    name: str, distribution: Any, tmp_path: Path
) -> None:
    schedule, factors = SCHEDULES[name]
    finder, recorder, module = Looked(), tiny.Recorder(), Tuned(schedule)
    fit(module, finder, layerwise(distribution), recorder, max_steps=4, default_root_dir=tmp_path)
    assert module.lr == finder.suggestion != 1e-3
    expect(recorder.rates, finder.suggestion, distribution, factors)


def test_the_finder_itself_steps_with_one_rate_for_all_layers(tmp_path: Path) -> None:
    alone, beside = Looked(), Looked()
    fit(Tuned(), alone, default_root_dir=tmp_path)
    fit(Tuned(), beside, layerwise(ABSOLUTE), default_root_dir=tmp_path)
    assert all(len(rates) == 1 for rates in beside.seen)
    assert len(beside.seen) > 12
    assert beside.seen == alone.seen
    assert beside.optimal_lr.results == alone.optimal_lr.results


def test_the_search_leaves_no_trace_in_the_weights(tmp_path: Path) -> None:
    finder, module = Looked(), Tuned(optimizer=torch.optim.AdamW)
    fit(module, finder, layerwise(), default_root_dir=tmp_path)
    again = Tuned(optimizer=torch.optim.AdamW)
    again.lr = finder.suggestion
    run = fit(again, layerwise())
    assert {state["step"].item() for state in run.optimizers[0].state.values()} == {BATCHES}
    for (name, ours), theirs in zip(module.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_floor_given_as_a_rate_keeps_its_part_of_each_layers_rate(tmp_path: Path) -> None:
    finder, recorder = Looked(), tiny.Recorder()
    module = Tuned(lambda o: sch.CosineAnnealingLR(o, 3, eta_min=1e-5))
    fit(module, finder, layerwise(ABSOLUTE), recorder, max_steps=4, default_root_dir=tmp_path)
    floor = 1e-5 / finder.suggestion
    expect(recorder.rates, finder.suggestion, ABSOLUTE, [floor + (1 - floor) * part for part in (1, 0.75, 0.25, 0)])


def test_a_plateau_starts_at_the_suggestion(tmp_path: Path) -> None:
    class Plateau(Tuned):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            plateau = sch.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "score"}}

    module, finder, recorder = Plateau(), Looked(max_lr=0.1), tiny.Recorder()
    module.scores = [1.0] * 9
    fit(module, finder, layerwise(), recorder, default_root_dir=tmp_path, max_epochs=3)
    expect(recorder.rates, finder.suggestion, RELATIVE, [1.0] * 2 * BATCHES + [0.5] * BATCHES)


@pytest.mark.parametrize("distribution", [RELATIVE, ABSOLUTE], ids=["relative", "absolute"])
def test_a_finder_that_only_looks_changes_nothing(distribution: Any, tmp_path: Path) -> None:
    finder, recorder, module = Looked(update_attr=False), tiny.Recorder(), Tuned(SCHEDULES["LambdaLR"][0])
    fit(module, finder, layerwise(distribution), recorder, max_steps=4, default_root_dir=tmp_path)
    assert finder.suggestion != module.lr == 1e-3
    expect(recorder.rates, 7e-3 if distribution is ABSOLUTE else 1e-3, distribution, [0, 0.5, 1, 1])


def test_a_search_that_stops_early_is_followed_too(tmp_path: Path) -> None:
    finder, recorder = Looked(max_lr=1e4, early_stop_threshold=4.0), tiny.Recorder()
    fit(Tuned(), finder, layerwise(ABSOLUTE), recorder, max_steps=2, default_root_dir=tmp_path)
    assert 12 < len(finder.seen) < 24
    expect(recorder.rates, finder.suggestion, ABSOLUTE, [1.0] * 2)


def test_without_a_suggestion_the_rates_are_the_distributions(tmp_path: Path) -> None:
    finder, recorder = Looked(num_training_steps=8), tiny.Recorder()
    fit(Tuned(), finder, layerwise(ABSOLUTE), recorder, max_steps=2, default_root_dir=tmp_path)
    assert finder.optimal_lr.suggestion() is None
    expect(recorder.rates, 7e-3, ABSOLUTE, [1.0] * 2)


@pytest.mark.parametrize("distribution", [RELATIVE, ABSOLUTE], ids=["relative", "absolute"])
@pytest.mark.parametrize("name", ["none", "LambdaLR"])
def test_what_tuner_lr_find_found_is_the_anchor_of_the_fit_that_follows(
    name: str, distribution: Any, tmp_path: Path
) -> None:
    schedule, factors = SCHEDULES[name]
    recorder, module = tiny.Recorder(), Tuned(schedule)
    run = tiny.trainer(layerwise(distribution), recorder, max_steps=4, default_root_dir=tmp_path)
    found = Tuner(run).lr_find(module, tiny.batches(BATCHES), min_lr=1e-4, max_lr=0.3, num_training=24)
    assert recorder.rates == {}
    run.fit(module, tiny.batches())
    expect(recorder.rates, found.suggestion(), distribution, factors)


def test_a_rate_that_the_user_sets_after_tuner_lr_find_counts(tmp_path: Path) -> None:
    recorder, module = tiny.Recorder(), Tuned()
    run = tiny.trainer(layerwise(ABSOLUTE), recorder, max_steps=2, default_root_dir=tmp_path)
    Tuner(run).lr_find(module, tiny.batches(BATCHES), min_lr=1e-4, max_lr=0.3, num_training=24)
    module.lr = 5e-4
    run.fit(module, tiny.batches())
    expect(recorder.rates, 7e-3, ABSOLUTE, [1.0] * 2)


def test_a_finder_that_searches_again_in_a_later_epoch_is_followed(tmp_path: Path) -> None:
    class AtEpochs(Looked):
        """The recipe of the finder's documentation for fine-tuning."""

        def on_fit_start(self, *_: Any) -> None:
            return

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch in (0, 2):
                self.lr_find(trainer, pl_module)
                self.found.append(self.suggestion)

    finder, recorder = AtEpochs(max_lr=0.05), tiny.Recorder()
    module = Tuned(lambda o: sch.LambdaLR(o, lambda step: 1 - step / 80))
    options = {"max_epochs": 6, "max_steps": 3 * BATCHES, "default_root_dir": tmp_path}
    fit(module, finder, layerwise(ABSOLUTE), recorder, **options)
    first, second = finder.found
    assert first != second
    factors = [1 - step / 80 for step in range(3 * BATCHES)]
    early = {name: rates[: 2 * BATCHES] for name, rates in recorder.rates.items()}
    late = {name: rates[2 * BATCHES :] for name, rates in recorder.rates.items()}
    expect(early, first, ABSOLUTE, factors[: 2 * BATCHES])
    expect(late, second, ABSOLUTE, factors[2 * BATCHES :])


def test_the_table_and_a_line_say_what_became_of_the_suggestion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    finder = Looked()
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        callback = LayerwiseLR(ABSOLUTE)
        fit(Tuned(), finder, callback, max_steps=1, default_root_dir=tmp_path)
    printed = capsys.readouterr().out
    assert any("layers.2" in line and brief(finder.suggestion * 5 / 70) in line for line in printed.splitlines())
    assert (
        f"{finder.suggestion:.3g} that LearningRateFinder found is now the highest rate of the distribution"
        in caplog.text
    )


@pytest.mark.parametrize("distribution", [RELATIVE, ABSOLUTE], ids=["relative", "absolute"])
def test_a_run_with_a_found_rate_is_resumed_without_the_finder(distribution: Any, tmp_path: Path) -> None:
    schedule = SCHEDULES["LambdaLR"][0]
    finder, unbroken, whole = Looked(), tiny.Recorder(), Tuned(schedule)
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    options = {"default_root_dir": tmp_path, "max_epochs": 2}
    fit(whole, finder, layerwise(distribution), unbroken, saving, enable_checkpointing=True, **options)
    resumed, recorder, callback = Tuned(schedule), tiny.Recorder(), layerwise(distribution)
    fit(resumed, callback, recorder, ckpt=tmp_path / "epoch=0.ckpt", weights_only=True, **options)
    assert {name: rates[BATCHES:] for name, rates in unbroken.rates.items()} == recorder.rates
    expect(recorder.rates, finder.suggestion, distribution, [1.0] * BATCHES)
    assert callback.state_dict()["found_lr"] == finder.suggestion
    for (name, ours), theirs in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_layers_that_start_later_start_at_their_share_of_the_suggestion(tmp_path: Path) -> None:
    finder, callback, module = Looked(), layerwise(ABSOLUTE, unfreeze_every_n_steps=1), Tuned()
    before = tiny.weights(module)
    moved: list[set[str]] = []

    class Movement(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            layers = {id(p): g["name"].split("/")[0] for g in trainer.optimizers[0].param_groups for p in g["params"]}
            weights = pl_module.named_parameters()
            moved.append({layers[id(p)] for name, p in weights if not torch.equal(p, before[name])})

    run = fit(module, finder, callback, Movement(), max_steps=3, default_root_dir=tmp_path)
    assert all(len(rates) == 1 for rates in finder.seen)
    assert moved == [{"head"}, {"head", "layers.2"}, {"head", "layers.2", "layers.1"}]
    rates = {group["name"]: [float(group["lr"])] for group in run.optimizers[0].param_groups}
    expect(rates, finder.suggestion, ABSOLUTE, [1.0])


@pytest.mark.parametrize("tuner", [Looked(), BatchSizeFinder()], ids=["LearningRateFinder", "BatchSizeFinder"])
def test_resuming_beside_a_finder_is_refused_because_lightning_would_start_again(tuner: Any, tmp_path: Path) -> None:
    class WithData(Tuned):
        batch_size = 2

        def train_dataloader(self) -> Any:
            return DataLoader(tiny.batches().dataset, batch_size=self.batch_size)

    run = fit(WithData(), layerwise())
    run.save_checkpoint(tmp_path / "a.ckpt")
    recorder = tiny.Recorder()
    with pytest.raises(
        ResumeMismatchError, match=r"a\.ckpt together with (Looked|BatchSizeFinder).*Remove that callback"
    ):
        tiny.trainer(tuner, layerwise(), recorder, max_epochs=2).fit(WithData(), ckpt_path=tmp_path / "a.ckpt")
    assert recorder.steps == []


def test_a_batch_size_finder_runs_first_and_leaves_the_rates_alone(tmp_path: Path) -> None:
    class Data(L.LightningDataModule):
        batch_size = 1

        def train_dataloader(self) -> Any:
            return DataLoader(tiny.batches().dataset, batch_size=self.batch_size)

    schedule = SCHEDULES["LambdaLR"][0]
    finder, recorder, data = BatchSizeFinder(max_trials=2, init_val=2), tiny.Recorder(), Data()
    run = tiny.trainer(finder, layerwise(ABSOLUTE), recorder, max_steps=4, default_root_dir=tmp_path)
    run.fit(Tuned(schedule), datamodule=data)
    assert data.batch_size == finder.optimal_batch_size == 4
    expect(recorder.rates, 7e-3, ABSOLUTE, [0, 0.5, 1, 1])
