"""Phases under transformers' Trainer: against a loop in plain torch, resumed in every phase, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_gradual import by_layer
from test_huggingface_resume import assert_equal, end_of
from tiny_trainer import layerwise, rows

from lr_dist import LRDistribution, param_groups
from lr_dist.errors import InvalidPlanError, InvalidScheduleError, ResumeMismatchError, UnsupportedStrategyError
from lr_dist.presets import resolve_stage
from lr_dist.rate_plan import Phases

HEAD = "flat:lr=1e-2,freeze=embeddings..layers.-1"
# Head first, then all; then the lower half waits. Of 8 steps: 0, 2 and 6.
THREE = f"{HEAD} @ 25% > decay:lr=4e-2,factor=0.5 @ 50% > flat:lr=1e-3,freeze=embeddings..layers.0"


def options(**own: Any) -> dict[str, Any]:
    return {"max_steps": 8, "weight_decay": 0.1, "warmup_steps": 0, "save_strategy": "steps", "save_steps": 1, **own}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_equal_those_of_a_loop_in_plain_torch(accumulate: int, tmp_path: Path) -> None:
    """Gradients are clipped without those of waiting layers; momentum goes on over the phases."""
    model = tiny.bert()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    trainer, _ = layerwise(
        tmp_path,
        THREE,
        model=model,
        optimizers=(sgd, None),
        train_dataset=rows(32),
        **options(
            save_strategy="no",
            train_sampling_strategy="sequential",
            lr_scheduler_type="constant",
            max_grad_norm=0.05,
            per_device_train_batch_size=4 // accumulate,
            gradient_accumulation_steps=accumulate,
        ),
    )
    # The Trainer believes that the loss averages over all items of a step, which BERT's for classes does not.
    trainer.model_accepts_loss_kwargs = False
    trainer.train()

    stage = resolve_stage(THREE)
    assert isinstance(stage, Phases)
    plain = tiny.bert()
    optimizer = torch.optim.SGD(param_groups(plain, LRDistribution.flat(0.1)), momentum=0.9)
    for step in range(8):
        four = rows(32)[4 * step : 4 * step + 4]
        tokens = torch.stack([torch.as_tensor(row["input_ids"]) for row in four])
        plain(input_ids=tokens, labels=torch.stack([torch.as_tensor(row["labels"]) for row in four])).loss.backward()
        rates = stage.phases[0 if step < 2 else 1 if step < 6 else 2].distribution.rates(3)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = rates[group["name"]], 0.1
            if not group["lr"]:
                for parameter in group["params"]:
                    parameter.grad = None
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
    for (name, ours), theirs in zip(trainer.model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-7), name
        assert ours.requires_grad


def test_a_layer_that_waits_has_no_moments_and_its_logged_rate_is_0(tmp_path: Path) -> None:
    trainer, _ = layerwise(tmp_path, THREE, **options(save_strategy="no", lr_scheduler_type="constant"))
    trainer.train()
    state = trainer.optimizer.state
    taken = {layer: {float(state[p]["step"]) for p in ps} for layer, ps in by_layer(trainer.model).items()}
    assert taken == {"embeddings": {4}, "layers.0": {4}, "layers.1": {6}, "layers.2": {6}, "head": {8}}
    logged = [log for log in trainer.state.log_history if "learning_rate/head" in log]
    rates = {name: [log[f"learning_rate/{name}"] for log in logged] for name in taken}
    assert rates["head"] == pytest.approx([1e-2] * 2 + [4e-2] * 4 + [1e-3] * 2)
    assert rates["layers.2"] == pytest.approx([0] * 2 + [2e-2] * 4 + [1e-3] * 2)
    assert rates["embeddings"] == pytest.approx([0] * 2 + [2.5e-3] * 4 + [0] * 2)


@pytest.mark.parametrize("plan", [THREE, "decay:lr=4e-2,factor=0.5 @ gradual 70% > flat:lr=1e-2"])
def test_a_run_resumes_exactly_in_every_phase(plan: str, tmp_path: Path) -> None:
    unbroken, _ = layerwise(tmp_path, plan, **options(model=tiny.bert(dropout=0.3)))
    unbroken.train()
    end = end_of(unbroken)
    for step in (7, 6, 3, 1):
        for path in tmp_path.glob("checkpoint-*"):
            if int(path.name.removeprefix("checkpoint-")) > step:
                shutil.rmtree(path)
        torch.manual_seed(99)
        rest, rates = layerwise(tmp_path, plan, **options(model=tiny.bert(dropout=0.3, seed=7)))
        rest.train(resume_from_checkpoint=True)
        assert len(rates.seen) == 8 - step
        assert_equal(end, end_of(rest), f"from step {step}")


def test_resuming_with_other_phases_raises_and_a_longer_run_keeps_their_starts(tmp_path: Path) -> None:
    settings = options(save_steps=4, max_steps=4)
    layerwise(tmp_path, f"{HEAD} @ 50% > flat:lr=1e-2", **settings)[0].train()
    for other in (f"{HEAD} @ 25% > flat:lr=1e-2", "flat:lr=1e-2"):
        with pytest.raises(ResumeMismatchError, match="phases"):
            layerwise(tmp_path, other, **settings)[0].train(resume_from_checkpoint=True)
    longer, _ = layerwise(tmp_path, f"{HEAD} @ 50% > flat:lr=1e-2", **{**settings, "max_steps": 8})
    longer.train(resume_from_checkpoint=True)
    # Half of 8 steps would be 4 without the lower layers.
    taken = {float(longer.optimizer.state[p]["step"]) for p in by_layer(longer.model)["embeddings"]}
    assert taken == {6}


def test_what_cannot_be_planned_is_refused_before_a_step(tmp_path: Path) -> None:
    trainer, rates = layerwise(tmp_path, f"{HEAD} @ 9 steps > flat:lr=1e-4", **options())
    with pytest.raises(InvalidPlanError, match="would begin in step 9, and the stage has 8 steps"):
        trainer.train()
    assert not rates.seen
    with pytest.raises(InvalidPlanError, match="2 stages, and one fit is one stage"):
        layerwise(tmp_path, "flat:lr=1e-4 | flat:lr=1e-5")
    with pytest.raises(InvalidScheduleError, match="layerwise_stacks"):
        layerwise(tmp_path, THREE, layerwise_stacks=("bert",))
    trainer, _ = layerwise(tmp_path, THREE, **options())
    trainer.is_fsdp_enabled = True
    trainer.accelerator.state._shared_state["fsdp_plugin"] = type("Plugin", (), {"fsdp_version": 2})()
    try:
        with pytest.raises(UnsupportedStrategyError, match="Use DDP"):
            trainer.create_optimizer()
    finally:
        del trainer.accelerator.state._shared_state["fsdp_plugin"]
