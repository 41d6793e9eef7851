"""A Trainer run that is stopped and resumed ends bit for bit where the unbroken run ends, or is refused first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_trainer import BASE, layerwise, plain, plateau, rows
from transformers import Trainer

from lr_dist import LRDistribution
from lr_dist.errors import ResumeMismatchError

FROZEN = LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0")
STEPS = 12  # two epochs of six batches

SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"lr_scheduler_type": "linear"},
    "cosine_with_min_lr": {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": BASE / 10},
    },
    "warmup_stable_decay": {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": 5},
    },
    "constant": {"lr_scheduler_type": "constant"},
}


def options(**own: Any) -> dict[str, Any]:
    """Dropout, weight decay, a checkpoint in each step."""
    settings = {"max_steps": STEPS, "weight_decay": 0.1, "save_strategy": "steps", "save_steps": 1, **own}
    return {"model": tiny.bert(dropout=0.3), **settings}


def checkpoint(folder: Path, distribution: Any = FROZEN, *, steps: int = 4, **own: Any) -> Path:
    """The checkpoint of a run of `steps` steps."""
    layerwise(folder, distribution, **options(max_steps=steps, save_steps=steps, **own))[0].train()
    return folder / f"checkpoint-{steps}"


def end_of(trainer: Trainer) -> dict[str, Any]:
    """All that a run leaves behind."""
    return {
        "weights": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.lr_scheduler.state_dict(),
        "random numbers": torch.get_rng_state(),
        "log": [sorted(log.items()) for log in trainer.state.log_history if "loss" in log],
    }


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert list(left) == list(right), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    else:
        assert left == right, where


def resumed_at(folder: Path, step: int, **own: Any) -> Trainer:
    """A new Trainer that resumed the run in `folder` from its checkpoint after `step` steps."""
    for path in folder.glob("checkpoint-*"):
        if int(path.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(path)
    torch.manual_seed(99)
    trainer, rates = layerwise(folder, FROZEN, **{**options(**own), "model": tiny.bert(dropout=0.3, seed=7)})
    trainer.train(resume_from_checkpoint=True)
    assert len(rates.seen) == trainer.state.max_steps - step
    return trainer


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_run_ends_where_the_unbroken_run_ends(name: str, tmp_path: Path) -> None:
    unbroken, rates = layerwise(tmp_path, FROZEN, **options(**SCHEDULES[name]))
    unbroken.train()
    assert len(rates.seen) == STEPS
    end = end_of(unbroken)
    # In the second epoch, at its beginning, in the first, and during the warm-up.
    for step in (8, 6, 3, 1):
        assert_equal(end, end_of(resumed_at(tmp_path, step, **SCHEDULES[name])), f"{name} from step {step}")


def test_a_resumed_run_with_accumulation_ends_where_the_unbroken_run_ends(tmp_path: Path) -> None:
    accumulated = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    unbroken, _ = layerwise(tmp_path, FROZEN, **options(**accumulated))
    unbroken.train()
    end = end_of(unbroken)
    for step in (7, 3):
        assert_equal(end, end_of(resumed_at(tmp_path, step, **accumulated)), f"from step {step}")


def test_a_resumed_run_with_a_plateau_ends_where_the_unbroken_run_ends(tmp_path: Path) -> None:
    scores = [0.5, 0.4, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]

    def reducing(step: int) -> dict[str, Any]:
        return {**plateau(scores[step:], min_lr=BASE / 10), "max_steps": len(scores)}

    unbroken, _ = layerwise(tmp_path, FROZEN, **options(**reducing(0)))
    unbroken.train()
    end = end_of(unbroken)
    for group in unbroken.optimizer.param_groups:
        assert group["lr"] == pytest.approx(group["layer_lr"] / 10)
    for step in (5, 2):
        assert_equal(end, end_of(resumed_at(tmp_path, step, **reducing(step))), f"from step {step}")


def test_dropout_takes_part_in_these_runs(tmp_path: Path) -> None:
    with_dropout, _ = layerwise(tmp_path, FROZEN, **options(save_strategy="no"))
    without, _ = layerwise(tmp_path, FROZEN, **{**options(save_strategy="no"), "model": tiny.bert()})
    with_dropout.train()
    without.train()
    assert not torch.equal(with_dropout.model.classifier.weight, without.model.classifier.weight)


def test_a_run_resumes_where_the_trainer_restores_its_callbacks(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    trainer, rates = layerwise(tmp_path, FROZEN, **options(restore_callback_states_from_checkpoint=True))
    trainer.train(resume_from_checkpoint=str(path))
    assert len(rates.seen) == STEPS - 4
    log = trainer.state.log_history[-2]
    assert log["learning_rate/head"] == pytest.approx(rates.seen[-1]["head"]) == pytest.approx(7e-3 / 10)


def test_a_checkpoint_of_the_weights_alone_resumes_with_a_fresh_optimizer(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, save_only_model=True)
    assert not (path / "optimizer.pt").exists()
    trainer, rates = layerwise(tmp_path, FROZEN, **options())
    trainer.train(resume_from_checkpoint=path)
    assert len(rates.seen) == STEPS - 4
    assert rates.seen[2]["head"] == 7e-3


def test_a_checkpoint_names_its_distribution_and_groups_in_plain_json(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, layerwise_overrides={"pooler": "layers.2"})
    saved = json.loads((path / "trainer_state.json").read_text())["stateful_callbacks"]["LayerwiseRates"]
    written = saved["attributes"]["written"]
    assert LRDistribution.from_dict(written["distribution"]) == FROZEN
    assert written["fingerprint"] == FROZEN.fingerprint
    assert written["num_layers"] == 3
    assert written["overrides"] == [["pooler", "layers.2"]]
    kept = [name for name in tiny.RATES if name != "layers.0"]
    assert written["groups"] == [f"{name}{end}" for name in kept for end in ("", "/no_decay")]


# Refused -------------------------------------------------------------------------------------------------


def refused(path: Path | bool, match: str, folder: Path, distribution: Any = FROZEN, **own: Any) -> Trainer:
    trainer, rates = layerwise(folder, distribution, **options(**own))
    with pytest.raises(ResumeMismatchError, match=match):
        trainer.train(resume_from_checkpoint=path)
    assert rates.seen == []
    return trainer


def test_resuming_with_another_distribution_raises_before_the_weights_are_loaded(tmp_path: Path) -> None:
    checkpoint(tmp_path, "decay:lr=1e-3,factor=0.5")
    trainer = refused(True, r"decay:lr=.*factor=0\.5.*flat:lr=.*1e-0?4", tmp_path, "flat:lr=1e-4")
    for ours, fresh in zip(trainer.model.parameters(), tiny.bert().parameters(), strict=True):
        assert torch.equal(ours, fresh)


def test_resuming_with_the_same_distribution_written_in_another_way_works(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "decay:lr=1e-3,factor=0.5")
    trainer, rates = layerwise(tmp_path, {"family": "decay", "factor": 0.50, "lr": 0.001}, **options())
    trainer.train(resume_from_checkpoint=path)
    assert len(rates.seen) == STEPS - 4


def test_resuming_a_run_without_the_mixin_raises_and_tells_how_to_take_the_weights(tmp_path: Path) -> None:
    plain(tmp_path, **options(max_steps=4, save_steps=4))[0].train()
    match = r"without LayerwiseTrainerMixin.*weights alone.*from_pretrained\(checkpoint\)"
    refused(tmp_path / "checkpoint-4", match, tmp_path)
    # Which works: the same weights, another run.
    weights = tiny.bert().from_pretrained(tmp_path / "checkpoint-4", dtype=torch.float32)
    trainer, rates = layerwise(tmp_path, FROZEN, **{**options(), "model": weights})
    trainer.train()
    assert len(rates.seen) == STEPS


def test_resuming_with_other_overrides_raises(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    refused(path, r"overrides = \[\].*pooler", tmp_path, layerwise_overrides={"pooler": "layers.2"})


def test_resuming_with_other_groups_raises(tmp_path: Path) -> None:
    match = r"groups = .*embeddings/no_decay.*this Trainer has \['embeddings', 'layers.1'"
    refused(checkpoint(tmp_path), match, tmp_path, weight_decay=0)


def test_resuming_a_model_of_another_depth_raises(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "decay:lr=1e-3,factor=0.5")
    deeper = tiny.bert()
    deeper.bert.encoder.layer.append(type(deeper.bert.encoder.layer[0])(deeper.config))
    refused(path, "num_layers = 3, this Trainer has 4", tmp_path, "decay:lr=1e-3,factor=0.5", model=deeper)


@pytest.mark.parametrize("broken", [[], {"attributes": {"written": 3}}, {"attributes": {"written": {}}}])
def test_a_checkpoint_whose_state_was_edited_is_refused(broken: Any, tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    state = json.loads((path / "trainer_state.json").read_text())
    state["stateful_callbacks"]["LayerwiseRates"] = broken
    (path / "trainer_state.json").write_text(json.dumps(state))
    refused(path, "without LayerwiseTrainerMixin|under the distribution None", tmp_path)


def test_a_checkpoint_that_is_none_is_the_trainers_own_error(tmp_path: Path) -> None:
    trainer, _ = layerwise(tmp_path, FROZEN, **options())
    with pytest.raises(ValueError, match="No valid checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="valid checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))


def test_a_refused_trainer_can_still_train_anew(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    trainer = refused(path, "distribution", tmp_path, "flat:lr=1e-4")
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert len(trainer.train_dataset) == len(rows())
