"""`LayerwiseTrainerMixin` under the trainers of sentence-transformers, whose losses may learn too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
    models,
)
from tiny_trainer import LINEAR, Rates, assert_rates
from torch import nn

from lr_dist import LayerwiseTrainerMixin, LRDistribution
from lr_dist.errors import ConfigurationError, OptimizerCoverageError, ResumeMismatchError

TEXTS = ["a good film", "a bad film", "a dull story", "the film was good", "i liked the story", "not a good story"]
FROZEN = LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0")


class LayerwiseTrainer(LayerwiseTrainerMixin, SentenceTransformerTrainer):
    """What a user writes."""


class LayerwiseCrossEncoderTrainer(LayerwiseTrainerMixin, CrossEncoderTrainer):
    """The same for cross-encoders."""


def pairs(label: bool = False) -> Dataset:
    columns = {"first": TEXTS * 4, "second": (TEXTS[1:] + TEXTS[:1]) * 4}
    return Dataset.from_dict({**columns, "label": [0, 1, 2] * 8} if label else columns)


def embedder(path: str) -> SentenceTransformer:
    return SentenceTransformer(modules=[models.Transformer(path), models.Pooling(32)], device="cpu")


def arguments(folder: Path, kind: Any = SentenceTransformerTrainingArguments, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 5,
        "warmup_steps": 2,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return kind(**{**defaults, **options})


def trained(
    folder: Path,
    model: Any,
    loss: Any = None,
    distribution: Any = tiny.EXPLICIT,
    *,
    data: Any = None,
    overrides: Any = None,
    checkpoint: Any = None,
    **options: Any,
) -> tuple[LayerwiseTrainer, Rates]:
    rates = Rates()
    loss = loss or losses.MultipleNegativesRankingLoss(model)
    trainer = LayerwiseTrainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=data or pairs(label=isinstance(loss, losses.SoftmaxLoss)),
        loss=loss,
        callbacks=[rates],
        layerwise_lr=distribution,
        layerwise_overrides=overrides,
        layerwise_verbose=False,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer, rates


def test_an_embedding_model_is_trained_at_the_rates_of_its_layers(tiny_model: str, tmp_path: Path) -> None:
    model = embedder(tiny_model)
    before = tiny.weights(model)
    trainer, rates = trained(tmp_path, model, weight_decay=0.01)
    assert_rates(rates.seen, tiny.RATES, LINEAR)
    for k, rate in enumerate((3e-5, 2e-4, 5e-4)):
        change = max((p - before[n]).abs().max().item() for n, p in model.named_parameters() if f"layer.{k}." in n)
        assert 0.5 < change / (2.5 * rate) < 1.5
    log = [log for log in trainer.state.log_history if "loss" in log][2]
    assert {name: log[f"learning_rate/{name}"] for name in tiny.RATES} == pytest.approx(tiny.RATES)


def test_parameters_of_the_loss_after_the_model_are_head(tiny_model: str, tmp_path: Path) -> None:
    model = embedder(tiny_model)
    loss = losses.SoftmaxLoss(model, embedding_dimension=32, num_labels=3)
    before = loss.classifier.weight.detach().clone()
    trainer, rates = trained(tmp_path, model, loss)
    assert_rates(rates.seen, tiny.RATES, LINEAR)
    head = {group["name"]: group["params"] for group in trainer.optimizer.param_groups}["head"]
    assert any(p is loss.classifier.weight for p in head)
    assert 0.5 < (loss.classifier.weight - before).abs().max().item() / (2.5 * 7e-3) < 1.5


def test_several_losses_share_the_layers(tiny_model: str, tmp_path: Path) -> None:
    model = embedder(tiny_model)
    both = {
        "labelled": losses.SoftmaxLoss(model, embedding_dimension=32, num_labels=3),
        "paired": losses.MultipleNegativesRankingLoss(model),
    }
    data = DatasetDict(labelled=pairs(label=True), paired=pairs())
    trainer, rates = trained(tmp_path, model, both, data=data)
    assert_rates(rates.seen, tiny.RATES, LINEAR)
    held = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == sum(1 for _ in model.parameters()) + 2


class TemperedLoss(nn.Module):
    """A user's loss: the scores of pairs times a temperature that is learned."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, features: Any, labels: Any) -> torch.Tensor:
        first, second = (self.model(feature)["sentence_embedding"] for feature in features)
        return nn.functional.cross_entropy(first @ second.T * self.temperature, torch.arange(len(first)))


def test_parameters_of_a_users_loss_are_placed_by_its_forward_or_an_override(tiny_model: str, tmp_path: Path) -> None:
    model = embedder(tiny_model)
    loss = TemperedLoss(model)
    for overrides, group in ((None, "head"), ({"^temperature$": "layers.1"}, "layers.1")):
        trainer, rates = trained(tmp_path, model, loss, overrides=overrides, data=pairs())
        assert_rates(rates.seen, tiny.RATES, LINEAR)
        held = {group["name"]: group["params"] for group in trainer.optimizer.param_groups}
        assert any(p is loss.temperature for p in held[group])


def test_a_loss_that_does_not_hold_the_model_is_refused(tiny_model: str, tmp_path: Path) -> None:
    # Its trainer asks the loss for what is to be trained, so the model would stay as it is.
    model = embedder(tiny_model)
    loss = TemperedLoss(model)
    object.__setattr__(loss, "encode", model)
    del loss.model
    with pytest.raises(OptimizerCoverageError, match=r"48 trainable.*layers.*no rate"):
        trained(tmp_path, model, loss, overrides={"temperature": "head"}, data=pairs())


def test_a_mapping_of_rates_is_multiplied_by_a_relative_distribution(tiny_model: str, tmp_path: Path) -> None:
    model = embedder(tiny_model)
    mapping = {r"layer\.2\.": 3e-3}
    relative = "decay:lr=1,factor=0.5,relative=true"
    _, rates = trained(tmp_path, model, None, relative, learning_rate=1e-3, learning_rate_mapping=mapping)
    at_peak = {name.partition("/")[0]: rate for name, rate in rates.seen[2].items()}
    shares = {"embeddings": 1 / 16, "layers.0": 1 / 8, "layers.1": 1 / 4, "layers.2": 3 / 2, "head": 1}
    assert at_peak == pytest.approx({name: 1e-3 * share for name, share in shares.items()})


def test_a_mapping_of_rates_beside_an_absolute_distribution_is_refused(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"learning_rate_mapping.*relative"):
        trained(tmp_path, embedder(tiny_model), learning_rate_mapping={"layer": 1e-3})


def test_a_resumed_run_ends_where_the_unbroken_run_ends(tiny_model: str, tmp_path: Path) -> None:
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 5, "weight_decay": 0.1}
    unbroken, _ = trained(tmp_path, embedder(tiny_model), None, FROZEN, **options)
    shutil.rmtree(tmp_path / "checkpoint-8")
    start = embedder(tiny_model)
    nn.init.zeros_(start[0].model.encoder.layer[0].output.dense.weight)  # the checkpoint's weights count
    resumed, rates = trained(tmp_path, start, None, FROZEN, checkpoint=True, **options)
    assert len(rates.seen) == 3
    assert "layers.0" not in rates.seen[0]
    for (name, ours), theirs in zip(resumed.model.named_parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    with pytest.raises(ResumeMismatchError, match=r"from_layers:.*flat:lr=.*1e-0?4"):
        trained(tmp_path, embedder(tiny_model), None, "flat:lr=1e-4", checkpoint=True, **options)


def test_a_cross_encoder_is_trained_at_the_rates_of_its_layers(tiny_model: str, tmp_path: Path) -> None:
    rates = Rates()
    trainer = LayerwiseCrossEncoderTrainer(
        model=CrossEncoder(tiny_model, num_labels=1, device="cpu"),
        args=arguments(tmp_path, CrossEncoderTrainingArguments),
        train_dataset=pairs(label=True).map(lambda row: {"label": float(row["label"] > 0)}),
        callbacks=[rates],
        layerwise_lr=tiny.EXPLICIT,
        layerwise_verbose=False,
    )
    trainer.train()
    assert_rates(rates.seen, tiny.RATES, LINEAR)


@pytest.mark.minilm
def test_the_packaged_model_is_trained_at_the_rates_of_a_preset(minilm_path: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(minilm_path), device="cpu")
    before = model[0].model.encoder.layer[5].output.dense.weight.detach().clone()
    _, rates = trained(tmp_path, model, None, "decay:lr=4e-4,factor=0.5", max_steps=2, warmup_steps=0)
    expected = {"embeddings": 4e-4 / 2**7, **{f"layers.{k}": 4e-4 / 2 ** (6 - k) for k in range(6)}, "head": 4e-4}
    assert_rates(rates.seen, expected, [1, 1 / 2])
    change = (model[0].model.encoder.layer[5].output.dense.weight - before).abs().max().item()
    assert 0.5 < change / (1.5 * 2e-4) < 1.5
