"""DDP with two processes: the same rates, the same weights as one process, and exact resume in each."""

from __future__ import annotations

from pathlib import Path

import pytest
from strategies import checks
from strategies.checks import Run
from strategies.launch import Processes
from strategies.runs import EPOCHS, SCHEDULES, STEPS, Case


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_has_the_rates_and_the_weights_of_one_process(schedule: str, together: Run) -> None:
    case = Case("schedule", "ddp", schedule)
    outcomes = together(case)
    assert checks.rates(case, outcomes) == []
    assert checks.weights(case, outcomes) == []
    assert len(outcomes[1]["rates"]["head"]) == STEPS * EPOCHS


def test_a_frozen_layer_needs_no_search_for_unused_parameters(together: Run) -> None:
    # With find_unused_parameters=False, DDP fails where a parameter that it wrapped gets no gradient.
    outcomes = together(Case("frozen", "ddp", distribution="flat:lr=1e-3,freeze=embeddings..layers.1"))
    assert [outcome["error"] for outcome in outcomes] == [None, None]
    assert all("model.bert.encoder.layer.1.output.dense.weight" in outcome["frozen"] for outcome in outcomes)
    assert list(outcomes[0]["rates"]) == ["embeddings", "layers.0", "layers.1", "layers.2", "head"]


def test_a_model_that_is_made_in_configure_model_is_frozen_before_it_is_wrapped(together: Run) -> None:
    case = Case("late", "ddp", "LinearLR", built_late=True)
    outcomes = together(case)
    assert checks.rates(case, outcomes) == []
    assert checks.weights(case, outcomes) == []


@pytest.mark.parametrize(
    "variant",
    [
        {"optimizer": "halves"},
        {"optimizer": "sgd"},
        {"distribution": "decay:lr=2,factor=0.5,relative=true"},
        {"options": (("gradient_clip_val", 0.1), ("accumulate_grad_batches", 2))},
    ],
    ids=["weight_decay_halves", "sgd", "relative", "clipping_and_accumulation"],
)
def test_the_weights_are_those_of_one_process(variant: dict[str, object], together: Run) -> None:
    case = Case("variant", "ddp", "SequentialLR", **variant)  # type: ignore[arg-type]
    outcomes = together(case)
    assert checks.weights(case, outcomes) == []
    assert outcomes[0]["rates"] == outcomes[1]["rates"] == checks.alone(Case("one", **_with(case)))[0]["rates"]


def _with(case: Case) -> dict[str, object]:
    return {name: value for name, value in vars(case).items() if name not in ("name", "strategy")}


def test_clipping_takes_part_in_these_runs(together: Run) -> None:
    free, clipped = (together(Case("clip", "ddp", options=options)) for options in ((), (("gradient_clip_val", 0.1),)))
    assert checks.differences(free[0]["whole"], clipped[0]["whole"], "weights") != []


def test_bf16_mixed_keeps_float32_weights_and_the_rates(together: Run) -> None:
    case = Case("bf16", "ddp", "SequentialLR", options=(("precision", "bf16-mixed"),))
    outcomes = together(case)
    assert checks.rates(case, outcomes) == []
    # bfloat16 has 8 bits, and two processes round other sums than one.
    assert checks.weights(case, outcomes, tolerance=5e-3) == []
    assert outcomes[0]["whole"]["model.classifier.weight"].dtype == checks.torch.float32


def test_the_table_is_printed_by_the_first_process_alone(together: Run) -> None:
    first, second = together(Case("table", "ddp"))
    assert first["printed"].count("learning rate") == 1
    assert first["printed"].count("layers.1") == 1
    assert second["printed"] == ""


# Resume ----------------------------------------------------------------------------------------------------

RESUMED = ["ReduceLROnPlateau", "SequentialLR", "OneCycleLR", "CosineAnnealingWarmRestarts"]


@pytest.mark.parametrize("schedule", RESUMED)
def test_a_run_resumes_exactly_in_each_process(schedule: str, together: Run, tmp_path: Path) -> None:
    assert checks.resumes(Case("resume", "ddp", schedule, optimizer="halves"), together, tmp_path) == []


def test_a_run_resumes_exactly_within_an_accumulation_window(together: Run, tmp_path: Path) -> None:
    case = Case("window", "ddp", "SequentialLR")
    assert checks.resumes(case, together, tmp_path, within_window=True) == []


@pytest.mark.parametrize("distribution", [None, "decay:lr=2e-3,factor=0.5"], ids=["alone", "beside_LayerwiseLR"])
def test_exact_resume_of_its_own_resumes_each_process(distribution: str | None, together: Run, tmp_path: Path) -> None:
    case = Case("exact", "ddp", "SequentialLR", distribution=distribution, exact=True)
    assert checks.resumes(case, together, tmp_path, within_window=True) == []


def test_writing_a_checkpoint_leaves_the_run_alone(together: Run, tmp_path: Path) -> None:
    case = Case("plain", "ddp", "SequentialLR", dropout=0.2)
    saving = Case("saving", "ddp", "SequentialLR", dropout=0.2, save_after=3, checkpoint=str(tmp_path / "own.ckpt"))
    for plain, saved in zip(together(case), together(saving), strict=True):
        for part in ("rates", "weights", "optimizer", "schedulers", "random"):
            assert checks.differences(plain[part], saved[part], part) == []


def test_a_run_of_processes_that_were_killed_resumes_exactly_in_others(tmp_path: Path) -> None:
    def separately(case: Case) -> list[checks.Outcome]:
        with Processes(2) as processes:
            return processes.run(case)

    assert checks.resumes(Case("killed", "ddp", "LambdaLR"), separately, tmp_path) == []


def test_another_distribution_is_refused_in_every_process(together: Run, tmp_path: Path) -> None:
    assert checks.refuses_others(Case("other", "ddp", "StepLR"), together, tmp_path) == []


def test_a_checkpoint_without_the_callback_is_refused_in_every_process(together: Run, tmp_path: Path) -> None:
    path = tmp_path / "without.ckpt"
    together(Case("without", "ddp", "StepLR", distribution=None, save_after=3, checkpoint=str(path)))
    for outcome in together(Case("with", "ddp", "StepLR", resume=str(path))):
        assert outcome["error"]["type"] == "ResumeMismatchError"
        assert "without LayerwiseLR" in outcome["error"]["message"]
        assert outcome["rates"] == {}


def test_a_checkpoint_of_one_process_is_continued_by_two(together: Run, tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    case = Case("one", "single", "SequentialLR", save_after=STEPS, checkpoint=str(path))
    (unbroken,) = checks.alone(case)
    for outcome in together(Case("two", "ddp", "SequentialLR", resume=str(path))):
        assert outcome["rates"] == {name: rates[STEPS:] for name, rates in unbroken["rates"].items()}
        for name, weight in unbroken["whole"].items():
            assert (outcome["whole"][name] - weight).abs().max() < 1e-6, name
