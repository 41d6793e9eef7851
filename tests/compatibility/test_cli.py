"""LayerwiseLR configured from YAML and from the command line, by a real LightningCLI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch.cli as lightning_cli
import pytest
import tiny
import yaml

from lr_dist import ExactResume, LayerSchedule, LayerwiseLR, LRDistribution

pytestmark = pytest.mark.skipif(
    not lightning_cli._JSONARGPARSE_SIGNATURES_AVAILABLE,
    reason="LightningCLI needs: pip install 'jsonargparse[signatures]'",
)
HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "callback.yaml"
SILENT = {
    "accelerator": "cpu",
    "devices": 1,
    "max_steps": 2,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
DECAY = LRDistribution.decay(lr=4e-4, factor=0.7).rates(3)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`main` of the program, in this process; files that it writes go to a folder of the test."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.chdir(tmp_path)
    import cli_main

    return cli_main.main


def arguments(config: Path, *more: str, model: str = "cli_main.Model") -> list[str]:
    silent = [f"--trainer.{key}={str(value).lower()}" for key, value in SILENT.items()]
    return ["fit", "--config", str(config), f"--model={model}", *silent, *more]


def written(folder: Path, callback: dict[str, Any], **more: Any) -> Path:
    """A configuration with LayerwiseLR and these arguments of it."""
    entry = {"class_path": "lr_dist.LayerwiseLR", "init_args": callback}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": [entry], "logger": False}, **more}))
    return file


def rates_of(cli: Any) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in cli.trainer.optimizers[0].param_groups}


# The shipped configuration -------------------------------------------------------------------------------


def test_the_shipped_configuration_fits_with_its_rates_and_saves_itself(main: Any, tmp_path: Path) -> None:
    cli = main(arguments(CONFIG))
    assert rates_of(cli) == pytest.approx(DECAY)
    saved = yaml.safe_load(next(tmp_path.rglob("config.yaml")).read_text())
    callback = saved["trainer"]["callbacks"][0]
    assert callback["class_path"] == "lr_dist.LayerwiseLR"
    assert callback["init_args"]["distribution"] == "decay:lr=4e-4,factor=0.7"
    # What it saved is a configuration again.
    assert rates_of(main(["fit", "--config", str(next(tmp_path.rglob("config.yaml")))])) == pytest.approx(DECAY)


def test_the_variants_in_its_comments_can_be_used_as_they_stand(main: Any, tmp_path: Path) -> None:
    names = {"distribution", "overrides", "allow_schedulers", "unfreeze_every_n_epochs"}
    options: dict[str, Any] = {}
    for line in (line.strip() for line in CONFIG.read_text().splitlines()):
        if line.startswith("# ") and line.removeprefix("# ").partition(": ")[0] in names:
            options.update(yaml.safe_load(line.removeprefix("# ")))
    assert set(options) == names
    # The regex and the class are placeholders.
    options |= {"overrides": {"pooler": "layers.-1"}, "allow_schedulers": ["cli_main.Slow"]}
    (tmp_path / "in").mkdir()
    cli = main(arguments(written(tmp_path / "in", options)))
    assert rates_of(cli) == pytest.approx(DECAY)
    assert len(cli.trainer.optimizers[0].param_groups[-2]["params"]) == 16 + 2


def test_a_schedule_and_exact_resume_can_be_written_in_a_configuration(main: Any, tmp_path: Path) -> None:
    schedule = {"every_n_epochs": 1, "warmup_steps": {"head": 0, "layers.-1": 2}}
    text = written(tmp_path, {"distribution": "flat:lr=1e-4", "schedule": schedule})
    cli = main(arguments(text))
    layerwise = next(callback for callback in cli.trainer.callbacks if isinstance(callback, LayerwiseLR))
    assert layerwise.schedule == LayerSchedule(every_n_epochs=1, warmup_steps={"head": 0, "layers.-1": 2})
    config = yaml.safe_load(text.read_text())
    config["trainer"]["callbacks"] = [{"class_path": "lr_dist.ExactResume"}]
    text.write_text(yaml.safe_dump(config))
    assert any(isinstance(callback, ExactResume) for callback in main(arguments(text)).trainer.callbacks)


def test_the_program_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "cli_main.py"), *arguments(CONFIG, model="Model")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("group "))
    assert {name: float(rate) for name, rate in printed.items()} == pytest.approx(DECAY)
    # The table that the callback prints.
    assert "LayerwiseLR: decay:lr=4e-4,factor=0.7" in done.stdout


# Ways to write it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ("kenneweg2022", None),
        ("from_layers:embeddings=1e-5,layers=3e-5/2e-4/5e-4,head=7e-3", tiny.RATES),
        (tiny.EXPLICIT, tiny.RATES),
        ({"family": "decay", "lr": "4e-4", "factor": 0.7}, DECAY),
        ({"family": "flat", "lr": 1e-4, "edits": [{"from": "head", "to": "head", "rate": 1e-3}]}, None),
    ],
    ids=["preset", "text", "mapping", "number as text", "edits"],
)
def test_every_form_of_a_distribution_can_be_written_in_yaml(
    distribution: Any, expected: Any, main: Any, tmp_path: Path
) -> None:
    from lr_dist.presets import resolve_distribution

    text = written(tmp_path, {"distribution": distribution}).read_text().replace("'4e-4'", "4e-4")
    (tmp_path / "config.yaml").write_text(text)
    cli = main(arguments(tmp_path / "config.yaml"))
    if expected is None:
        expected = resolve_distribution(distribution).rates(3)
    assert rates_of(cli) == pytest.approx(expected)


def test_a_file_of_ones_own_is_read(main: Any, tmp_path: Path) -> None:
    LRDistribution.from_dict(tiny.EXPLICIT).save(tmp_path / "mine.yaml")
    assert rates_of(main(arguments(written(tmp_path, {"distribution": "mine.yaml"})))) == tiny.RATES


def test_the_callback_can_be_given_on_the_command_line(main: Any) -> None:
    cli = main(
        [
            "fit",
            "--model=cli_main.Model",
            *[f"--trainer.{key}={str(value).lower()}" for key, value in SILENT.items()],
            "--trainer.logger=false",
            "--trainer.callbacks+=lr_dist.LayerwiseLR",
            "--trainer.callbacks.distribution=decay:lr=4e-4,factor=0.7,head=1e-3",
            "--trainer.callbacks.overrides={'pooler': layers.-1}",
            "--trainer.callbacks.verbose=false",
        ]
    )
    assert rates_of(cli) == pytest.approx({**DECAY, "head": 1e-3})
    (callback,) = (c for c in cli.trainer.callbacks if type(c).__name__ == "LayerwiseLR")
    assert (dict(callback.overrides), callback.verbose) == ({"pooler": "layers.-1"}, False)


@pytest.mark.parametrize(
    ("schedule", "factor", "callback"),
    [
        ({"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.5}}, 0.5, {}),
        (
            {
                "class_path": "lightning.pytorch.cli.ReduceLROnPlateau",
                "init_args": {"monitor": "score", "patience": 0, "factor": 0.1, "min_lr": 2e-4},
            },
            0.2,  # the floor is a fifth of the optimizer's rate
            {},
        ),
        ({"class_path": "cli_main.Slow"}, 0.75, {"allow_schedulers": ["cli_main.Slow"]}),
    ],
    ids=["ExponentialLR", "ReduceLROnPlateau", "allowed"],
)
def test_optimizers_and_schedules_of_the_command_line_are_layered(
    schedule: dict[str, Any], factor: float, callback: dict[str, Any], main: Any, tmp_path: Path
) -> None:
    config = written(
        tmp_path,
        {"distribution": tiny.EXPLICIT, **callback},
        optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-3, "momentum": 0.9}},
        lr_scheduler=schedule,
    )
    epochs = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=2", "--trainer.max_steps=-1"]
    cli = main(arguments(config, *epochs, model="cli_main.Bare"))
    expected = {"ExponentialLR": factor**3}.get(schedule["class_path"].split(".")[-1], factor)
    assert rates_of(cli) == pytest.approx({name: rate * expected for name, rate in tiny.RATES.items()})


# Help and errors -----------------------------------------------------------------------------------------


def failure(main: Any, capsys: pytest.CaptureFixture[str], *given: Any) -> str:
    """What a user sees of a configuration that cannot work: the parser's message, or the error's."""
    with pytest.raises((SystemExit, Exception)) as raised:
        main(*given)
    return f"{raised.value}\n{capsys.readouterr().err}"


def test_a_presets_name_that_is_wrong_is_answered_with_close_names(
    main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = failure(main, capsys, arguments(written(tmp_path, {"distribution": "keneweg2022"})))
    assert "There is no preset 'keneweg2022'. Close names: kenneweg2022" in message
    assert "lr_dist.presets.list_presets()" in message


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        ({"distribution": "decay:lr=4e-4"}, "decay needs factor"),
        ({"distribution": {"family": "decay", "lr": -1, "factor": 0.7}}, "lr"),
        ({"distribution": "flat:lr=1e-4", "overides": {"x": "head"}}, "overides"),
        ({}, "distribution"),
        ({"distribution": "flat:lr=1e-4", "allow_schedulers": ["no.such.Scheduler"]}, "no.such.Scheduler"),
        ({"distribution": "flat:lr=1e-4", "unfreeze_every_n_epochs": 0}, "unfreeze_every_n_epochs"),
    ],
    ids=["value", "rate", "misspelt", "missing", "class", "epochs"],
)
def test_other_mistakes_are_named(
    callback: dict[str, Any], message: str, main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failure(main, capsys, arguments(written(tmp_path, callback)))


def test_the_configuration_is_printed_with_every_argument(main: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*arguments(CONFIG), "--print_config"])
    assert stop.value.code == 0
    callback = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"][0]
    assert callback["init_args"]["distribution"] == "decay:lr=4e-4,factor=0.7"
    assert callback["init_args"]["verbose"] is True
    assert callback["init_args"]["overrides"] is None


def test_the_help_of_the_callback_names_every_argument(main: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import inspect

    from lr_dist import LayerwiseLR

    with pytest.raises(SystemExit) as stop:
        main(["fit", "--trainer.callbacks.help=lr_dist.LayerwiseLR"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name in list(inspect.signature(LayerwiseLR).parameters):
        assert f"--trainer.callbacks.{name}" in printed
