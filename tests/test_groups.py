"""Parameter groups for plain torch and for Hugging Face's Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import BertModel, Trainer, TrainerCallback, TrainingArguments

from lr_dist import LRDistribution, param_groups
from lr_dist.errors import (
    InvalidDistributionError,
    InvalidNoDecayError,
    InvalidOverrideError,
    InvalidRateError,
    NothingToTrainError,
)


def names_of(model: torch.nn.Module, group: dict[str, Any]) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def test_groups_are_in_the_order_of_depth_with_their_rates() -> None:
    groups = param_groups(tiny.bert(), tiny.EXPLICIT)
    assert {group["name"]: group["lr"] for group in groups} == tiny.RATES
    assert [group["name"] for group in groups] == list(tiny.RATES)
    assert all(group["weight_decay"] == 0 for group in groups)


def test_layer_wise_decay_gives_the_head_the_rate_and_each_layer_below_less() -> None:
    groups = param_groups(tiny.bert(), "decay:lr=4e-4,factor=0.5")
    assert [g["lr"] for g in groups] == pytest.approx([4e-4 / 16, 4e-4 / 8, 4e-4 / 4, 4e-4 / 2, 4e-4])


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = tiny.bert()
    for groups in (param_groups(model, "flat:lr=1e-3"), param_groups(model, "flat:lr=1e-3", weight_decay=0.1)):
        held = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


def test_weight_decay_splits_each_layer_by_the_number_of_dimensions() -> None:
    model = tiny.bert()
    groups = {group["name"]: group for group in param_groups(model, tiny.EXPLICIT, weight_decay=0.1)}
    assert list(groups)[:4] == ["embeddings", "embeddings/no_decay", "layers.0", "layers.0/no_decay"]
    assert groups["layers.1"]["weight_decay"] == 0.1
    assert groups["layers.1/no_decay"]["weight_decay"] == 0
    assert groups["layers.1"]["lr"] == groups["layers.1/no_decay"]["lr"] == 2e-4
    assert names_of(model, groups["embeddings/no_decay"]) == {
        "bert.embeddings.LayerNorm.weight",
        "bert.embeddings.LayerNorm.bias",
    }
    assert names_of(model, groups["head"]) == {"bert.pooler.dense.weight", "classifier.weight"}


def test_no_decay_takes_regexes() -> None:
    model = tiny.bert()
    groups = param_groups(model, "flat:lr=1e-3", weight_decay=0.1, no_decay=[r"\.bias$", "embeddings"])
    by_name = {group["name"]: group for group in groups}
    assert "embeddings" not in by_name
    assert len(by_name["embeddings/no_decay"]["params"]) == 5
    assert "bert.encoder.layer.0.output.LayerNorm.weight" in names_of(model, by_name["layers.0"])
    assert "bert.encoder.layer.0.output.LayerNorm.bias" in names_of(model, by_name["layers.0/no_decay"])


def test_without_any_no_decay_regex_everything_is_decayed() -> None:
    groups = param_groups(tiny.bert(), "flat:lr=1e-3", weight_decay=0.1, no_decay=[])
    assert [group["name"] for group in groups] == list(tiny.RATES)
    assert {group["weight_decay"] for group in groups} == {0.1}


@pytest.mark.parametrize(
    "patterns",
    [
        *(["LayerNorm", "layer_norm"], ["(bias"], "bias", [3], 3),
        *(["bias{99999999999}"], ["(?a)(?u)bias"], ["(" * 5000 + "bias"]),
    ],
)
def test_a_no_decay_regex_that_cannot_work_is_an_error(patterns: Any) -> None:
    with pytest.raises(InvalidNoDecayError, match=r"layer_norm|\(bias|bias|3|\(\("):
        param_groups(tiny.bert(), "flat:lr=1e-3", weight_decay=0.1, no_decay=patterns)


def test_a_rate_of_zero_freezes_and_leaves_out() -> None:
    model = tiny.bert()
    groups = param_groups(model, LRDistribution.from_dict(tiny.EXPLICIT).freeze("embeddings", "layers.0"))
    assert [group["name"] for group in groups] == ["layers.1", "layers.2", "head"]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    expected = {n for n, _ in model.named_parameters() if "embeddings" in n or "encoder.layer.0." in n}
    assert frozen == expected
    assert len(frozen) == 5 + 16


def test_a_later_distribution_thaws_what_an_earlier_one_froze_but_not_what_the_user_froze() -> None:
    model = tiny.bert()
    model.bert.encoder.layer[1].requires_grad_(False)
    param_groups(model, LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0"))
    groups = param_groups(model, tiny.EXPLICIT)
    assert [group["name"] for group in groups] == ["embeddings", "layers.0", "layers.2", "head"]
    assert not any(parameter.requires_grad for parameter in model.bert.encoder.layer[1].parameters())


def test_nothing_left_to_train_is_an_error() -> None:
    with pytest.raises(NothingToTrainError, match="BertForSequenceClassification"):
        param_groups(tiny.bert(), "flat:lr=0")
    model = tiny.bert().requires_grad_(False)
    with pytest.raises(NothingToTrainError, match="requires_grad"):
        param_groups(model, "flat:lr=1e-3")


def test_a_relative_distribution_needs_and_multiplies_the_rate() -> None:
    relative = "linear:first=0.5,last=2,relative=true"
    with pytest.raises(InvalidRateError, match="lr="):
        param_groups(tiny.bert(), relative)
    groups = param_groups(tiny.bert(), relative, lr=1e-3)
    assert groups[0]["lr"] == pytest.approx(5e-4)
    assert groups[-1]["lr"] == pytest.approx(2e-3)


def test_numpy_numbers_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    groups = param_groups(tiny.bert(), tiny.EXPLICIT, weight_decay=numpy.float32(0.25))
    assert {group["weight_decay"] for group in groups} == {0.25, 0.0}


@pytest.mark.parametrize(
    "value", [-0.1, float("nan"), float("inf"), "0.1", True, 10**400, pytest.param(-(10**5000), id="5000 digits")]
)
def test_a_weight_decay_or_rate_that_is_no_number_is_an_error(value: Any) -> None:
    with pytest.raises(InvalidRateError, match="weight_decay"):
        param_groups(tiny.bert(), "flat:lr=1e-3", weight_decay=value)
    with pytest.raises(InvalidRateError, match="lr must be"):
        param_groups(tiny.bert(), "flat:lr=1,relative=true", lr=value)


def test_errors_of_the_distribution_and_of_the_overrides_come_through() -> None:
    with pytest.raises(InvalidDistributionError, match="flatt"):
        param_groups(tiny.bert(), "flatt:lr=1")
    with pytest.raises(InvalidOverrideError, match="nowhere"):
        param_groups(tiny.bert(), "flat:lr=1", overrides={"nowhere": "head"})


def test_overrides_place_parameters() -> None:
    model = tiny.bert()
    groups = {g["name"]: g for g in param_groups(model, tiny.EXPLICIT, overrides={"pooler": "layers.2"})}
    assert "bert.pooler.dense.weight" in names_of(model, groups["layers.2"])
    assert names_of(model, groups["head"]) == {"classifier.weight", "classifier.bias"}


def test_a_group_without_parameters_is_left_out() -> None:
    model = tiny.bert().bert
    assert isinstance(model, BertModel)
    model.pooler = None
    assert [group["name"] for group in param_groups(model, tiny.EXPLICIT)] == list(tiny.RATES)[:-1]


def test_plain_sgd_moves_each_layer_by_its_rate_times_the_gradient() -> None:
    model = tiny.bert()
    optimizer = torch.optim.SGD(param_groups(model, tiny.EXPLICIT))
    tokens, labels = next(iter(tiny.batches()))
    model(input_ids=tokens, labels=labels).loss.backward()
    before = tiny.weights(model)
    optimizer.step()
    for name, parameter in model.named_parameters():
        layer = next(group["name"] for group in optimizer.param_groups if any(parameter is p for p in group["params"]))
        assert torch.equal(parameter, before[name].add(parameter.grad, alpha=-tiny.RATES[layer])), name
    assert any(parameter.grad.abs().max() > 1e-3 for parameter in model.bert.encoder.layer[0].parameters())


# Hugging Face's Trainer ----------------------------------------------------------------------------------


class Rates(TrainerCallback):
    """The rates of all groups at each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append({group["name"]: float(group["lr"]) for group in kwargs["optimizer"].param_groups})


def train_with_hugging_face(model: Any, optimizer: Any, folder: Path) -> Rates:
    rates = Rates()
    data = [
        {"input_ids": x, "labels": y} for tokens, labels in tiny.batches() for x, y in zip(tokens, labels, strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=5,
        warmup_steps=2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, optimizers=(optimizer, None), callbacks=[rates])
    trainer.train()
    return rates


def test_the_hugging_face_trainer_uses_the_rates_under_its_own_schedule(tmp_path: Path) -> None:
    model = tiny.bert()
    distribution = LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0")
    before = tiny.weights(model)
    optimizer = torch.optim.AdamW(param_groups(model, distribution, weight_decay=0.01))

    rates = train_with_hugging_face(model, optimizer, tmp_path)

    # Its default schedule: linear warm-up over 2 steps, then linear to 0 at step 5.
    factors = [0, 1 / 2, 1, 2 / 3, 1 / 3]
    expected = {name: rate for name, rate in tiny.RATES.items() if name != "layers.0"}
    for seen, factor in zip(rates.seen, factors, strict=True):
        assert set(seen) == set(expected) | {f"{name}/no_decay" for name in expected}
        for name, rate in expected.items():
            assert seen[name] == pytest.approx(rate * factor, rel=1e-9, abs=0)
            assert seen[f"{name}/no_decay"] == seen[name]

    def moved(part: str) -> float:
        return max((p - before[n]).abs().max().item() for n, p in model.named_parameters() if part in n)

    assert moved("encoder.layer.0.") == 0.0
    # One step of Adam moves a weight by about its rate; the factors of the five steps add up to 2.5.
    assert 0.5 < moved("encoder.layer.1.") / (2.5 * 2e-4) < 1.5
    assert 0.5 < moved("encoder.layer.2.") / (2.5 * 5e-4) < 1.5
    assert 0.5 < moved("classifier") / (2.5 * 7e-3) < 1.5
    assert 0.5 < moved("embeddings") / (2.5 * 1e-5) < 1.5


def test_the_hugging_face_trainer_with_a_flat_distribution_equals_the_same_run_without_groups(tmp_path: Path) -> None:
    plain, grouped = tiny.bert(), tiny.bert()
    optimizer = torch.optim.AdamW(param_groups(grouped, "flat:lr=1e-3"))
    train_with_hugging_face(grouped, optimizer, tmp_path)
    single = torch.optim.AdamW([{"params": list(plain.parameters()), "name": "all"}], lr=1e-3, weight_decay=0.0)
    train_with_hugging_face(plain, single, tmp_path)
    for (name, ours), theirs in zip(grouped.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
