"""FSDP with the original parameters: names with prefixes, shards without a shape, and the refusal of flat ones.

torch's FSDP runs on a CPU where it is told the device; `runs.FSDPOnCPU` is Lightning's strategy that tells it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from strategies import checks
from strategies.checks import Run
from strategies.runs import Case
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.models.bert.modeling_bert import BertLayer

from lr_dist import LRDistribution, assign_layers, param_groups
from lr_dist.regroup import Placement, regroup


@pytest.mark.parametrize("schedule", ["LambdaLR", "OneCycleLR"])
def test_the_rates_and_the_weights_are_those_of_one_process(schedule: str, together: Run) -> None:
    case = Case("schedule", "fsdp1", schedule, optimizer="halves")
    outcomes = together(Case("schedule", "fsdp1", schedule))
    assert checks.rates(case, outcomes) == []
    assert checks.weights(Case("schedule", "fsdp1", schedule), outcomes) == []
    assert checks.weights(case, together(case)) == []


def test_the_processes_do_share_the_weights(together: Run) -> None:
    outcomes = together(Case("shared", "fsdp1"))
    name = "model.bert.encoder.layer.1._fsdp_wrapped_module.attention.self.query.weight"
    assert sum(outcome["weights"][name].numel() for outcome in outcomes) == 256
    layers = [
        sum(weight.numel() for name, weight in outcome["weights"].items() if "encoder.layer.1." in name)
        for outcome in outcomes
    ]
    assert layers == [1112, 1112]


def test_frozen_embeddings_beside_a_head_that_is_trained_in_one_unit(together: Run) -> None:
    case = Case("frozen", "fsdp1", distribution="flat:lr=1e-3,freeze=embeddings..layers.1")
    assert checks.weights(case, together(case)) == []


def test_a_model_that_is_made_in_configure_model(together: Run) -> None:
    case = Case("late", "fsdp1", "LinearLR", built_late=True)
    assert checks.weights(case, together(case)) == []


def test_the_table_counts_the_parameters_of_all_processes(together: Run) -> None:
    first, second = together(Case("table", "fsdp1"))
    for words in (["embeddings", "960"], ["layers.1", "2,224"], ["head", "306"]):
        assert any(all(word in line for word in words) for line in first["printed"].splitlines()), words
    assert second["printed"] == ""


def test_a_run_resumes_exactly_in_each_process(together: Run, tmp_path: Path) -> None:
    assert checks.resumes(Case("resume", "fsdp1", "SequentialLR"), together, tmp_path) == []


def test_another_distribution_is_refused_in_every_process(together: Run, tmp_path: Path) -> None:
    assert checks.refuses_others(Case("other", "fsdp1", "StepLR"), together, tmp_path) == []


def test_flat_parameters_are_refused_in_setup_in_every_process(together: Run) -> None:
    for outcome in together(Case("flat", "fsdp1-flat")):
        assert outcome["error"]["type"] == "UnsupportedStrategyError"
        assert "FSDPStrategy(use_orig_params=True)" in outcome["error"]["message"]
        assert not outcome["configured"]


def test_a_checkpoint_from_within_a_window_is_refused_before_a_step(together: Run, tmp_path: Path) -> None:
    case = Case("window", "fsdp1", options=(("accumulate_grad_batches", 2),))
    path = tmp_path / "window.ckpt"
    together(replace(case, save_after=3, checkpoint=str(path)))
    for outcome in together(replace(case, resume=str(path))):
        assert outcome["error"]["type"] == "ResumeMismatchError"
        assert "within an accumulation window" in outcome["error"]["message"]
        assert outcome["rates"] == {}


# Without Lightning -----------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def wrapped(*, use_orig_params: bool = True) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(
        tiny.bert(),
        use_orig_params=use_orig_params,
        device_id=torch.device("cpu"),
        auto_wrap_policy=ModuleWrapPolicy({BertLayer}),
    )


@pytest.mark.usefixtures("alone")
def test_names_with_fsdps_prefixes_are_placed_like_those_without() -> None:
    model = wrapped()
    groups = assign_layers(model).groups
    assert "_fsdp_wrapped_module.bert.encoder.layer.1._fsdp_wrapped_module.output.dense.weight" in groups["layers.1"]
    assert {name: len(members) for name, members in groups.items()} == {
        name: len(members) for name, members in assign_layers(tiny.bert()).groups.items()
    }
    plain = param_groups(tiny.bert(), "decay:lr=1e-3,factor=0.5")
    ours = param_groups(model, "decay:lr=1e-3,factor=0.5")
    assert [(group["name"], group["lr"], len(group["params"])) for group in ours] == [
        (group["name"], group["lr"], len(group["params"])) for group in plain
    ]


@pytest.mark.usefixtures("alone")
def test_an_optimizer_of_a_wrapped_model_is_split_and_trains() -> None:
    model = wrapped()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    regroup(optimizer, [], Placement.of(model, assign_layers(model)), LRDistribution.from_dict(tiny.EXPLICIT))
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == tiny.RATES
    tokens, labels = next(iter(tiny.batches()))
    model(input_ids=tokens, labels=labels).loss.backward()
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in model.named_parameters()}
    optimizer.step()
    layer_of = assign_layers(model).group_of
    for name, parameter in model.named_parameters():
        weight, gradient = before[name]
        expected = weight - tiny.RATES[layer_of[name]] * gradient
        assert torch.allclose(parameter.detach(), expected, rtol=1e-6, atol=0), name
