"""LayerwiseLR beside what adds parameters in the middle of a run: BaseFinetuning, BackboneFinetuning, the module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist.errors import OptimizerCoverageError, ResumeMismatchError, UnsupportedCallbackError, ZeroRateError

# Nothing here may be said to leave the distribution.
pytestmark = pytest.mark.filterwarnings("error::lr_dist.errors.RatesOffPlanWarning")

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)
RELATIVE = "from_layers:embeddings=0.1,layers=0.2/0.3/0.5,head=2,relative=true"


class Module(tiny.Classifier):
    """Its optimizer is given what needs a gradient, as the documentation of BaseFinetuning asks."""

    def __init__(self, schedule: Any = None, optimizer: Any = torch.optim.SGD, **options: Any) -> None:
        super().__init__(None)
        self.schedule, self.optimizer, self.options = schedule, optimizer, options
        # BaseFinetuning leaves out a parameter that equals one in the optimizer, as zeros and ones of a new model do.
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for parameter in self.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)

    def configure_optimizers(self) -> Any:
        trainable = [p for p in self.parameters() if p.requires_grad]
        optimizer = self.optimizer(trainable, lr=1e-2, **self.options)
        if self.schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": "step"}]


class UnfreezeAtOne(BaseFinetuning):
    """The whole encoder from epoch 1 on."""

    def __init__(self, lr: float | None = None) -> None:
        super().__init__()
        self.lr = lr

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.model.bert)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.model.bert, optimizer, lr=self.lr)


class UnfreezeOneByOne(UnfreezeAtOne):
    """A layer more in each epoch, from the last to the first, then the embeddings."""

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        bert = pl_module.model.bert
        parts = [None, bert.encoder.layer[2], bert.encoder.layer[1], bert.encoder.layer[0], bert.embeddings]
        if epoch:
            self.unfreeze_and_add_param_group(parts[epoch], optimizer, lr=self.lr)


def layerwise(distribution: Any = DISTRIBUTION) -> LayerwiseLR:
    return LayerwiseLR(distribution, verbose=False)


def rates_of(run: Any) -> dict[str, float]:
    return {group["name"]: float(group["lr"]) for group in run.optimizers[0].param_groups}


SCHEDULES: dict[str, tuple[Any, Any]] = {
    # name -> (schedule, its factor at step t of 16)
    "none": (None, lambda t: 1.0),
    "LambdaLR": (lambda o: sch.LambdaLR(o, lambda t: 1 / (1 + t)), lambda t: 1 / (1 + t)),
    "MultiplicativeLR": (lambda o: sch.MultiplicativeLR(o, lambda t: 0.9), lambda t: 0.9**t),
    "ExponentialLR": (lambda o: sch.ExponentialLR(o, 0.9), lambda t: 0.9**t),
    "OneCycleLR": (
        lambda o: sch.OneCycleLR(o, 1e-2, 17, anneal_strategy="linear", pct_start=0.5, div_factor=10),
        lambda t: 0.1 + 0.9 * t / 7.5 if t < 7.5 else 1 - (1 - 1e-5) * (t - 7.5) / 8.5,
    ),
    "CyclicLR": (
        lambda o: sch.CyclicLR(o, 1e-3, 1e-2, step_size_up=16),
        lambda t: 0.1 + 0.9 * t / 16,
    ),
    "CosineAnnealingLR": (
        lambda o: sch.CosineAnnealingLR(o, 16, eta_min=1e-3),
        lambda t: 0.1 + 0.9 * (1 + torch.cos(torch.tensor(torch.pi * t / 16, dtype=torch.float64)).item()) / 2,
    ),
    "SequentialLR": (
        lambda o: sch.SequentialLR(o, [sch.ConstantLR(o, 0.5, 99), sch.ExponentialLR(o, 0.9)], [10]),
        lambda t: 0.5 if t < 10 else 0.9 ** (t - 10),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_backbone_that_is_unfrozen_is_split_by_layer_and_joins_the_schedule(name: str) -> None:
    schedule, factor = SCHEDULES[name]
    recorder = tiny.Recorder()
    tiny.fit(Module(schedule, momentum=0.9), layerwise(), UnfreezeAtOne(), recorder, max_epochs=2)
    expected = [factor(t) for t in range(16)]
    assert recorder.rates["head"] == pytest.approx([7e-3 * f for f in expected], rel=1e-9)
    for layer, rate in list(tiny.RATES.items())[:-1]:
        assert recorder.rates[layer] == pytest.approx([rate * f for f in expected[8:]], rel=1e-9), layer
    # The pooler, too, is in the head.
    assert recorder.rates["head/2"] == pytest.approx(recorder.rates["head"][8:], rel=1e-9)


def test_a_plateau_reduces_the_layers_that_were_added_later() -> None:
    class Plateau(Module):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            plateau = sch.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, min_lr=3e-3)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "score"}}

    module = Plateau()
    module.scores = [1.0] * 9
    run = tiny.fit(module, layerwise(), UnfreezeAtOne(), max_epochs=7)
    # Reduced to a half after epochs 2 and 4, and held at the floor, which is three tenths of the optimizer's rate.
    assert rates_of(run) == pytest.approx({n: r * 0.3 for n, r in {**tiny.RATES, "head/2": 7e-3}.items()})


def test_a_relative_distribution_multiplies_the_rate_at_which_a_group_is_added() -> None:
    recorder = tiny.Recorder()
    schedule, factor = SCHEDULES["ExponentialLR"]
    tiny.fit(Module(schedule), layerwise(RELATIVE), UnfreezeAtOne(lr=5e-3), recorder, max_epochs=2)
    assert recorder.rates["head"] == pytest.approx([2e-2 * factor(t) for t in range(16)])
    # 5e-3 is the rate at step 8, when the group is added.
    later = [5e-3 * factor(t) / factor(8) for t in range(8, 16)]
    for layer, share in {"embeddings": 0.1, "layers.0": 0.2, "layers.1": 0.3, "layers.2": 0.5, "head/2": 2}.items():
        assert recorder.rates[layer] == pytest.approx([share * rate for rate in later]), layer


def test_layers_that_are_unfrozen_one_by_one_move_by_their_own_rates(tmp_path: Path) -> None:
    class Movement(tiny.Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.moved: dict[str, set[int]] = {}

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            self.before = tiny.weights(pl_module)
            self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.requires_grad}

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            layer = {id(p): g["name"] for g in trainer.optimizers[0].param_groups for p in g["params"]}
            for name, p in pl_module.named_parameters():
                rate = tiny.RATES[layer[id(p)]] if id(p) in layer else 0.0
                step = rate * self.gradients[name] if rate else torch.zeros_like(p)
                assert torch.allclose(self.before[name] - p, step, rtol=1e-9, atol=1e-15), name
                if step.abs().max() > 1e-12:
                    self.moved.setdefault(layer[id(p)], set()).add(trainer.current_epoch)

    movement, logger = Movement(), CSVLogger(tmp_path)
    run = tiny.fit(
        Module().double(),
        UnfreezeOneByOne(),
        layerwise(),
        movement,
        LearningRateMonitor(),
        max_epochs=5,
        logger=logger,
        log_every_n_steps=1,
    )
    assert {name: min(epochs) for name, epochs in movement.moved.items()} == {
        "head": 0,
        "layers.2": 1,
        "layers.1": 2,
        "layers.0": 3,
        "embeddings": 4,
    }
    # The first group stays the first: BaseFinetuning takes its rate for the rate of the model.
    assert list(rates_of(run)) == ["head", "layers.2", "layers.1", "layers.0", "embeddings"]
    assert "lr-SGD/embeddings" in next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0]


@pytest.mark.parametrize("first", [True, False])
def test_the_order_of_the_two_callbacks_does_not_matter(first: bool) -> None:
    pair = [UnfreezeAtOne(), layerwise()]
    recorder = tiny.Recorder()
    schedule = SCHEDULES["LambdaLR"][0]
    tiny.fit(Module(schedule), *(pair if first else pair[::-1]), recorder, max_epochs=2)
    assert recorder.rates["layers.1"] == pytest.approx([2e-4 / (1 + t) for t in range(8, 16)])


def test_an_added_group_keeps_its_options_and_gets_names_of_its_own() -> None:
    class Halves(UnfreezeAtOne):
        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                bert = pl_module.model.bert
                self.make_trainable(bert)
                for decay, dims in ((0.1, (2,)), (0.0, (1,))):
                    params = [p for p in bert.parameters() if p.ndim in dims]
                    optimizer.add_param_group({"params": params, "weight_decay": decay, "betas": (0.5, 0.9)})

    module = Module(optimizer=torch.optim.AdamW, weight_decay=0.2)
    groups = {g["name"]: g for g in tiny.fit(module, Halves(), layerwise(), max_epochs=2).optimizers[0].param_groups}
    names = [f"{name}{end}" for name in tiny.RATES for end in ("", "/no_decay")]
    assert sorted(groups) == sorted([*names, "head/2"])
    assert groups["head"]["betas"] == (0.9, 0.999)
    assert groups["layers.0/no_decay"]["betas"] == (0.5, 0.9)
    assert groups["layers.0/no_decay"]["weight_decay"] == 0.0
    assert [groups[f"layers.0{end}"]["lr"] for end in ("", "/no_decay")] == [3e-5, 3e-5]


def test_a_layer_with_rate_zero_stays_frozen_when_others_are_unfrozen() -> None:
    module = Module(optimizer=torch.optim.AdamW, weight_decay=0.5)
    before = tiny.weights(module)
    run = tiny.fit(module, UnfreezeAtOne(), layerwise(DISTRIBUTION.freeze("layers.0")), max_epochs=2)
    assert rates_of(run)["layers.0"] == 0
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) == ("encoder.layer.0." in name), name


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_epoch_start", "on_train_batch_start"])
def test_a_group_that_the_module_itself_adds_is_split_before_its_first_step(hook: str) -> None:
    class Adding(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.model.classifier.parameters(), lr=1e-2)

    def add(self: Any, *_: Any) -> None:
        if len(self.optimizers().param_groups) == 1:
            self.model.bert.requires_grad_(True)
            self.optimizers().optimizer.add_param_group({"params": list(self.model.bert.parameters())})

    setattr(Adding, hook, add)
    module, recorder = Adding(), tiny.Recorder()
    module.model.bert.requires_grad_(False)
    tiny.fit(module, layerwise(), recorder, max_steps=3)
    assert recorder.rates["layers.0"] == [3e-5] * 3
    assert recorder.rates["head"] == recorder.rates["head/2"] == [7e-3] * 3


def test_an_optimizer_that_is_built_again_in_the_middle_is_split_again() -> None:
    class Rebuilding(Module):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.trainer.strategy.setup_optimizers(self.trainer)

    recorder = tiny.Recorder()
    run = tiny.fit(Rebuilding(SCHEDULES["LambdaLR"][0]), layerwise(), recorder, max_epochs=2)
    assert recorder.rates["layers.1"] == pytest.approx([2e-4 / (1 + t) for t in [*range(8), *range(8)]])
    assert len(run.optimizers[0].param_groups) == 5


def test_groups_that_are_replaced_by_one_are_split_again() -> None:
    class Merging(Module):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                optimizer = self.optimizers().optimizer
                optimizer.param_groups.clear()
                optimizer.add_param_group({"params": list(self.parameters())})

    recorder = tiny.Recorder()
    tiny.fit(Merging(), layerwise(), recorder, max_epochs=2)
    assert {name: set(rates) for name, rates in recorder.rates.items()} == {n: {r} for n, r in tiny.RATES.items()}
    assert len(recorder.rates["head"]) == 16


# What cannot work ----------------------------------------------------------------------------------------


def test_backbone_finetuning_is_refused_with_what_to_use_instead() -> None:
    class Backbone(Module):
        @property
        def backbone(self) -> nn.Module:
            return self.model.bert

    module = Backbone()
    with pytest.raises(UnsupportedCallbackError, match=r"unfreeze_every_n_epochs.*BaseFinetuning"):
        tiny.fit(module, BackboneFinetuning(unfreeze_backbone_at_epoch=1), layerwise())


def test_unfreezing_beside_the_callbacks_own_unfreezing_is_refused() -> None:
    both = LayerwiseLR(DISTRIBUTION, unfreeze_every_n_epochs=1, verbose=False)
    with pytest.raises(UnsupportedCallbackError, match="UnfreezeAtOne and LayerwiseLR's own unfreezing"):
        tiny.fit(Module(), UnfreezeAtOne(), both)


def test_a_subclass_of_backbone_finetuning_with_a_schedule_of_its_own_is_not() -> None:
    class Own(BackboneFinetuning):
        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)

    class Backbone(Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = self.model.bert

    run = tiny.fit(Backbone(), Own(), layerwise(), max_epochs=2)
    assert rates_of(run) == {**tiny.RATES, "head/2": 7e-3}


def test_parameters_that_were_unfrozen_but_not_added_are_named() -> None:
    class Forgetful(UnfreezeAtOne):
        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                layers = pl_module.model.bert.encoder.layer
                self.make_trainable(layers)
                optimizer.add_param_group({"params": list(layers[2].parameters())})

    with pytest.warns(UserWarning, match=r"32 trainable.*layer\.0\.attention\.self\.query\.weight.*not added"):
        tiny.fit(Module(), Forgetful(), layerwise(), max_epochs=2)


def test_parameters_of_another_model_that_are_added_are_refused() -> None:
    class Strange(Module):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.optimizers().optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, 5))]})

    recorder = tiny.Recorder()
    with pytest.raises(OptimizerCoverageError, match=r"without a depth: \(not in the module, shape \(3, 5\)\)"):
        tiny.fit(Strange(), layerwise(), recorder, max_epochs=2)
    assert len(recorder.rates["head"]) == 8


def test_a_group_added_with_the_rate_zero_is_refused_under_a_relative_distribution() -> None:
    with pytest.raises(ZeroRateError, match="0 in a parameter group that was added to SGD"):
        tiny.fit(Module(), UnfreezeAtOne(lr=0.0), layerwise(RELATIVE), max_epochs=2)


def test_resuming_a_run_that_unfroze_with_base_finetuning_is_refused(tmp_path: Path) -> None:
    run = tiny.fit(Module(), UnfreezeAtOne(), layerwise(), max_epochs=2)
    run.save_checkpoint(tmp_path / "a.ckpt")
    recorder = tiny.Recorder()
    with pytest.raises(ResumeMismatchError, match="UnfreezeAtOne cannot be resumed"):
        tiny.fit(Module(), UnfreezeAtOne(), layerwise(), recorder, ckpt=tmp_path / "a.ckpt", max_epochs=3)
    assert recorder.steps == []


def test_resuming_a_run_to_which_the_module_had_added_groups_is_refused(tmp_path: Path) -> None:
    class Adding(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.model.classifier.parameters(), lr=1e-2)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.model.bert.requires_grad_(True)
                self.optimizers().optimizer.add_param_group({"params": list(self.model.bert.parameters())})

    def fresh() -> Adding:
        module = Adding()
        module.model.bert.requires_grad_(False)
        return module

    run = tiny.fit(fresh(), layerwise(), max_epochs=2)
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ResumeMismatchError, match=r"groups = \['head', 'embeddings'"):
        tiny.fit(fresh(), layerwise(), ckpt=tmp_path / "a.ckpt", max_epochs=3)
