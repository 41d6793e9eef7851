"""The programs of examples/ run, at a small size (second_task.py in tests/monitor, own_search.py in tests/search)."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TESTS = Path(__file__).parents[1]
# Measurements on real data, for half an hour.
NOT_RUN = {"amalgamate_articles.py", "teachers_or_sequence.py"}


def main_of(name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"example_{Path(name).stem}", EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_every_example_is_linked_from_a_page_and_run_by_a_test() -> None:
    programs = {path.name for path in [*EXAMPLES.rglob("*.py"), *EXAMPLES.rglob("*.ipynb")]}
    assert len(programs) >= 7
    pages = [EXAMPLES / "README.md", *(TESTS.parent / "docs").rglob("*.md")]
    linked = "".join(page.read_text(encoding="utf-8") for page in pages)
    tests = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py"))
    for name in programs:
        assert f"{name})" in linked, f"no page leads to {name}"
        assert name in NOT_RUN or f'{name}"' in tests, f"no test runs {name}"


def test_text_classification(tiny_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = main_of("text_classification.py")(["--model", tiny_model, "--limit", "64", "--epochs", "1"])
    printed = capsys.readouterr().out
    assert f"demo-entailment: {accuracy:.3f}" in printed
    assert re.search(r"layers\.2 +2\.8e-4 +0\.7", printed)


def test_the_trainer_of_hugging_face_trains_and_resumes(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = main_of("huggingface_trainer.py")
    options = ["--model", tiny_model, "--limit", "64", "--output", str(tmp_path)]
    assert main([*options, "--epochs", "1"]).state.global_step == 4
    resumed = main([*options, "--epochs", "2", "--resume"])
    assert resumed.state.global_step == 8
    assert resumed.state.log_history[0]["epoch"] == 1.0
    logged = [row for row in resumed.state.log_history if "learning_rate/head" in row]
    assert logged[0]["learning_rate/layers.2"] == pytest.approx(0.8 * logged[0]["learning_rate/head"])
    assert "accuracy: " in capsys.readouterr().out


def test_the_vit_learns_and_its_lower_layers_move_less(capsys: pytest.CaptureFixture[str]) -> None:
    moved = main_of("vit_layer_decay.py")(["--examples", "128", "--epochs", "1", "--rates", "decay:lr=1e-3,factor=0.5"])
    assert next(iter(moved)) == "embeddings"
    assert moved["layers.0"] < moved["layers.3"] < moved["layers.5"]
    assert "fine-tuned to the width" in capsys.readouterr().out


def test_the_lightning_cli_takes_its_rates_from_the_file(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = EXAMPLES / "lightning_cli" / "config.yaml"
    small = [f"--model.model={tiny_model}", f"--data.model={tiny_model}", "--data.limit=80", "--trainer.max_epochs=1"]
    cli = main_of("lightning_cli/main.py")(["fit", f"--config={config}", *small])
    assert cli.trainer.global_step == 5
    rates = {group["name"]: group["layer_lr"] for group in cli.trainer.optimizers[0].param_groups}
    assert rates["layers.2"] == pytest.approx(0.7 * 4e-4)
    assert "accuracy" in cli.trainer.callback_metrics


def test_every_cell_of_the_notebook_runs_in_order(tiny_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in notebook["cells"] if cell["cell_type"] == "code")
    settings = {"MODEL": repr(tiny_model), "LIMIT": "64", "EPOCHS": "1"}
    for name, value in settings.items():
        code[0], count = re.subn(rf"^{name} = .*$", f"{name} = {value}", code[0], flags=re.MULTILINE)
        assert count == 1
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code):
        exec(compile(cell, f"cell {number} of first_steps.ipynb", "exec"), names)
    assert [row.step for row in names["monitor"].history] == [0, 4]
    assert set(names["now"]) == {"sentiment", "entailment"}
    assert all(0 < score <= 1 for score in (names["first"], *names["now"].values()))
