"""The planned rates, against the rates that a Trainer really uses and against transformers' schedules."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import get_scheduler

from lr_dist import LayerwiseLR
from lr_dist.cli import main
from lr_dist.errors import InvalidPlanError
from lr_dist.plan_preview import plot_plan, preview, schedule_factor
from lr_dist.presets import resolve_plan

PLAN = "flat:lr=1e-3,freeze=embeddings..layers.-1 @ 25% > decay:lr=4e-3,factor=0.5"


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_schedule_is_that_of_transformers(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=17)
    for step in range(17):
        assert schedule_factor(step, 17, schedule, 3) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_the_preview_is_what_a_fit_does() -> None:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
        schedule = get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=8)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    seen = tiny.Recorder()  # within the step, where the rates have their factors
    tiny.fit(tiny.Classifier(configure), LayerwiseLR(PLAN, verbose=False), seen)
    [stage] = preview(resolve_plan(PLAN), 3, 8, warmup=1 / 8)
    assert stage.starts == (0, 2)
    for group, rates in stage.rates.items():
        assert seen.rates[group] == pytest.approx(rates, rel=1e-12), group


def test_the_preview_of_a_gradual_phase_is_a_staircase() -> None:
    [stage] = preview(resolve_plan("flat:lr=1e-3 @ gradual 50% > flat:lr=1e-4"), 2, 16, schedule="constant", warmup=0)
    assert stage.starts == (0, 8)
    waits = {group: rates.count(0.0) for group, rates in stage.rates.items()}
    assert waits == {"embeddings": 6, "layers.0": 4, "layers.1": 2, "head": 0}
    assert stage.rates["embeddings"] == [0.0] * 6 + [1e-3] * 2 + [1e-4] * 8


def test_the_help_shows_single_percent_signs(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(["plan", "--help"])
    output = capsys.readouterr().out
    assert "20% >" in output
    assert "%%" not in output


def test_stages_and_errors() -> None:
    first, second = preview(resolve_plan(f"flat:lr=1e-4 | {PLAN}"), 2, 10, schedule="constant", warmup=0)
    assert first.rates["head"] == [1e-4] * 10
    assert second.rates["layers.0"] == [0.0] * 2 + [1e-3] * 8
    plan = resolve_plan("flat:lr=1e-4")
    for options, says in (({"schedule": "step"}, "cosine"), ({"warmup": 1.0}, "share"), ({"steps": 0}, "steps")):
        with pytest.raises(InvalidPlanError, match=says):
            preview(plan, 2, **{"steps": 10, **options})  # type: ignore[arg-type]
    with pytest.raises(InvalidPlanError, match="trains nothing"):
        plot_plan(preview(resolve_plan("flat:lr=0"), 2, 10))


def test_the_command_prints_both_sides_of_a_phase_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "plan.png"
    assert main(["plan", PLAN, "--layers", "3", "--steps", "100", "--output-file", str(figure)]) == 0
    output = capsys.readouterr().out
    assert "24" in output
    assert "25 (phase)" in output
    assert "waits" in output
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert main(["plan", PLAN, "--output-file", "figure.jpg"]) == 2
    assert "must end in .png or .svg" in capsys.readouterr().err
