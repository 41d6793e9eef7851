"""FSDP2 through ModelParallelStrategy: two processes that share the weights, full and distributed checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
from strategies import checks
from strategies.checks import Run
from strategies.runs import Case

SCHEDULES = ["LambdaLR", "SequentialLR", "OneCycleLR", "ReduceLROnPlateau"]
KINDS = ["fsdp2", "fsdp2-distributed"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rates_and_the_weights_are_those_of_one_process(schedule: str, together: Run) -> None:
    case = Case("schedule", "fsdp2", schedule)
    outcomes = together(case)
    assert checks.rates(case, outcomes) == []
    assert checks.weights(case, outcomes) == []


def test_the_processes_do_share_the_weights(together: Run) -> None:
    first, second = together(Case("shared", "fsdp2"))
    name = "model.bert.encoder.layer.1.attention.self.query.weight"
    assert first["weights"][name].shape == second["weights"][name].shape == (8, 16)
    assert checks.torch.equal(checks.torch.cat([first["weights"][name], second["weights"][name]]), first["whole"][name])


@pytest.mark.parametrize(
    "variant",
    [
        {"built_late": True},
        {"optimizer": "halves"},
        {"distribution": "decay:lr=2,factor=0.5,relative=true"},
        {"distribution": "flat:lr=1e-3,freeze=embeddings..layers.1"},
        {"options": (("gradient_clip_val", 0.1), ("accumulate_grad_batches", 2))},
    ],
    ids=["made_in_configure_model", "weight_decay_halves", "relative", "frozen", "clipping_and_accumulation"],
)
def test_the_weights_are_those_of_one_process(variant: dict[str, object], together: Run) -> None:
    case = Case("variant", "fsdp2", "SequentialLR", **variant)  # type: ignore[arg-type]
    assert checks.weights(case, together(case)) == []


def test_bf16_mixed_has_the_rates_and_nearly_the_weights_of_one_process(together: Run) -> None:
    case = Case("bf16", "fsdp2", "SequentialLR", options=(("precision", "bf16-mixed"),))
    outcomes = together(case)
    assert checks.rates(case, outcomes) == []
    assert checks.weights(case, outcomes, tolerance=5e-3) == []


def test_the_table_counts_the_parameters_of_all_processes_and_is_printed_once(together: Run) -> None:
    first, second = together(Case("table", "fsdp2"))
    assert [line for line in first["printed"].splitlines() if "layers.1" in line and "2,224" in line]
    assert second["printed"] == ""


def test_tensor_parallel_layers_have_the_rates_and_the_weights_of_one_process(together: Run) -> None:
    case = Case("tp", "tensor-parallel", "SequentialLR")
    outcomes = together(case)
    assert outcomes[0]["weights"]["model.bert.encoder.layer.1.intermediate.dense.weight"].shape == (16, 16)
    assert checks.rates(case, outcomes) == []
    assert checks.weights(case, outcomes) == []


# Resume ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", ["SequentialLR", "ReduceLROnPlateau"])
def test_a_run_resumes_exactly_in_each_process(kind: str, schedule: str, together: Run, tmp_path: Path) -> None:
    assert checks.resumes(Case("resume", kind, schedule, optimizer="halves"), together, tmp_path) == []


def test_a_run_with_tensor_parallel_layers_resumes_exactly(together: Run, tmp_path: Path) -> None:
    # With the same random numbers everywhere, because both processes compute the same sample.
    case = Case("tp", "tensor-parallel", "SequentialLR", optimizer="halves")
    assert checks.resumes(case, together, tmp_path, dropout=0.0) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_exactly_within_an_accumulation_window(kind: str, together: Run, tmp_path: Path) -> None:
    assert checks.resumes(Case("window", kind, "StepLR"), together, tmp_path, within_window=True) == []


@pytest.mark.parametrize("kind", KINDS)
def test_exact_resume_of_its_own_resumes_each_process(kind: str, together: Run, tmp_path: Path) -> None:
    case = Case("exact", kind, "StepLR", distribution=None, exact=True)
    assert checks.resumes(case, together, tmp_path, within_window=True) == []


def test_a_distributed_checkpoint_is_a_folder_with_a_file_of_each_process(together: Run, tmp_path: Path) -> None:
    path = tmp_path / "shares.ckpt"
    together(Case("shares", "fsdp2-distributed", save_after=2, checkpoint=str(path)))
    assert sorted(file.name for file in path.iterdir()) == [
        ".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_another_distribution_is_refused_in_every_process(kind: str, together: Run, tmp_path: Path) -> None:
    assert checks.refuses_others(Case("other", kind, "StepLR"), together, tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_without_the_callback_is_refused_in_every_process(
    kind: str, together: Run, tmp_path: Path
) -> None:
    # Its optimizer has other groups and states of more parameters, which torch would stumble over first.
    path = tmp_path / "without.ckpt"
    together(Case("without", kind, distribution=None, save_after=2, checkpoint=str(path)))
    for outcome in together(Case("with", kind, resume=str(path))):
        assert outcome["error"]["type"] == "ResumeMismatchError"
        assert "without LayerwiseLR" in outcome["error"]["message"]
        assert outcome["rates"] == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_is_not_there_is_lightnings_error(kind: str, together: Run, tmp_path: Path) -> None:
    for outcome in together(Case("gone", kind, resume=str(tmp_path / "gone.ckpt"))):
        assert outcome["error"]["type"] == "ValueError"
        assert "does not point to a valid checkpoint" in outcome["error"]["message"]


def test_a_checkpoint_of_fsdp2_is_continued_by_ddp(together: Run, tmp_path: Path) -> None:
    path = tmp_path / "sharded.ckpt"
    unbroken = together(Case("shards", "fsdp2", "SequentialLR", optimizer="halves", save_after=4, checkpoint=str(path)))
    resumed = together(Case("whole", "ddp", "SequentialLR", optimizer="halves", resume=str(path)))
    for whole, rest in zip(unbroken, resumed, strict=True):
        assert rest["rates"] == {name: rates[4:] for name, rates in whole["rates"].items()}
        for name, weight in whole["whole"].items():
            assert (rest["whole"][name] - weight).abs().max() < 1e-6, name
