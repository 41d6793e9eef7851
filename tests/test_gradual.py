"""Gradual unfreezing and warm-up by layer in real Trainers, against loops in plain torch and numbers by hand."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution, assign_layers, param_groups
from lr_dist.errors import InvalidScheduleError, ResumeMismatchError, UnsupportedOptimizerError

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)
LAYERS = list(tiny.RATES)
# All layers but the embeddings start within 8 steps.
STARTS = {"embeddings": 8, "layers.0": 6, "layers.1": 4, "layers.2": 2, "head": 0}


def layerwise(distribution: Any = DISTRIBUTION, **options: Any) -> LayerwiseLR:
    return LayerwiseLR(distribution, **{"verbose": False, **options})


def sgd(module: Any, **options: Any) -> Any:
    return torch.optim.SGD(module.parameters(), **{"lr": 1e-3, **options})


def adamw(module: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.5)


def scheduled(make: Callable[[Any], Any], schedule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def configure(module: Any) -> Any:
        optimizer = make(module)
        return [optimizer], [{"scheduler": schedule(optimizer), "interval": "step"}]

    return configure


def by_layer(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    parameters = dict(module.named_parameters())
    return {layer: [parameters[name] for name in names] for layer, names in assign_layers(module).groups.items()}


def assert_equal_weights(left: nn.Module, right: nn.Module) -> None:
    for (name, ours), theirs in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.fixture
def no_warnings_of_reach() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Training ends after")
        yield


pytestmark = pytest.mark.usefixtures("no_warnings_of_reach")


class Moves(L.Callback):
    """Which layers each step moved."""

    def __init__(self) -> None:
        self.moved: list[list[str]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.before = tiny.weights(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        names = {id(p): n for n, p in pl_module.named_parameters()}
        self.moved.append(
            [
                layer
                for layer, parameters in by_layer(pl_module).items()
                if any(not torch.equal(p, self.before[names[id(p)]]) for p in parameters)
            ]
        )


# What is trained -----------------------------------------------------------------------------------------


def test_every_n_steps_one_more_layer_moves_from_the_head_down() -> None:
    module, moves = tiny.Classifier(adamw), Moves()
    tiny.fit(module, layerwise(unfreeze_every_n_steps=2), moves)
    assert moves.moved == [LAYERS[-n:] for n in (1, 1, 2, 2, 3, 3, 4, 4)]


def test_every_n_epochs_one_more_layer_moves_from_the_head_down() -> None:
    module, moves = tiny.Classifier(adamw), Moves()
    tiny.fit(module, layerwise(unfreeze_every_n_epochs=2), moves, data=tiny.batches(1), max_epochs=7)
    assert moves.moved == [LAYERS[-n:] for n in (1, 1, 2, 2, 3, 3, 4)]


def test_a_layer_that_has_not_started_has_no_moments_and_no_weight_decay() -> None:
    module = tiny.Classifier(adamw)
    before = tiny.weights(module)
    run = tiny.fit(module, layerwise(unfreeze_every_n_steps=2))
    state = run.optimizers[0].state
    for layer, parameters in by_layer(module).items():
        # A layer's Adam has taken only the layer's own steps.
        steps = {float(state[p]["step"]) if state.get(p) else 0 for p in parameters}
        assert steps == {8 - STARTS[layer]}, layer
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) == ("embeddings" in name), name


def reference(
    optimizer_of: Callable[[Any], Any],
    factor: Callable[[str, int, int], float],
    *,
    accumulate: int,
    epochs: int,
    schedule: Callable[[Any], Any] | None = None,
) -> nn.Module:
    """Plain torch: rates are multiplied before a step and put back after it, gradients of factor 0 are dropped."""
    model = tiny.bert()
    groups = param_groups(model, DISTRIBUTION)
    for group in groups:
        del group["weight_decay"]
    optimizer = optimizer_of(groups)
    scheduler = schedule(optimizer) if schedule else None
    step = 0
    for epoch in range(epochs):
        for index, (tokens, labels) in enumerate(tiny.batches()):
            (model(input_ids=tokens, labels=labels).loss / accumulate).backward()
            if (index + 1) % accumulate:
                continue
            rates = [group["lr"] for group in optimizer.param_groups]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                value = factor(group["name"], step, epoch)
                group["lr"] = rate * value
                if value == 0:
                    for p in group["params"]:
                        p.grad = None
            optimizer.step()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            optimizer.zero_grad()
            step += 1
            if scheduler is not None:
                scheduler.step()
    return model


def every_3_steps(layer: str, step: int, epoch: int) -> float:
    return float(step >= 3 * (4 - LAYERS.index(layer)))


def every_epoch(layer: str, step: int, epoch: int) -> float:
    return float(epoch >= 4 - LAYERS.index(layer))


def warm_up_of_4_every_2_steps(layer: str, step: int, epoch: int) -> float:
    own = step - 2 * (4 - LAYERS.index(layer))
    return min(1.0, (own + 1) / 4) if own >= 0 else 0.0


def warm_up_by_depth(layer: str, step: int, epoch: int) -> float:
    return min(1.0, (step + 1) / (2 * (5 - LAYERS.index(layer))))  # 10, 8, 6, 4, 2 steps


RUNS: dict[str, tuple[dict[str, Any], Callable[[str, int, int], float]]] = {
    "every_n_steps": ({"unfreeze_every_n_steps": 3}, every_3_steps),
    "every_n_epochs": ({"unfreeze_every_n_epochs": 1}, every_epoch),
    "warm_up": ({"unfreeze_every_n_steps": 2, "layer_warmup_steps": 4}, warm_up_of_4_every_2_steps),
    "warm_up_by_depth": ({"layer_warmup_steps": {"embeddings": 10, "head": 2}}, warm_up_by_depth),
}


@pytest.mark.parametrize(("strategy", "accumulate"), [("auto", 1), ("auto", 2), ("ddp", 2)])
@pytest.mark.parametrize("name", RUNS)
def test_weights_equal_those_of_a_loop_in_plain_torch(name: str, accumulate: int, strategy: str) -> None:
    options, factor = RUNS[name]

    def schedule(optimizer: Any) -> Any:
        return sch.ExponentialLR(optimizer, 0.9)

    module = tiny.Classifier(scheduled(lambda m: sgd(m, momentum=0.9, weight_decay=0.1), schedule))
    tiny.fit(
        module,
        layerwise(**options),
        max_epochs=3,
        accumulate_grad_batches=accumulate,
        strategy=strategy,
        use_distributed_sampler=False,  # which would shuffle
    )
    theirs = reference(
        lambda groups: torch.optim.SGD(groups, momentum=0.9, weight_decay=0.1),
        factor,
        accumulate=accumulate,
        epochs=3,
        schedule=schedule,
    )
    for (parameter_name, ours), other in zip(module.model.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(ours, other, rtol=1e-5, atol=1e-8), parameter_name
    unmoved = tiny.bert()
    assert any(not torch.equal(a, b) for a, b in zip(theirs.parameters(), unmoved.parameters(), strict=True))


def test_the_steps_are_those_that_the_rates_say() -> None:
    class Movement(L.Callback):
        checked = 0

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.before = tiny.weights(pl_module)
            self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            step = trainer.global_step - 1
            layer = {id(p): g["name"] for g in trainer.optimizers[0].param_groups for p in g["params"]}
            for name, p in pl_module.named_parameters():
                own = step - 2 * (4 - LAYERS.index(layer[id(p)]))
                rate = tiny.RATES[layer[id(p)]] * min(1, (own + 1) / 3) * 0.5**step
                if own < 0:
                    assert name not in self.gradients
                    assert torch.equal(p, self.before[name])
                else:
                    moved = p - self.before[name]
                    assert torch.allclose(moved, -rate * self.gradients[name], rtol=1e-9, atol=1e-15), name
                    self.checked += 1

    movement = Movement()
    configure = scheduled(sgd, lambda o: sch.ExponentialLR(o, 0.5))
    callback = layerwise(unfreeze_every_n_steps=2, layer_warmup_steps=3)
    tiny.fit(tiny.Classifier(configure).double(), callback, movement)
    assert movement.checked == 8 * 4 + (6 + 4 + 2) * 16


def test_clipping_sees_the_gradients_of_started_layers_only() -> None:
    class Clipped(tiny.Classifier):
        norms: list[tuple[float, float]]

        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            started = by_layer(self)["head"] + (by_layer(self)["layers.2"] if self.global_step >= 3 else [])
            total = torch.nn.utils.clip_grad_norm_(self.parameters(), 1e9)
            self.norms.append((float(total), float(torch.stack([p.grad.norm() for p in started]).norm())))

    for strategy in ("auto", "ddp"):
        module = Clipped(adamw)
        module.norms = []
        tiny.fit(module, layerwise(unfreeze_every_n_steps=3), max_steps=6, strategy=strategy, gradient_clip_val=1e9)
        assert len(module.norms) == 6
        for total, started in module.norms:
            assert total == pytest.approx(started, rel=1e-6)


# What is computed ----------------------------------------------------------------------------------------


class Watched(tiny.Classifier):
    """Notes for each batch how many of the embeddings' and layers' outputs have a gradient to be computed."""

    def __init__(self, configure: Any, **options: Any) -> None:
        super().__init__(configure, **options)
        self.graphs: list[int] = []
        self.trainable: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        output = self.model(input_ids=batch[0], labels=batch[1], output_hidden_states=True)
        self.graphs.append(sum(hidden.requires_grad for hidden in output.hidden_states))
        self.trainable.append(sum(any(p.requires_grad for p in ps) for ps in by_layer(self).values()))
        return output.loss


def test_on_a_single_device_nothing_is_computed_below_the_lowest_started_layer() -> None:
    module = Watched(adamw)
    tiny.fit(module, layerwise(unfreeze_every_n_steps=2), max_epochs=2)
    # Outputs of embeddings and three layers.
    assert module.graphs == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4]
    assert module.trainable == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5]


def test_layers_are_switched_on_between_accumulation_windows_only() -> None:
    module = Watched(adamw)
    tiny.fit(module, layerwise(unfreeze_every_n_steps=1), accumulate_grad_batches=3)
    # Windows of 3, 3 and, at the end of the epoch, 2 batches.
    assert module.trainable == [1, 1, 1, 2, 2, 2, 3, 3]


def test_with_other_processes_gradients_are_computed_and_dropped() -> None:
    module, moves = Watched(adamw), Moves()
    tiny.fit(module, layerwise(unfreeze_every_n_steps=2), moves, strategy="ddp")
    assert module.trainable == [5] * 8
    assert moves.moved == [LAYERS[-n:] for n in (1, 1, 2, 2, 3, 3, 4, 4)]


@pytest.mark.parametrize("kind", ["checkpointed", "compiled"])
def test_where_switching_would_harm_gradients_are_dropped_instead(kind: str) -> None:
    module, moves = Watched(adamw), Moves()
    if kind == "checkpointed":
        module.model.gradient_checkpointing_enable()
    else:
        module.model.classifier = torch.compile(module.model.classifier, backend="eager")
    tiny.fit(module, layerwise(unfreeze_every_n_steps=2), moves)
    assert module.trainable == [5] * 8
    assert moves.moved == [LAYERS[-n:] for n in (1, 1, 2, 2, 3, 3, 4, 4)]


def test_the_module_is_left_as_it_was() -> None:
    module = tiny.Classifier(adamw)
    for p in module.model.bert.encoder.layer[1].parameters():
        p.requires_grad_(False)
    callback = layerwise(DISTRIBUTION.freeze("embeddings"), unfreeze_every_n_steps=3)
    run = tiny.fit(module, callback)
    trainable = {layer: {p.requires_grad for p in ps} for layer, ps in by_layer(module).items()}
    assert trainable == {
        "embeddings": {False},
        "layers.0": {True},
        "layers.1": {False},
        "layers.2": {True},
        "head": {True},
    }
    assert [type(c).__name__ for c in run.callbacks] == ["LayerwiseLR"]
    assert [group["lr"] for group in run.optimizers[0].param_groups] == [0.0, *list(tiny.RATES.values())[1:]]


def test_the_module_is_left_as_it_was_after_an_exception_too() -> None:
    class Failing(tiny.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if batch_idx == 3:
                raise ArithmeticError("on purpose")
            return super().training_step(batch, batch_idx)

    module, kept = Failing(adamw), tiny.Recorder()
    trainer = tiny.trainer(layerwise(unfreeze_every_n_steps=2, layer_warmup_steps=10), kept)
    with pytest.raises(ArithmeticError):
        trainer.fit(module, tiny.batches())
    assert all(p.requires_grad for p in module.parameters())
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == list(tiny.RATES.values())
    assert len(kept.rates["head"]) == 3
    # And it can be fitted again.
    moves = Moves()
    tiny.fit(tiny.Classifier(adamw), layerwise(unfreeze_every_n_steps=2), moves, max_steps=3)
    assert moves.moved == [["head"], ["head"], ["layers.2", "head"]]


def test_layers_that_never_train_take_no_turn() -> None:
    module, moves = tiny.Classifier(adamw), Moves()
    for p in module.model.bert.encoder.layer[0].parameters():
        p.requires_grad_(False)
    tiny.fit(module, layerwise(DISTRIBUTION.freeze("layers.2"), unfreeze_every_n_steps=2), moves)
    assert moves.moved == [["head"]] * 2 + [["layers.1", "head"]] * 2 + [["embeddings", "layers.1", "head"]] * 4


# Rates that others see -----------------------------------------------------------------------------------


def logged(folder: Path, layer: str) -> list[float]:
    with next(folder.rglob("metrics.csv")).open() as file:
        return [float(row[f"lr-SGD/{layer}"]) for row in csv.DictReader(file) if row.get(f"lr-SGD/{layer}")]


@pytest.mark.parametrize("monitor_first", [False, True])
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_the_monitor_shows_what_the_next_step_will_use(tmp_path: Path, monitor_first: bool, interval: Any) -> None:
    configure = scheduled(sgd, lambda o: sch.ExponentialLR(o, 0.5))
    callbacks = [layerwise(unfreeze_every_n_steps=2, layer_warmup_steps=2), LearningRateMonitor(interval)]
    tiny.fit(
        tiny.Classifier(configure),
        *(callbacks[::-1] if monitor_first else callbacks),
        data=tiny.batches(8 if interval == "step" else 1),
        max_epochs=1 if interval == "step" else 8,
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
    )
    for layer, rate in tiny.RATES.items():
        factors = [0 if t < STARTS[layer] else min(1, (t - STARTS[layer] + 1) / 2) for t in range(8)]
        expected = [rate * factor * 0.5**t for t, factor in enumerate(factors)]
        assert logged(tmp_path, layer) == pytest.approx(expected, rel=1e-9), layer


class Between(L.Callback):
    """The rates that anybody sees who looks between two steps."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def _note(self, trainer: Any) -> None:
        self.rates.append([float(group["lr"]) for group in trainer.optimizers[0].param_groups])

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self._note(trainer)

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self._note(trainer)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "one_cycle": lambda o: sch.OneCycleLR(o, 1e-3, total_steps=20),
    "exponential": lambda o: sch.ExponentialLR(o, 0.8),
    "cyclic": lambda o: sch.CyclicLR(o, 1e-4, 1e-3, step_size_up=3),
    "chained": lambda o: sch.ChainedScheduler([sch.ConstantLR(o, 0.5, 3), sch.CosineAnnealingLR(o, 9, 1e-4)], o),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_run_as_without_the_options(name: str) -> None:
    rates = []
    for options in ({}, {"unfreeze_every_n_steps": 3, "layer_warmup_steps": 5}):
        between = Between()
        module = tiny.Classifier(scheduled(lambda m: sgd(m, momentum=0.9), SCHEDULES[name]))
        tiny.fit(module, layerwise(**options), between, max_epochs=2, accumulate_grad_batches=2)
        rates.append(between.rates)
    assert rates[0] == rates[1]
    assert len({row[-1] for row in rates[0]}) > 4


def test_a_plateau_that_steps_between_batches_runs_as_without_the_options() -> None:
    rates = []
    for options in ({}, {"unfreeze_every_n_steps": 3, "layer_warmup_steps": 5}):
        between = Between()

        def configure(module: Any) -> Any:
            optimizer = sgd(module)
            plateau = sch.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plateau, "monitor": "score", "interval": "step"},
            }

        class Scored(tiny.Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
                self.log("score", 1.0)
                return super().training_step(batch, batch_idx)

        tiny.fit(Scored(configure), layerwise(**options), between)
        rates.append(between.rates)
    assert rates[0] == rates[1]
    assert rates[0][-1][-1] == pytest.approx(7e-3 / 2**7)


def test_the_table_shows_when_each_layer_starts(capsys: pytest.CaptureFixture[str]) -> None:
    distribution = DISTRIBUTION.freeze("layers.1")
    options: dict[str, Any] = {"unfreeze_every_n_epochs": 2, "layer_warmup_steps": {"head": 0, "layers.2": 30}}
    tiny.fit(tiny.Classifier(adamw), LayerwiseLR(distribution, **options), max_steps=1)
    lines = capsys.readouterr().out.splitlines()
    for words in (
        ["embeddings", "epoch 6, warm-up 30"],
        ["layers.0", "epoch 4, warm-up 30"],
        ["layers.2", "epoch 2, warm-up 30"],
        ["head", "epoch 0 "],
    ):
        assert any(all(word in line for word in words) for line in lines), (words, lines)
    assert not any("layers.1" in line and "epoch" in line for line in lines)
    tiny.fit(tiny.Classifier(adamw), LayerwiseLR(DISTRIBUTION), max_steps=1)
    assert "starts" not in capsys.readouterr().out


# Steps that end too early --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fit", "match"),
    [
        ({"unfreeze_every_n_steps": 3}, {}, r"after step 7.*: embeddings \(step 12\), layers\.0 \(step 9\)\."),
        (
            {"unfreeze_every_n_steps": 2},
            {"max_steps": 6},
            r"after step 5.*embeddings \(step 8\), layers\.0 \(step 6\)\.",
        ),
        (
            {"unfreeze_every_n_steps": 1},
            {"accumulate_grad_batches": 3},
            r"after step 2.*embeddings \(step 4\), layers\.0 \(step 3\)\. .*every 1 step",
        ),
        ({"unfreeze_every_n_epochs": 1}, {"max_epochs": 4}, r"after epoch 3.*: embeddings \(epoch 4\)\."),
        ({"unfreeze_every_n_epochs": 2}, {"max_epochs": 9, "max_steps": 17}, r"after epoch 2.*layers\.1 \(epoch 4\)\."),
    ],
)
def test_layers_that_are_out_of_reach_are_named_in_a_warning(
    options: dict[str, Any], fit: dict[str, Any], match: str
) -> None:
    with pytest.warns(UserWarning, match=match):
        tiny.fit(tiny.Classifier(adamw), layerwise(**options), **fit)


@pytest.mark.parametrize(
    ("options", "fit"),
    [
        ({"unfreeze_every_n_steps": 2}, {"max_epochs": 2}),
        ({"unfreeze_every_n_epochs": 1}, {"max_epochs": 5}),
        ({"unfreeze_every_n_epochs": 1}, {"max_epochs": -1, "max_steps": 33}),
        ({"layer_warmup_steps": 100}, {}),
    ],
)
def test_layers_within_reach_are_no_warning(options: dict[str, Any], fit: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny.fit(tiny.Classifier(adamw), layerwise(**options), **fit)
    assert not [str(w.message) for w in caught if "Training ends" in str(w.message)]


# Company -------------------------------------------------------------------------------------------------


class TwoOptimizers(tiny.Classifier):
    """Two steps of a critic for each of the transformer's, stepped by hand; a transformer's step every other batch."""

    def __init__(self, *, wrapped: bool = True) -> None:
        super().__init__(None)
        self.automatic_optimization = False
        self.critic = nn.Linear(2, 1)
        self.wrapped = wrapped

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.critic.parameters(), lr=0.25), sgd(self.model)], []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        critic, transformer = self.optimizers(use_pl_optimizer=self.wrapped)
        for _ in range(2):
            output = self.model(input_ids=batch[0], labels=batch[1])
            self.manual_backward(output.loss + self.critic(output.logits).mean() ** 2)
            critic.step()
            critic.zero_grad()
        if batch_idx % 2:
            transformer.step()
            transformer.zero_grad()


def test_with_several_optimizers_the_steps_of_the_transformers_count() -> None:
    class Movement(L.Callback):
        def __init__(self) -> None:
            self.moved: list[list[str]] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.before = tiny.weights(pl_module.model)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            names = {id(p): n for n, p in pl_module.model.named_parameters()}
            groups = trainer.optimizers[1].param_groups
            self.moved.append(
                [g["name"] for g in groups if any(not torch.equal(p, self.before[names[id(p)]]) for p in g["params"])]
            )

    movement = Movement()
    run = tiny.fit(TwoOptimizers(), layerwise(unfreeze_every_n_steps=2), movement, max_steps=100)
    assert run.global_step == 16 + 4
    assert movement.moved == [[], ["head"], [], ["head"], [], ["layers.2", "head"], [], ["layers.2", "head"]]


def test_several_steps_in_one_batch_of_manual_optimization_count_each() -> None:
    class Often(TwoOptimizers):
        took_part: list[int]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            _, transformer = self.optimizers()
            layers = by_layer(self.model).values()
            for _ in range(4):
                output = self.model(input_ids=batch[0], labels=batch[1])
                self.manual_backward(output.loss + self.critic(output.logits).mean())
                transformer.step()
                self.took_part.append(sum(any(p.grad is not None for p in parameters) for parameters in layers))
                transformer.zero_grad()

    module, rates = Often(), tiny.Recorder()
    module.took_part = []
    tiny.fit(module, layerwise(unfreeze_every_n_steps=2), rates, max_steps=8)
    assert rates.rates["layers.2"] == [0, 0] + [5e-4] * 6
    assert rates.rates["layers.1"] == [0] * 4 + [2e-4] * 4
    assert rates.rates["embeddings"] == [0] * 8
    assert module.took_part == [1, 1, 2, 2, 3, 3, 4, 4]


def test_an_optimizer_that_is_stepped_behind_lightnings_back_is_refused() -> None:
    with pytest.raises(UnsupportedOptimizerError, match=r"SGD was stepped directly.*self\.optimizers\(\)"):
        tiny.fit(TwoOptimizers(wrapped=False), layerwise(unfreeze_every_n_steps=2))
    tiny.fit(TwoOptimizers(wrapped=False), layerwise())


def test_a_step_that_the_gradient_scaler_skips_counts_and_leaves_no_factor() -> None:
    class Overflowing(tiny.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if batch_idx == 1 else loss

    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))
    between, moves = Between(), Moves()
    module = Overflowing(scheduled(sgd, lambda o: sch.ExponentialLR(o, 0.5)))
    tiny.fit(
        module,
        layerwise(unfreeze_every_n_steps=2, layer_warmup_steps=2),
        between,
        moves,
        plugins=[precision],
        max_steps=4,
    )
    assert moves.moved == [["head"], [], ["layers.2", "head"], ["layers.2", "head"]]
    assert between.rates[0] == pytest.approx([rate / 2 for rate in tiny.RATES.values()], rel=1e-12)
    assert between.rates[1] == pytest.approx([rate / 4 for rate in tiny.RATES.values()], rel=1e-12)


def test_a_layer_that_the_model_lacks_is_refused_before_a_step() -> None:
    module = tiny.Classifier(adamw)
    before = tiny.weights(module)
    with pytest.raises(InvalidScheduleError, match=r"layers\.7, but the model has 3 layers"):
        tiny.fit(module, layerwise(layer_warmup_steps={"layers.7": 3}))
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())


def test_options_that_exclude_each_other_are_refused_at_once() -> None:
    with pytest.raises(InvalidScheduleError, match="exclude each other"):
        layerwise(unfreeze_every_n_epochs=1, unfreeze_every_n_steps=1)


# Fit again, and resume -----------------------------------------------------------------------------------


def test_a_second_fit_of_the_same_trainer_continues_and_one_of_another_starts_anew() -> None:
    module, moves = tiny.Classifier(adamw), Moves()
    callback = layerwise(unfreeze_every_n_steps=5)
    run = tiny.fit(module, callback, moves, max_steps=4)
    run.fit_loop.epoch_loop.max_steps = 6
    run.fit_loop.max_epochs = 5
    run.fit(module, tiny.batches())
    assert moves.moved == [["head"]] * 5 + [["layers.2", "head"]]
    tiny.fit(module, callback, moves, max_steps=1)
    assert moves.moved[-1] == ["head"]


def resumable(schedule: Callable[[Any], Any] = SCHEDULES["one_cycle"]) -> tiny.Classifier:
    return tiny.Classifier(scheduled(adamw, schedule), dropout=0.3)


def fit_resumable(module: Any, *callbacks: Any, **options: Any) -> Any:
    return tiny.fit(module, *callbacks, data=tiny.ShuffledBatches(6), max_epochs=3, **options)


OPTIONS: dict[str, dict[str, Any]] = {
    "steps": {"unfreeze_every_n_steps": 3, "layer_warmup_steps": 5},
    "epochs": {"unfreeze_every_n_epochs": 1, "layer_warmup_steps": {"head": 2, "embeddings": 9}},
}


@pytest.mark.parametrize("steps", [2, 3, 6, 7, 13])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_resumes_exactly_wherever_it_was_stopped(name: str, steps: int, tmp_path: Path) -> None:
    options = OPTIONS[name]
    whole, whole_rates = resumable(), tiny.Recorder()
    unbroken = fit_resumable(whole, layerwise(**options), whole_rates)

    saver = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=steps, save_top_k=-1)
    fit_resumable(resumable(), layerwise(**options), saver, max_steps=steps, enable_checkpointing=True)
    rest, rest_rates = resumable(), tiny.Recorder()
    resumed = fit_resumable(rest, layerwise(**options), rest_rates, ckpt=tmp_path / "stopped.ckpt", weights_only=True)

    assert resumed.global_step == 18
    assert {layer: rates[steps:] for layer, rates in whole_rates.rates.items()} == rest_rates.rates
    assert rest_rates.rates["head"][0] > 0
    assert len(set(rest_rates.rates["layers.1"])) > 4
    assert_equal_weights(whole, rest)
    left, right = (run.optimizers[0].state_dict() for run in (unbroken, resumed))
    assert left["param_groups"] == right["param_groups"]
    assert left["state"].keys() == right["state"].keys()
    for index, state in left["state"].items():
        assert all(torch.equal(value, right["state"][index][key]) for key, value in state.items())


def test_a_checkpoint_holds_the_rates_without_factors_and_plain_counts(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=4)
    module = tiny.Classifier(adamw)
    callback = layerwise(unfreeze_every_n_steps=3, layer_warmup_steps=50)
    tiny.fit(module, callback, saver, max_steps=4, enable_checkpointing=True)
    saved = torch.load(tmp_path / "stopped.ckpt", weights_only=True)
    assert [group["lr"] for group in saved["optimizer_states"][0]["param_groups"]] == list(tiny.RATES.values())
    state = saved["callbacks"]["LayerwiseLR"]
    assert state["gradual"] == {"steps": 4, "started": {"layers.2": 3, "head": 0}}
    assert state["schedule"] == {"every_n_epochs": None, "every_n_steps": 3, "warmup_steps": 50}
    assert set(saved["callbacks"]) == {"LayerwiseLR", saver.state_key}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"unfreeze_every_n_steps": 4},
        {"unfreeze_every_n_epochs": 3},
        {"unfreeze_every_n_steps": 3, "layer_warmup_steps": 2},
    ],
)
def test_resuming_with_other_options_raises(options: dict[str, Any], tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=2)
    first = layerwise(unfreeze_every_n_steps=3)
    tiny.fit(tiny.Classifier(adamw), first, saver, max_steps=2, enable_checkpointing=True)
    rates = tiny.Recorder()
    with pytest.raises(ResumeMismatchError, match=r"schedule by layer = .*'every_n_steps': 3.*this run has"):
        tiny.fit(tiny.Classifier(adamw), layerwise(**options), rates, ckpt=tmp_path / "stopped.ckpt")
    assert rates.rates == {}


def test_a_checkpoint_from_before_there_were_options_resumes_without_them(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=2)
    tiny.fit(tiny.Classifier(adamw), layerwise(), saver, max_steps=2, enable_checkpointing=True)
    saved = torch.load(tmp_path / "stopped.ckpt", weights_only=True)
    for key in ("schedule", "gradual"):
        del saved["callbacks"]["LayerwiseLR"][key]
    torch.save(saved, tmp_path / "old.ckpt")
    run = tiny.fit(tiny.Classifier(adamw), layerwise(), ckpt=tmp_path / "old.ckpt")
    assert run.global_step == 8
    with pytest.raises(ResumeMismatchError, match="schedule by layer = None"):
        tiny.fit(tiny.Classifier(adamw), layerwise(layer_warmup_steps=3), ckpt=tmp_path / "old.ckpt")
