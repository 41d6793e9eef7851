"""`LayerwiseTrainerMixin` under transformers' Trainer: rates, optimizers, schedules, logs, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_trainer import (
    BASE,
    LINEAR,
    LayerwiseTrainer,
    Scores,
    arguments,
    assert_rates,
    built,
    layerwise,
    plain,
    plateau,
    rows,
)
from transformers import Trainer, get_cosine_schedule_with_warmup, optimization
from transformers.optimization import Adafactor
from transformers.trainer_utils import SchedulerType

from lr_dist import LayerwiseTrainerMixin, LRDistribution, param_groups
from lr_dist.errors import (
    InvalidDistributionError,
    LostStepsWarning,
    NothingToTrainError,
    OptimizerCoverageError,
    RateRangeWarning,
    UnknownPresetError,
    UnplacedParametersError,
    UnsupportedOptimizerError,
    UnsupportedSchedulerError,
    UnsupportedStrategyError,
    UnsupportedTrainerError,
    ZeroRateError,
)
from lr_dist.search import Space

# Nothing here may be said to leave the distribution.
pytestmark = pytest.mark.filterwarnings("error::lr_dist.errors.RatesOffPlanWarning")


def assert_equal_weights(left: torch.nn.Module, right: torch.nn.Module) -> None:
    for (name, ours), theirs in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


# Rates ---------------------------------------------------------------------------------------------------


def test_every_layer_has_its_rate_times_the_factor_of_the_trainers_schedule(tmp_path: Path) -> None:
    model = tiny.bert()
    before = tiny.weights(model)
    trainer, rates = layerwise(tmp_path, model=model, weight_decay=0.01)
    trainer.train()
    assert_rates(rates.seen, tiny.RATES, LINEAR)
    assert list(rates.seen[0]) == [f"{name}{end}" for name in tiny.RATES for end in ("", "/no_decay")]

    def moved(part: str) -> float:
        return max((p - before[n]).abs().max().item() for n, p in model.named_parameters() if part in n)

    # One step of Adam moves a weight by about its rate; the factors of the five steps add up to 2.5.
    assert 0.5 < moved("embeddings") / (2.5 * 1e-5) < 1.5
    assert 0.5 < moved("encoder.layer.0.") / (2.5 * 3e-5) < 1.5
    assert 0.5 < moved("encoder.layer.1.") / (2.5 * 2e-4) < 1.5
    assert 0.5 < moved("encoder.layer.2.") / (2.5 * 5e-4) < 1.5
    assert 0.5 < moved("classifier") / (2.5 * 7e-3) < 1.5


def test_a_relative_distribution_multiplies_the_learning_rate_of_the_arguments(tmp_path: Path) -> None:
    trainer, rates = layerwise(tmp_path, "decay:lr=2,factor=0.5,relative=true", learning_rate=1e-4)
    trainer.train()
    expected = {"embeddings": 2, "layers.0": 4, "layers.1": 8, "layers.2": 16, "head": 32}
    assert_rates(rates.seen, {name: 2e-4 * share / 32 for name, share in expected.items()}, LINEAR)


def test_weight_decay_falls_on_the_parameters_that_the_trainer_names(tmp_path: Path) -> None:
    trainer, _ = layerwise(tmp_path, weight_decay=0.1)
    trainer.create_optimizer_and_scheduler(5)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    groups = {group["name"]: group for group in trainer.optimizer.param_groups}
    decayed = {names[id(p)] for group in groups.values() if group["weight_decay"] == 0.1 for p in group["params"]}
    assert decayed == set(Trainer.get_decay_parameter_names(trainer, trainer.model))
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(held) == sorted(names)
    assert groups["layers.1/no_decay"]["weight_decay"] == 0
    assert "bert.embeddings.LayerNorm.weight" in {names[id(p)] for p in groups["embeddings/no_decay"]["params"]}


def test_without_weight_decay_each_layer_is_one_group(tmp_path: Path) -> None:
    trainer, rates = layerwise(tmp_path)
    trainer.train()
    assert list(rates.seen[0]) == list(tiny.RATES)


def test_a_rate_of_zero_freezes_the_layer_and_leaves_it_out_of_the_optimizer(tmp_path: Path) -> None:
    model = tiny.bert()
    before = tiny.weights(model)
    frozen = LRDistribution.from_dict(tiny.EXPLICIT).freeze("embeddings").freeze("layers.1")
    trainer, rates = layerwise(tmp_path, frozen, model=model, weight_decay=0.1)
    trainer.train()
    kept = {name: rate for name, rate in tiny.RATES.items() if name not in ("embeddings", "layers.1")}
    assert_rates(rates.seen, kept, LINEAR)
    for name, parameter in model.named_parameters():
        still = "embeddings" in name or "encoder.layer.1." in name
        assert parameter.requires_grad is not still
        assert torch.equal(parameter, before[name]) is still, name


def test_overrides_place_parameters(tmp_path: Path) -> None:
    trainer, _ = layerwise(tmp_path, layerwise_overrides={"pooler": "layers.2"})
    trainer.create_optimizer_and_scheduler(5)
    groups = {group["name"]: group for group in trainer.optimizer.param_groups}
    assert any(p is trainer.model.bert.pooler.dense.weight for p in groups["layers.2"]["params"])
    assert len(groups["head"]["params"]) == 2


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_flat_distribution_of_factor_one_changes_no_bit(weight_decay: float, tmp_path: Path) -> None:
    flat = "flat:lr=1,relative=true"
    with_mixin, _ = layerwise(tmp_path, flat, model=tiny.bert(dropout=0.1), weight_decay=weight_decay)
    with_mixin.train()
    # The Trainer sets the seed when it is made, and dropout draws from it.
    without, _ = plain(tmp_path, model=tiny.bert(dropout=0.1), weight_decay=weight_decay)
    without.train()
    assert_equal_weights(with_mixin.model, without.model)
    shared = {"loss", "grad_norm", "learning_rate", "step", "epoch"}
    ours = [{key: log[key] for key in shared} for log in with_mixin.state.log_history if "loss" in log]
    assert ours == [{key: log[key] for key in shared} for log in without.state.log_history if "loss" in log]


# Optimizers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"])
def test_each_optimizer_of_the_arguments_equals_its_flat_run_and_takes_rates(name: str, tmp_path: Path) -> None:
    flat, _ = layerwise(tmp_path, "flat:lr=1,relative=true", optim=name, weight_decay=0.1)
    without, _ = plain(tmp_path, optim=name, weight_decay=0.1)
    apart, rates = layerwise(tmp_path, optim=name, weight_decay=0.1)
    for trainer in (flat, without, apart):
        trainer.train()
    assert_equal_weights(flat.model, without.model)
    assert_rates(rates.seen, tiny.RATES, LINEAR)
    assert not torch.equal(apart.model.classifier.weight, without.model.classifier.weight)


def test_options_of_the_arguments_reach_every_group(tmp_path: Path) -> None:
    trainer, _ = layerwise(tmp_path, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    trainer.create_optimizer_and_scheduler(5)
    assert len(trainer.optimizer.param_groups) == 5
    assert {(group["betas"], group["eps"]) for group in trainer.optimizer.param_groups} == {((0.8, 0.95), 1e-6)}


def test_an_optimizer_class_given_to_the_trainer_is_used(tmp_path: Path) -> None:
    choice = (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9})
    trainer, rates = layerwise(tmp_path, "decay:lr=1,factor=0.5,relative=true", optimizer_cls_and_kwargs=choice)
    trainer.train()
    assert {group["momentum"] for group in trainer.optimizer.param_groups} == {0.9}
    shares = {"embeddings": 1 / 16, "layers.0": 1 / 8, "layers.1": 1 / 4, "layers.2": 1 / 2, "head": 1}
    assert_rates(rates.seen, {name: 1e-2 * share for name, share in shares.items()}, LINEAR)


def test_an_optimizer_and_a_schedule_given_to_the_trainer_are_split_in_place(tmp_path: Path) -> None:
    model = tiny.bert()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.3}, {"params": rest}], lr=BASE, weight_decay=0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, 5)
    trainer, rates = layerwise(tmp_path, model=model, optimizers=(optimizer, schedule))
    trainer.train()
    # Warm-up over one step, then a half cosine over four.
    assert_rates(rates.seen, tiny.RATES, [0, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert trainer.optimizer.optimizer is optimizer
    assert {group["name"]: group["weight_decay"] for group in optimizer.param_groups}["layers.0"] == 0.3


def test_frozen_parameters_in_an_optimizer_given_to_the_trainer_stay_where_they_are(tmp_path: Path) -> None:
    model = tiny.bert()
    before = tiny.weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=BASE)
    frozen = LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0")
    trainer, rates = layerwise(tmp_path, frozen, model=model, optimizers=(optimizer, None))
    trainer.train()
    assert_rates(rates.seen, {**tiny.RATES, "layers.0": 0.0}, LINEAR)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(model.get_parameter(name), before[name])


def test_groups_of_param_groups_keep_their_rates_under_the_trainer_without_the_mixin(tmp_path: Path) -> None:
    model = tiny.bert()
    frozen = LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0")
    optimizer = torch.optim.AdamW(param_groups(model, frozen, weight_decay=0.01))
    before = tiny.weights(model)
    trainer, rates = plain(tmp_path, model=model, optimizers=(optimizer, None))
    trainer.train()
    assert_rates(rates.seen, {name: rate for name, rate in tiny.RATES.items() if name != "layers.0"}, LINEAR)
    assert list(rates.seen[0])[:2] == ["embeddings", "embeddings/no_decay"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) is ("encoder.layer.0." in name), name


def test_groups_of_param_groups_keep_their_names_and_get_the_rates_of_the_mixin(tmp_path: Path) -> None:
    model = tiny.bert()
    optimizer = torch.optim.AdamW(param_groups(model, "flat:lr=1e-3", weight_decay=0.1))
    trainer, rates = layerwise(tmp_path, model=model, optimizers=(optimizer, None))
    trainer.train()
    assert_rates(rates.seen, tiny.RATES, LINEAR)


# Schedules -----------------------------------------------------------------------------------------------

SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"lr_end": BASE / 20, "power": 2.0},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr": BASE / 10},
    "cosine_warmup_with_min_lr": {"min_lr": BASE / 10, "warmup_lr_rate": 0.3},
    "warmup_stable_decay": {"num_decay_steps": 3, "min_lr_ratio": 0.1},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_of_the_arguments_keeps_the_ratios_at_every_step(name: str, tmp_path: Path) -> None:
    options = {"lr_scheduler_type": name, "lr_scheduler_kwargs": SCHEDULES[name], "max_steps": 9}
    flat, flat_rates = plain(tmp_path, **options)
    apart, rates = layerwise(tmp_path, **options)
    flat.train()
    apart.train()
    factors = [at_step["0"] / BASE for at_step in flat_rates.seen]
    assert len(set(factors)) > 1 or name == "constant"
    assert_rates(rates.seen, tiny.RATES, factors)


def test_every_schedule_of_the_library_is_among_those_tested() -> None:
    assert {kind.value for kind in SchedulerType} == {*SCHEDULES, "reduce_lr_on_plateau", "greedy"}


def test_a_plateau_reduces_every_group_down_to_its_share_of_the_floor(tmp_path: Path) -> None:
    # The score gets worse three times, each time halving, until the floor of 0.3 of the rate.
    trainer, rates = layerwise(tmp_path, **plateau([0.9, 0.8, 0.7, 0.6, 0.5], min_lr=0.3 * BASE))
    trainer.train()
    assert_rates(rates.seen, tiny.RATES, [1, 1, 0.5, 0.3, 0.3])


def test_a_plateau_reduces_rates_so_small_that_torch_would_leave_them(tmp_path: Path) -> None:
    # torch ignores changes below 1e-8.
    trainer, rates = layerwise(tmp_path, "decay:lr=1e-3,factor=0.01", **plateau([0.9, 0.8, 0.7]))
    trainer.train()
    assert rates.seen[-1]["embeddings"] == pytest.approx(0.5e-11, rel=1e-9, abs=0)


def test_the_greedy_schedule_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    if not hasattr(optimization, "GreedyLR"):
        pytest.skip("this transformers has no greedy schedule")
    greedy = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_dataset": rows(4, seed=1),
        "metric_for_best_model": "score",
        "lr_scheduler_type": "greedy",
        "lr_scheduler_kwargs": {"mode": "max", "factor": 0.5, "patience": 0, "min_lr": BASE / 8},
        "weight_decay": 0.1,
    }
    refused, rates = layerwise(tmp_path, compute_metrics=Scores([0.9] * 5), **greedy)
    with pytest.raises(UnsupportedSchedulerError, match=r"GreedyLR.*layerwise_allow_schedulers"):
        refused.train()
    assert rates.seen == []
    scores = Scores([0.9, 0.8, 0.7, 0.6, 0.5])
    allowed, rates = layerwise(
        tmp_path, compute_metrics=scores, layerwise_allow_schedulers=[optimization.GreedyLR], **greedy
    )
    allowed.train()
    # The first score is the best so far, so greedily the rate doubles; then it halves down to the floor.
    assert_rates(rates.seen, tiny.RATES, [1, 2, 1, 0.5, 0.25])


# Steps ---------------------------------------------------------------------------------------------------


def test_accumulated_gradients_take_one_rate_a_step_and_equal_the_larger_batch(tmp_path: Path) -> None:
    # SGD without clipping, because both hide a gradient of the wrong size.
    same = {"train_sampling_strategy": "sequential", "optim": "sgd", "max_grad_norm": 0.0}
    small, small_rates = layerwise(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **same)
    large, large_rates = layerwise(tmp_path, per_device_train_batch_size=8, **same)
    for trainer in (small, large):
        # The Trainer believes that the loss averages over all items of a step, which BERT's for classes does not.
        trainer.model_accepts_loss_kwargs = False
        trainer.train()
    assert_rates(small_rates.seen, tiny.RATES, LINEAR)
    assert small_rates.seen == large_rates.seen
    for (name, ours), theirs in zip(small.model.named_parameters(), large.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7), name


def test_activation_checkpointing_changes_no_bit(tmp_path: Path) -> None:
    frozen = LRDistribution.from_dict(tiny.EXPLICIT).freeze("embeddings", "layers.0")
    kept, _ = layerwise(tmp_path, frozen)
    recomputed, rates = layerwise(tmp_path, frozen, activation_checkpointing=True)
    kept.train()
    recomputed.train()
    assert set(rates.seen[0]) == {"layers.1", "layers.2", "head"}
    assert_equal_weights(kept.model, recomputed.model)


def test_mixed_precision_keeps_the_rates(tmp_path: Path) -> None:
    trainer, rates = layerwise(tmp_path, bf16=True)
    trainer.train()
    assert_rates(rates.seen, tiny.RATES, LINEAR)


def test_a_search_for_the_batch_size_begins_anew_with_the_same_rates(tmp_path: Path) -> None:
    model = tiny.bert()
    sizes: list[int] = []

    def with_little_memory(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 6 and len(sizes) > 2:
            raise RuntimeError("CUDA out of memory.")

    model.register_forward_pre_hook(with_little_memory, with_kwargs=True)
    options = {"auto_find_batch_size": True, "per_device_train_batch_size": 8, "weight_decay": 0.1}
    trainer, rates = layerwise(tmp_path, "decay:lr=1,factor=0.5,relative=true", model=model, **options)
    trainer.train()
    assert sizes[:3] == [8, 8, 8]
    assert max(sizes[3:]) < 8
    shares = {"embeddings": 1 / 16, "layers.0": 1 / 8, "layers.1": 1 / 4, "layers.2": 1 / 2, "head": 1}
    assert_rates(rates.seen, {name: BASE * share for name, share in shares.items()}, [0, 1 / 2, *LINEAR])


def test_the_log_shows_the_rate_of_every_layer_in_the_step_beside_the_usual_one(tmp_path: Path) -> None:
    trainer, rates = layerwise(tmp_path, weight_decay=0.1, max_grad_norm=0.5)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == len(rates.seen) == 5
    for log, seen in zip(logs, rates.seen, strict=True):
        shown = {key: value for key, value in log.items() if key.startswith("learning_rate/")}
        assert shown == {f"learning_rate/{name}": seen[name] for name in tiny.RATES}
        assert log["learning_rate"] == seen["embeddings"]


def test_the_log_shows_each_group_of_a_layer_whose_groups_have_different_rates(tmp_path: Path) -> None:
    model = tiny.bert()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "lr": 1e-5}], lr=1e-4)
    optimizer.param_groups[1]["weight_decay"] = 0.0
    trainer, _ = layerwise(
        tmp_path, "flat:lr=2,relative=true", model=model, optimizers=(optimizer, None), lr_scheduler_type="constant"
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["learning_rate/layers.0"] == pytest.approx(2e-4)
    assert log["learning_rate/layers.0/no_decay"] == pytest.approx(2e-5)


def test_the_table_of_rates_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, _ = built(LayerwiseTrainer, tmp_path, layerwise_lr=tiny.EXPLICIT, max_steps=1)
    trainer.train()
    trainer.train()
    lines = capsys.readouterr().out.splitlines()
    assert "optimizer lr 2e-3 -> replaced by 1e-5 to 7e-3" in lines
    rows = [line.split() for line in lines if line.split() and line.split()[0] in tiny.RATES]
    assert [(name, float(rate)) for name, rate, *_ in rows] == list(tiny.RATES.items())


# A trainer's life ----------------------------------------------------------------------------------------


def test_training_again_goes_on_with_the_same_rates(tmp_path: Path) -> None:
    trainer, rates = layerwise(tmp_path, "decay:lr=1,factor=0.5,relative=true", weight_decay=0.1)
    without, _ = plain(tmp_path, weight_decay=0.1)
    for own in (trainer, without):
        own.train()
        own.train()
    shares = {"embeddings": 1 / 16, "layers.0": 1 / 8, "layers.1": 1 / 4, "layers.2": 1 / 2, "head": 1}
    assert_rates(rates.seen, {name: BASE * share for name, share in shares.items()}, LINEAR * 2)
    flat, _ = layerwise(tmp_path, "flat:lr=1,relative=true", weight_decay=0.1)
    flat.train()
    flat.train()
    assert_equal_weights(flat.model, without.model)


def test_training_again_under_a_plateau_reduces_on_from_where_it_was(tmp_path: Path) -> None:
    trainer, rates = layerwise(
        tmp_path, "decay:lr=1,factor=0.5,relative=true", **plateau([0.9, 0.8, 0.7], min_lr=BASE / 10)
    )
    trainer.train()
    trainer.compute_metrics.left = [0.9, 0.8, 0.7]
    trainer.train()
    flat, flat_rates = plain(tmp_path, **plateau([0.9, 0.8, 0.7], min_lr=BASE / 10))
    flat.train()
    flat.compute_metrics.left = [0.9, 0.8, 0.7]
    flat.train()
    factors = [at_step["0"] / BASE for at_step in flat_rates.seen]
    assert factors == pytest.approx([1, 1, 0.5, 0.25, 0.25, 0.125])
    shares = {"embeddings": 1 / 16, "layers.0": 1 / 8, "layers.1": 1 / 4, "layers.2": 1 / 2, "head": 1}
    assert_rates(rates.seen, {name: BASE * share for name, share in shares.items()}, factors)


def test_a_model_made_anew_in_each_trial_of_a_search_gets_the_trials_rates(tmp_path: Path) -> None:
    trainer, rates = layerwise(
        tmp_path,
        "decay:lr=1,factor=0.5,relative=true,freeze=layers.0",
        model_init=lambda: tiny.bert(),
        eval_strategy="epoch",
        eval_dataset=rows(4, seed=1),
        max_steps=-1,
        num_train_epochs=1,
        lr_scheduler_type="constant",
    )
    tried: list[float] = []

    def space(trial: Any) -> dict[str, float]:
        tried.append(trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True))
        return {"learning_rate": tried[-1]}

    best = trainer.hyperparameter_search(space, backend="optuna", n_trials=2, direction="minimize")
    assert best.objective > 0
    assert len(set(tried)) == 2
    assert len(rates.seen) == 12
    shares = {"embeddings": 1 / 16, "layers.1": 1 / 4, "layers.2": 1 / 2, "head": 1}
    for rate, seen in zip(tried, (rates.seen[0], rates.seen[6]), strict=True):
        assert seen == pytest.approx({name: rate * share for name, share in shares.items()})


def test_a_search_over_distributions_sets_them_with_the_model_of_each_trial(tmp_path: Path) -> None:
    space = Space("shape", low=1e-6, high=1e-2)
    tried: list[LRDistribution] = []

    def model_init(trial: Any = None) -> torch.nn.Module:
        if trial is not None:
            tried.append(space.suggest(trial))
            trainer.layerwise_lr = tried[-1]
        return tiny.bert()

    trainer, rates = layerwise(
        tmp_path,
        "flat:lr=1e-4,freeze=layers.0",
        model_init=model_init,
        eval_dataset=rows(4, seed=1),
        max_steps=2,
        lr_scheduler_type="constant",
        eval_strategy="epoch",
    )
    trainer.train()
    assert "layers.0" not in rates.seen[0]
    best = trainer.hyperparameter_search(lambda trial: {}, backend="optuna", n_trials=2, direction="minimize")
    for number, distribution in enumerate(tried):
        assert rates.seen[2 * (number + 1)] == pytest.approx(distribution.rates(tiny.LAYERS))
    assert len(rates.seen) == 6
    assert space.distribution(best.hyperparameters) == tried[int(best.run_id)]
    assert trainer.layerwise_lr == tried[-1]
    with pytest.raises(InvalidDistributionError):
        trainer.layerwise_lr = "flat:lr=-1"


def test_evaluating_and_predicting_without_training_changes_nothing(tmp_path: Path) -> None:
    model = tiny.bert()
    frozen = LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0")
    trainer, rates = layerwise(tmp_path, frozen, model=model, eval_dataset=rows(4, seed=1))
    without, _ = plain(tmp_path, model=tiny.bert(), eval_dataset=rows(4, seed=1))
    assert trainer.evaluate()["eval_loss"] == without.evaluate()["eval_loss"]
    assert trainer.predict(rows(4, seed=1)).predictions.shape == (4, 2)
    assert all(p.requires_grad for p in model.parameters())
    trainer.train()
    assert len(rates.seen) == 5


# Refused -------------------------------------------------------------------------------------------------


def refused_in_training(error: type[Exception], match: str, trainer: Any, rates: Any) -> None:
    with pytest.raises(error, match=match):
        trainer.train()
    assert rates.seen == []


def test_a_distribution_that_is_none_is_refused_when_the_trainer_is_made(tmp_path: Path) -> None:
    with pytest.raises(UnknownPresetError, match="kenneweg1999"):
        layerwise(tmp_path, "kenneweg1999")
    with pytest.raises(InvalidDistributionError, match="flatt"):
        layerwise(tmp_path, "flatt:lr=1")


def test_a_class_without_a_trainer_or_with_the_mixin_behind_it_is_refused() -> None:
    class NoTrainer(LayerwiseTrainerMixin): ...

    with pytest.raises(UnsupportedTrainerError, match=r"NoTrainer\(LayerwiseTrainerMixin, Trainer\)"):
        NoTrainer(layerwise_lr="flat:lr=1")
    with pytest.raises(UnsupportedTrainerError, match=r"Behind\(LayerwiseTrainerMixin, Trainer\)"):

        class Behind(Trainer, LayerwiseTrainerMixin): ...


def test_a_trainer_that_makes_its_schedule_behind_the_mixins_back_is_refused(tmp_path: Path) -> None:
    class Own(LayerwiseTrainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer)
            return self.lr_scheduler

    trainer, rates = built(Own, tmp_path, layerwise_lr=tiny.EXPLICIT)
    refused_in_training(UnsupportedTrainerError, r"AdamW.*super\(\)\.create_scheduler", trainer, rates)


def test_a_trainer_that_makes_its_own_optimizer_and_calls_super_gets_the_rates(tmp_path: Path) -> None:
    class Own(LayerwiseTrainer):
        def create_optimizer(self, model: Any = None) -> Any:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-2)
            return super().create_optimizer(model)

    trainer, rates = built(Own, tmp_path, layerwise_lr=tiny.EXPLICIT, layerwise_verbose=False)
    trainer.train()
    assert_rates(rates.seen, tiny.RATES, LINEAR)


@pytest.mark.parametrize("name", ["galore_adamw_layerwise", "apollo_adamw_layerwise", "lomo", "adalomo"])
def test_optimizers_without_groups_are_refused_when_the_trainer_is_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOptimizerError, match=name):
        layerwise(tmp_path, optim=name, optim_target_modules=["query"])


def test_adafactor_that_sets_its_own_rate_is_refused(tmp_path: Path) -> None:
    model = tiny.bert()
    optimizer = Adafactor(model.parameters(), lr=None, relative_step=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD(model.parameters(), lr=1.0), lambda step: 1.0)
    trainer, rates = layerwise(tmp_path, model=model, optimizers=(optimizer, schedule))
    refused_in_training(UnsupportedOptimizerError, "relative_step=False", trainer, rates)


def test_lbfgs_is_refused(tmp_path: Path) -> None:
    model = tiny.bert()
    trainer, rates = layerwise(tmp_path, model=model, optimizers=(torch.optim.LBFGS(model.parameters()), None))
    refused_in_training(UnsupportedOptimizerError, "LBFGS", trainer, rates)


class MuonAndAdamW(torch.optim.Optimizer):
    """Matrices to Muon, the rest to AdamW: the composite that the Trainer's optimizer factories return."""

    def __init__(self, model: torch.nn.Module, lr: float) -> None:
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "encoder" in n]
        others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
        self.parts = [torch.optim.Muon(matrices, lr=lr), torch.optim.AdamW(others, lr=lr)]
        super().__init__([{"params": matrices}, {"params": others}], {"lr": lr})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:
        for part in self.parts:
            part.step()


class MuonFactory:
    def __call__(self, model: torch.nn.Module, **kwargs: Any) -> torch.optim.Optimizer:
        return MuonAndAdamW(model, **kwargs)


def test_a_composite_whose_parts_have_groups_of_their_own_is_refused(tmp_path: Path) -> None:
    trainer, rates = layerwise(tmp_path, optimizer_cls_and_kwargs=(MuonFactory, {"lr": 1e-3}))
    refused_in_training(UnsupportedOptimizerError, r"MuonAndAdamW.*Muon, AdamW", trainer, rates)


def test_an_optimizer_that_misses_layers_is_refused(tmp_path: Path) -> None:
    model = tiny.bert()
    some = [p for n, p in model.named_parameters() if "encoder.layer.1." not in n]
    trainer, rates = layerwise(tmp_path, model=model, optimizers=(torch.optim.AdamW(some), None))
    refused_in_training(OptimizerCoverageError, r"AdamW.*16 trainable.*encoder\.layer\.1\.", trainer, rates)


def test_an_optimizer_with_parameters_of_another_model_is_refused(tmp_path: Path) -> None:
    model = tiny.bert()
    strange = [*model.parameters(), torch.nn.Parameter(torch.zeros(3))]
    trainer, rates = layerwise(tmp_path, model=model, optimizers=(torch.optim.AdamW(strange), None))
    refused_in_training(OptimizerCoverageError, "not in the module", trainer, rates)


def test_freezing_everything_is_refused(tmp_path: Path) -> None:
    trainer, rates = layerwise(tmp_path, "flat:lr=1e-3,freeze=embeddings..head")
    refused_in_training(NothingToTrainError, "BertForSequenceClassification", trainer, rates)


def test_a_learning_rate_of_zero_is_refused(tmp_path: Path) -> None:
    trainer, rates = layerwise(tmp_path, "flat:lr=1,relative=true", learning_rate=0.0)
    refused_in_training(ZeroRateError, "rate", trainer, rates)


def test_parameters_without_a_place_are_refused(tmp_path: Path) -> None:
    model = tiny.bert()
    model.extra = torch.nn.Parameter(torch.zeros(3))
    trainer, rates = layerwise(tmp_path, model=model)
    refused_in_training(UnplacedParametersError, r"extra.*overrides", trainer, rates)


def test_deepspeed_and_fsdp_without_original_parameters_are_refused(tmp_path: Path) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin

    # DeepSpeed needs a GPU and FSDP under accelerate too: the flags are set as the Trainer sets them there.
    trainer, rates = layerwise(tmp_path)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(UnsupportedStrategyError, match="DDP or FSDP"):
        trainer.create_optimizer()
    trainer.is_deepspeed_enabled, trainer.is_fsdp_enabled = False, True
    state = trainer.accelerator.state
    try:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1, use_orig_params=False)
        with pytest.raises(UnsupportedStrategyError, match="'use_orig_params': True"):
            trainer.create_optimizer()
        state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1, use_orig_params=True)
        assert isinstance(trainer.create_optimizer(), torch.optim.AdamW)
    finally:
        state.fsdp_plugin = None  # the state is one for all Trainers of a process
    assert rates.seen == []


def test_arguments_of_the_trainer_pass_through_in_their_places(tmp_path: Path) -> None:
    trainer = LayerwiseTrainer(tiny.bert(), arguments(tmp_path), None, rows(), layerwise_lr="flat:lr=1e-3")
    assert trainer.args.output_dir == str(tmp_path)
    assert len(trainer.train_dataset) == 24


# Doubtful rates ------------------------------------------------------------------------------------------


def test_doubtful_rates_are_told_once_with_the_trainers_own_rate(tmp_path: Path) -> None:
    options = {"learning_rate": 2e-5, "max_steps": 1}
    trainer, _ = layerwise(tmp_path, "decay:lr=4e-4,factor=0.7,relative=true", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            trainer.train()
    (found,) = [str(warning.message) for warning in caught if warning.category is RateRangeWarning]
    assert "4e-4 times 2e-5" in found


def test_a_model_in_bfloat16_is_told_of_steps_that_are_lost(tmp_path: Path) -> None:
    model = tiny.bert().bfloat16()
    trainer, _ = layerwise(tmp_path, "flat:lr=1e-5", model=model, max_steps=1)
    with pytest.warns(LostStepsWarning, match=r"in bfloat16.*dtype=torch\.float32"):
        trainer.train()
