"""Rate plans: their text and YAML, and their phases in real Trainers, against loops in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_gradual import Moves, adamw, assert_equal_weights, by_layer, fit_resumable, resumable, scheduled, sgd
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution, param_groups
from lr_dist.errors import InvalidPlanError, InvalidScheduleError, LRDistError, ResumeMismatchError
from lr_dist.presets import resolve_plan, resolve_stage
from lr_dist.rate_plan import Phase, Phases, RatePlan, part_at

HEAD = "flat:lr=1e-3,freeze=embeddings..layers.-1"
# Head first, then all (LP-FT); then the lower half waits (freeze-out).
THREE = f"{HEAD} @ 25% > decay:lr=4e-3,factor=0.5 @ 50% > flat:lr=1e-4,freeze=embeddings..layers.0"
LAYERS = list(tiny.RATES)


def layerwise(rates: Any, **options: Any) -> LayerwiseLR:
    return LayerwiseLR(rates, **{"verbose": False, **options})


@pytest.mark.parametrize(
    "text",
    [
        "flat:lr=1e-4",
        "flat:lr=1e-4 | decay:lr=4e-4,factor=0.7",
        f"{HEAD} @ 20% > flat:lr=1e-4",
        f"{HEAD} @ 12.5% > flat:lr=1e-4 @ 100 steps > flat:lr=1e-5",
        f"flat:lr=1e-4 | {HEAD} @ 20% > flat:lr=1e-4",
        "decay:lr=4e-4,factor=0.5 @ gradual",
        f"flat:lr=1e-4 | {HEAD} @ 10 steps > flat:lr=1e-4 @ gradual 50% > flat:lr=1e-5",
        "flat:lr=1e-4 @ gradual 20 steps > flat:lr=1e-4",
    ],
)
def test_text_mapping_and_file_read_back_to_the_same_plan(text: str, tmp_path: Path) -> None:
    from lr_dist.yaml_io import dump_yaml

    plan = resolve_plan(text)
    assert resolve_plan(str(plan)) == plan
    assert resolve_plan(plan.to_dict()) == plan
    path = tmp_path / "plan.yaml"
    path.write_text(dump_yaml(plan.to_dict()))
    assert resolve_plan(str(path)) == plan == resolve_plan(path)
    assert resolve_plan(str(path)).fingerprint == plan.fingerprint


def test_a_number_multiplies_every_rate() -> None:
    plan = resolve_plan("decay:lr=4e-4,factor=0.7 | decay:lr=4e-4,factor=0.7*0.5")
    assert plan.stage(1) == LRDistribution.decay(2e-4, 0.7)
    assert resolve_plan("kenneweg2022 * 0.1").stage(0).rates(12)["head"] == pytest.approx(1.11817e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flat:lr=1e-4 @ 20%", "No phase follows"),
        ("flat:lr=1e-4 > flat:lr=1e-3", "has no length"),
        ("flat:lr=1e-4 @ 120% > flat:lr=1e-3", "between 0 and 1"),
        ("flat:lr=1e-4 @ 0 steps > flat:lr=1e-3", "whole number of steps from 1"),
        ("flat:lr=1e-4 @ a fifth > flat:lr=1e-3", "write 20%"),
        ("flat:lr=1e-4 @ 60% > flat:lr=1e-3 @ 50% > flat:lr=1e-4", "take 110%"),
        ("flat:lr=1e-4 @ 20% > flat:lr=1e-3 @ 20%", "leave out the length"),
        ("flat:lr=1e-4 @ 20% > flat:lr=2,relative=true", "relative=true"),
        ("flat:lr=1e-4 | ", "empty stage"),
        (" @ 20% > flat:lr=1e-4", "empty phase"),
        ("flat:lr=1e-4 > ", "has no length|empty"),
        ({"stages": [{"phases": [{"distribution": "flat:lr=1e-4", "length": 3}]}]}, "keys distribution and share"),
        ({"stages": 3}, "key stages"),
        ("flat:lr=1e-4 @ gradual 20%", "write what comes then"),
        ("flat:lr=1e-4 @ gradual > flat:lr=1e-3", "has no length"),
        ("flat:lr=1e-4 @ gradually 20% > flat:lr=1e-3", "gradual 20%"),
        ({"stages": [{"phases": [{"distribution": "flat:lr=1e-4"}]}]}, "One phase alone"),
        ({"stages": [{"phases": [{"distribution": "flat:lr=1e-4", "gradual": 1}]}]}, "true or false"),
    ],
)
def test_an_invalid_plan_is_named(text: Any, says: str) -> None:
    with pytest.raises(LRDistError, match=says):
        resolve_plan(text)


def test_the_peak_and_the_factors_by_hand() -> None:
    phases = resolve_stage(f"{HEAD} @ 20% > decay:lr=4e-3,factor=0.5")
    assert isinstance(phases, Phases)
    assert phases.peak.rates(2) == {"embeddings": 5e-4, "layers.0": 1e-3, "layers.1": 2e-3, "head": 4e-3}
    first, second = phases.factors(2)
    assert first == {"embeddings": 0, "layers.0": 0, "layers.1": 0, "head": 0.25}
    assert set(second.values()) == {1.0}
    assert phases.starts(100) == phases.part_starts(100, 2) == (0, 20)
    assert [part_at(step, (0, 20)) for step in (0, 19, 20, 99)] == [0, 0, 1, 1]
    # The same phases, each of its own length; the peak of equal ones is no new distribution.
    steps = Phases((Phase(LRDistribution.flat(1.0), steps=3), Phase(LRDistribution.flat(1.0))))
    assert steps.starts(None) == (0, 3)
    assert steps.peak == LRDistribution.flat(1.0)


def test_a_gradual_phase_starts_a_layer_every_equal_part_by_hand() -> None:
    phases = resolve_stage("decay:lr=4e-3,factor=0.5,freeze=embeddings @ gradual 60% > flat:lr=1e-3,freeze=embeddings")
    assert isinstance(phases, Phases)
    # Three groups with a rate share 60 of 100 steps; then the second phase.
    assert phases.part_starts(100, 2) == (0, 20, 40, 60)
    rates = {"embeddings": 0, "layers.0": 1e-3, "layers.1": 2e-3, "head": 4e-3}
    assert phases.parts(2)[0] == {**rates, "layers.0": 0, "layers.1": 0}
    assert phases.parts(2)[1] == {**rates, "layers.0": 0}
    assert phases.parts(2)[2] == rates
    assert phases.factors(2)[3] == {"embeddings": 0, "layers.0": 1.0, "layers.1": 0.5, "head": 0.25}
    # Fewer steps than parts: some parts are passed over, and the stage ends with all layers.
    few = resolve_stage("flat:lr=1e-3 @ gradual")
    assert isinstance(few, Phases)
    assert few.part_starts(3, 4) == (0, 0, 1, 2, 2, 2)
    assert part_at(2, few.part_starts(3, 4)) == 5
    with pytest.raises(InvalidPlanError, match="number of steps of this stage is not known"):
        few.part_starts(None, 4)


def test_a_scaled_plan_stays_gradual() -> None:
    text = "flat:lr=1e-3 @ gradual 60% > flat:lr=1e-4"
    assert str(resolve_plan(text).scale(0.5)) == "flat:lr=5e-4 @ gradual 60% > flat:lr=5e-5"


def test_fingerprints_differ_by_rates_and_lengths() -> None:
    texts = ["flat:lr=1e-4", f"{HEAD} @ 20% > flat:lr=1e-4", f"{HEAD} @ 30% > flat:lr=1e-4"]
    gradual = "flat:lr=1e-4 @ gradual"
    texts += [gradual, f"{gradual} 20% > flat:lr=1e-4", "flat:lr=1e-4 @ 20% > flat:lr=1e-4"]
    texts += [f"flat:lr=1e-4 | {texts[1]}", f"{texts[1]} | flat:lr=1e-4"]
    assert len({resolve_plan(text).fingerprint for text in texts}) == len(texts)
    assert resolve_plan(texts[0]).fingerprint == LRDistribution.flat(1e-4).fingerprint


def test_each_phase_moves_its_layers() -> None:
    module, moves = tiny.Classifier(adamw), Moves()
    tiny.fit(module, layerwise(THREE), moves)  # 8 steps
    assert moves.moved == [["head"]] * 2 + [LAYERS] * 4 + [LAYERS[2:]] * 2


def test_gradual_phases_move_one_more_layer_at_a_time() -> None:
    """ULMFiT: discriminative rates with gradual unfreezing."""
    module, moves = tiny.Classifier(adamw), Moves()
    tiny.fit(module, layerwise("decay:lr=4e-3,factor=0.5 @ gradual"), moves, max_epochs=2)  # 16 steps, 5 groups
    lengths = [3, 3, 4, 3, 3]  # parts begin in 0, 3.2, 6.4, 9.6 and 12.8, rounded
    assert moves.moved == [LAYERS[-count:] for count, length in enumerate(lengths, 1) for _ in range(length)]
    state = module.trainer.optimizers[0].state
    taken = {layer: {float(state[p]["step"]) for p in ps if state.get(p)} for layer, ps in by_layer(module).items()}
    assert taken == {"embeddings": {3}, "layers.0": {6}, "layers.1": {10}, "layers.2": {13}, "head": {16}}


@pytest.mark.parametrize("steps", [2, 9, 12])
def test_a_gradual_run_resumes_exactly_in_every_part(steps: int, tmp_path: Path) -> None:
    plan = "decay:lr=4e-3,factor=0.5 @ gradual 60% > flat:lr=1e-4"  # of 18 steps: 0, 2, 4, 7, 9, 11
    check_resume(plan, steps, tmp_path)


def test_a_layer_that_waits_has_no_moments_and_no_weight_decay() -> None:
    module = tiny.Classifier(adamw)
    state = tiny.fit(module, layerwise(THREE)).optimizers[0].state
    taken = {
        layer: {float(state[p]["step"]) for p in parameters if state.get(p)}
        for layer, parameters in by_layer(module).items()
    }
    assert taken == {"embeddings": {4}, "layers.0": {4}, "layers.1": {6}, "layers.2": {6}, "head": {8}}
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(("strategy", "accumulate"), [("auto", 1), ("auto", 2), ("ddp", 1)])
def test_weights_equal_those_of_a_loop_in_plain_torch(strategy: str, accumulate: int) -> None:
    """The loop makes the groups of each phase anew; momentum goes on, the schedule multiplies."""
    module = tiny.Classifier(
        scheduled(lambda m: sgd(m, momentum=0.9, weight_decay=0.1), lambda optimizer: sch.ExponentialLR(optimizer, 0.9))
    )
    options = {"strategy": strategy, "use_distributed_sampler": False, "accumulate_grad_batches": accumulate}
    tiny.fit(module, layerwise(THREE), max_epochs=2, **options)

    stage = resolve_stage(THREE)
    assert isinstance(stage, Phases)
    model = tiny.bert()
    groups = param_groups(model, LRDistribution.flat(1.0))
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.1)
    total = 16 // accumulate
    step = 0
    for index, (tokens, labels) in enumerate([*tiny.batches(), *tiny.batches()]):
        (model(input_ids=tokens, labels=labels).loss / accumulate).backward()
        if (index + 1) % accumulate:
            continue
        number = 0 if step < total / 4 else 1 if step < 3 * total / 4 else 2
        rates = stage.phases[number].distribution.rates(3)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = rates[group["name"]] * 0.9**step, 0.1
            if not rates[group["name"]]:
                for parameter in group["params"]:
                    parameter.grad = None
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    for (name, ours), theirs in zip(module.model.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8), name


@pytest.mark.parametrize("steps", [2, 5, 9, 14])
def test_a_run_resumes_exactly_in_every_phase(steps: int, tmp_path: Path) -> None:
    check_resume(THREE, steps, tmp_path)  # 18 steps: phases begin in 0, 4 (4.5 rounded) and 14


def check_resume(plan: str, steps: int, tmp_path: Path) -> None:
    whole = resumable()
    unbroken = fit_resumable(whole, layerwise(plan))
    saver = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=steps, save_top_k=-1)

    class Stop(Moves):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            trainer.should_stop = trainer.global_step >= steps

    fit_resumable(resumable(), layerwise(plan), saver, Stop(), enable_checkpointing=True)
    rest = resumable()
    resumed = fit_resumable(rest, layerwise(plan), ckpt=tmp_path / "stopped.ckpt", weights_only=True)
    assert resumed.global_step == unbroken.global_step == 18
    assert_equal_weights(whole, rest)


@pytest.mark.parametrize("other", [THREE.replace("25%", "30%"), "flat:lr=1e-3", f"{HEAD} @ 25% > flat:lr=1e-4"])
def test_resuming_with_another_plan_is_refused(other: str, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=2)
    tiny.fit(tiny.Classifier(adamw), layerwise(THREE), saver, enable_checkpointing=True)
    with pytest.raises(ResumeMismatchError, match=r"distribution|phases"):
        tiny.fit(tiny.Classifier(adamw), layerwise(other), ckpt=tmp_path / "stopped.ckpt", max_epochs=2)


def test_what_cannot_be_planned_is_refused_before_a_step() -> None:
    recorder = tiny.Recorder()
    with pytest.raises(InvalidPlanError, match="number of steps of this stage is not known"):
        tiny.fit(tiny.Classifier(adamw), layerwise(THREE), recorder, max_epochs=-1)
    with pytest.raises(InvalidPlanError, match="would begin in step 9, and the stage has 8 steps"):
        tiny.fit(tiny.Classifier(adamw), layerwise(f"{HEAD} @ 9 steps > flat:lr=1e-4"), recorder)
    assert recorder.rates == {}
    with pytest.raises(InvalidPlanError, match="2 stages, and one fit is one stage"):
        layerwise("flat:lr=1e-4 | flat:lr=1e-5")
    with pytest.raises(InvalidScheduleError, match="phases"):
        layerwise(THREE, stacks=("model.bert",))
    with pytest.raises(InvalidPlanError, match="one distribution"):
        RatePlan(())


def test_the_table_names_the_phases(capsys: pytest.CaptureFixture[str]) -> None:
    tiny.fit(tiny.Classifier(adamw), LayerwiseLR(THREE))
    lines = capsys.readouterr().out
    assert "waits, then x 1, then waits" in lines
    assert "25% > decay" in lines.replace("\n", " ")
