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
from lr_dist._distribution.schedule import schedule_factor
from lr_dist.cli import main
from lr_dist.errors import InvalidPlanError
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
    [stage] = resolve_plan(PLAN).preview(3, 8, warmup=1 / 8)
    assert stage.starts == (0, 2)
    for group, rates in stage.rates.items():
        assert seen.rates[group] == pytest.approx(rates, rel=1e-12), group


def test_the_preview_of_a_gradual_phase_is_a_staircase() -> None:
    [stage] = resolve_plan("flat:lr=1e-3 @ gradual 50% > flat:lr=1e-4").preview(2, 16, schedule="constant", warmup=0)
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
    first, second = resolve_plan(f"flat:lr=1e-4 | {PLAN}").preview(2, 10, schedule="constant", warmup=0)
    assert first.rates["head"] == [1e-4] * 10
    assert second.rates["layers.0"] == [0.0] * 2 + [1e-3] * 8
    plan = resolve_plan("flat:lr=1e-4")
    for options, says in (
        ({"schedule": "step"}, "cosine"),
        ({"warmup": 1.0}, "share"),
        ({"warmup": "0.1"}, "share"),
        ({"steps": 0}, "steps"),
    ):
        with pytest.raises(InvalidPlanError, match=says):
            plan.preview(2, **{"steps": 10, **options})  # type: ignore[arg-type]
    with pytest.raises(InvalidPlanError, match="trains nothing"):
        resolve_plan("flat:lr=0").plot(2, 10)


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


def test_the_figure_shows_every_layers_rate_in_each_step() -> None:
    plan = resolve_plan(f"flat:lr=1e-4 | {PLAN}")
    figure = plan.plot(3, 40, schedule="linear", warmup=0)
    first, second, scale = figure.axes
    assert scale.get_ylabel() == "learning rate"
    assert [first.get_title(), second.get_title()] == [
        "stage 1: flat:lr=1e-4",
        f"stage 2 on: {plan.stages[1]}"[:59] + "…",
    ]
    assert [label.get_text() for label in first.get_yticklabels()] == [
        "embeddings",
        *(f"layers.{i}" for i in range(3)),
        "head",
    ]
    [drawn] = second.images
    rates = plan.preview(3, 40, schedule="linear", warmup=0)[1].rates
    for row, (group, planned) in zip(drawn.get_array(), rates.items(), strict=True):
        white = [rate == 0 for rate in planned]
        assert list(row.mask) == white, group
        assert list(row.compressed()) == [rate for rate in planned if rate], group
    [border] = second.lines  # the second phase begins in step 10
    assert list(border.get_xdata()) == [9.5, 9.5]


def test_a_plan_draws_with_the_defaults_of_the_command() -> None:
    [axes, scale] = resolve_plan("flat:lr=1,relative=true").plot().figure.axes
    assert axes.images[0].get_array().shape == (14, 1000)
    assert scale.get_ylabel() == "multiple of the optimizer's rate"


def test_a_scaled_preset_is_titled_with_short_rates() -> None:
    axes, _ = resolve_plan("flat:lr=4.36959e-06*10").plot(2, 10).figure.axes
    assert axes.get_title() == "flat:lr=4.37e-5"
