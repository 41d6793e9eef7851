"""The command line as a user types it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from comparison import FLAT, TASKS

from lr_dist.cli import COMMANDS, main
from lr_dist.sequence.result import ComparisonResult

HEAVY = ("torch", "lightning", "optuna", "datasets", "transformers", "matplotlib")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "code",
    [
        "import lr_dist",
        "from lr_dist import LRDistribution; LRDistribution.parse('decay:lr=4e-4,factor=0.7').rates(12)",
        "from lr_dist import load_preset; load_preset('kenneweg2022').rates(12)",
        "from lr_dist.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        *(
            f"from lr_dist.cli import main\ntry: main(['{name}', '--help'])\nexcept SystemExit: pass"
            for name in COMMANDS
        ),
    ],
)
def test_importing_and_help_load_nothing_heavy(code):
    loaded = python(f"{code}\nimport sys; print('LOADED', [m for m in {HEAVY} if m in sys.modules])")
    assert loaded.splitlines()[-1] == "LOADED []"


def test_every_public_name_can_be_imported():
    python("from lr_dist import LayerwiseLR, LRDistribution, assign_layers, load_preset, param_groups, register_preset")


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for command in ("compare", "layers", "presets", "report"):
        assert command in text


def test_a_named_error_is_one_line_and_exit_status_2(capsys, tmp_path):
    status = main(["compare", "--tasks", *TASKS, "--distributions", "flat:lr=-1", "--output", str(tmp_path / "o")])
    assert status == 2
    captured = capsys.readouterr()
    assert "InvalidRateError: lr=-1" in captured.err
    assert "Traceback" not in captured.err


def test_the_command_line_wins_over_the_config_file_wherever_it_stands(tiny_model, tmp_path):
    config = tmp_path / "compare.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "model": tiny_model,
                "tasks": list(TASKS),
                "distributions": [FLAT],
                "seeds": [0, 1],
                "limit": 64,
                "epochs": 3,
                "batch_size": 16,
            }
        )
    )
    output = tmp_path / "out"
    assert main(["compare", "--epochs", "1", "--seeds", "5", "--config", str(config), "--output", str(output)]) == 0
    result = ComparisonResult.load(output / "result.json")
    assert result.config["epochs"] == 1
    assert result.config["seeds"] == [5]
    assert result.config["limit"] == 64
    assert [run["train_steps"] for run in result.runs] == [2 * 1 * 4]


def test_a_task_of_ones_own_is_given_in_yaml_with_its_columns(tiny_model, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for split, rows in (("train", 120), ("validation", 40)):
        lines = ["said,verdict"]
        lines += [f"the film {i} was {'lovely' if i % 2 else 'awful'},{'yes' if i % 2 else 'no'}" for i in range(rows)]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    config = tmp_path / "compare.yaml"
    task = {"name": "mine", "path": str(folder), "text": ["said"], "label": "verdict"}
    values = {"model": tiny_model, "tasks": ["demo-sentiment", task], "distributions": [FLAT], "seeds": [0]}
    config.write_text(yaml.safe_dump({**values, "limit": 64, "epochs": 1}))
    assert main(["compare", "--config", str(config), "--output", str(tmp_path / "out")]) == 0
    result = ComparisonResult.load(tmp_path / "out" / "result.json")
    assert result.tasks[1]["name"] == "mine"
    assert result.tasks[1]["classes"] == ["no", "yes"]


def test_layers_prints_groups_parameters_and_rates(tiny_model, capsys):
    assert main(["layers", "--model", tiny_model, "--distribution", "decay:lr=4e-4,factor=0.5,embeddings=0"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "embeddings",
        "frozen",
        "layers.0",
        " 5e-5 ",
        "layers.2",
        " 2e-4 ",
        "head",
        " 4e-4 ",
        "optimizer lr -> replaced",
    ):
        assert expected in text


def test_report_prints_the_table_and_writes_the_page_again(tiny_comparison, tmp_path, capsys):
    _, _, output = tiny_comparison
    page = tmp_path / "page.html"
    assert main(["report", str(output / "result.json"), "--output-file", str(page)]) == 0
    assert FLAT in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")


def test_report_of_a_missing_file_says_so(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none.json")]) == 2
    assert "There is no file" in capsys.readouterr().err
