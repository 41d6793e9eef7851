"""Evidence with retention: the column, and one head for all sequences."""

from __future__ import annotations

import json

import pytest
from comparison import TASKS
from tiny_folder import save_tiny_model

from lr_dist.cli import main
from lr_dist.runs.numbers import number
from lr_dist.tasks import load_task


def test_what_each_arm_loses_of_a_text_is_in_the_table(tmp_path, capsys) -> None:
    model = save_tiny_model(tmp_path / "model", mask=True)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(dict.fromkeys(load_task(TASKS[0]).train["text_a"])))
    config = {
        "model": str(model),
        "search": [list(TASKS)],
        "held_out": [list(reversed(TASKS))],
        "contenders": {name: {"text": f"flat:lr={lr}"} for name, lr in {"flat": "1e-4", "fast": "3e-3"}.items()},
        "first": "flat:lr=3e-3",
        "tuning_seeds": [0],
        "seeds": [5, 6],
        "limit": 32,
        "epochs": 1,
        "precision": "32-true",
        "retention": f"{text},texts=16,sizes=4,least=5,fit_texts=64,fit_epochs=1",
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    output = tmp_path / "out"
    assert main(["evidence", "--config", str(tmp_path / "config.yaml"), "--output", str(output)]) == 0
    outcome = json.loads((output / "evidence.json").read_text())
    results = [json.loads(path.read_text()) for path in (output / "held-out").glob("*/result.json")]
    for finding in outcome["findings"]:
        runs = [run for result in results for run in result["runs"] if run["arm"].endswith(finding["text"])]
        lost = [run["metrics"]["retention_lost"] for run in runs]
        assert finding["means"]["retention_lost"] == pytest.approx(sum(lost) / len(lost))
        assert number(finding["means"]["retention_lost"]) in (output / "evidence.md").read_text()
    assert "nats lost" in (output / "evidence.md").read_text()
    assert (output / "retention" / "head.safetensors").exists()
    # Tuning is not measured.
    tuning = [json.loads(path.read_text()) for path in (output / "tuning").glob("*/result.json")]
    assert all("measures" not in run for result in tuning for run in result["runs"])
