"""Real runs of transformers' Trainer on the tiny model, and what is recorded in them."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import Trainer, TrainerCallback, TrainingArguments

from lr_dist import LayerwiseTrainerMixin

BASE = 2e-3
LINEAR = [0, 1 / 2, 1, 2 / 3, 1 / 3]  # two steps of warm-up, then to 0 at the fifth

# accelerate collects garbage in every `train`, which takes longer than the training where many modules are loaded.
gc.freeze()


class LayerwiseTrainer(LayerwiseTrainerMixin, Trainer):
    """What a user writes."""


class Rates(TrainerCallback):
    """The rates of all groups at each step, just before it is taken."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        groups = kwargs["optimizer"].param_groups
        self.seen.append({group.get("name", str(i)): float(group["lr"]) for i, group in enumerate(groups)})


def rows(count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """`count` texts of seven random tokens with labels that follow from the first."""
    return [{"input_ids": tokens[0], "labels": labels[0]} for tokens, labels in tiny.batches(count, size=1, seed=seed)]


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Five steps of four rows on the CPU, nothing written, the Trainer's own schedule over all five after two."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "learning_rate": BASE,
        "max_steps": 5,
        "warmup_steps": 2,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return TrainingArguments(**{**defaults, **options})


def layerwise(folder: Path, distribution: Any = tiny.EXPLICIT, **options: Any) -> tuple[LayerwiseTrainer, Rates]:
    """A Trainer with `distribution`, and the recorder of its rates.

    Keywords of the Trainer (`model`, `optimizers`, ...) and of the mixin go to the Trainer, all others to its
    TrainingArguments.
    """
    trainer, rates = built(LayerwiseTrainer, folder, layerwise_lr=distribution, layerwise_verbose=False, **options)
    return trainer, rates


def plain(folder: Path, **options: Any) -> tuple[Trainer, Rates]:
    """The same Trainer without the mixin."""
    return built(Trainer, folder, **options)


_OF_TRAINER = ("optimizers", "optimizer_cls_and_kwargs", "eval_dataset", "compute_metrics", "model_init", "callbacks")


def built(kind: Any, folder: Path, **options: Any) -> tuple[Any, Rates]:
    """A Trainer of class `kind`, and the recorder of its rates."""
    rates = Rates()
    own = {key: options.pop(key) for key in list(options) if key in _OF_TRAINER or key.startswith("layerwise_")}
    own["callbacks"] = [rates, *own.get("callbacks", ())]
    if "model_init" not in own:
        own["model"] = options.pop("model", None) or tiny.bert()
    data = options.pop("train_dataset", None) or rows()
    return kind(args=arguments(folder, **options), train_dataset=data, **own), rates


def assert_rates(seen: list[dict[str, float]], rates: dict[str, float], factors: list[float]) -> None:
    """Every group of a layer has the layer's rate times the factor at every step."""
    assert len(seen) == len(factors)
    for step, (at_step, factor) in enumerate(zip(seen, factors, strict=True)):
        assert {name.partition("/")[0] for name in at_step} == set(rates)
        for name, rate in at_step.items():
            assert rate == pytest.approx(rates[name.partition("/")[0]] * factor, rel=1e-9, abs=0), (step, name)


class Scores:
    """A `compute_metrics` that returns one given score after the other, as a plateau needs it."""

    def __init__(self, scores: Sequence[float]) -> None:
        self.left = list(scores)

    def __call__(self, predictions: Any) -> dict[str, float]:
        return {"score": self.left.pop(0)}


def plateau(scores: Sequence[float], **options: Any) -> dict[str, Any]:
    """Options for ReduceLROnPlateau with an evaluation after each of the steps, which gives the next of `scores`."""
    settings = {"mode": "max", "factor": 0.5, "patience": 0, **options}
    return {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": settings,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_dataset": rows(4, seed=1),
        "compute_metrics": Scores(scores),
        "metric_for_best_model": "score",
        "max_steps": len(scores),
    }
