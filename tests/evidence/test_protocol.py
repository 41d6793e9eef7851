"""A whole evidence run on a tiny model, its resumption and its page."""

from __future__ import annotations

import json

import pytest
import yaml
from browser import assert_readable_everywhere
from comparison import TASKS

from lr_dist.cli import main
from lr_dist.errors import ConfigurationError
from lr_dist.evidence.config import EvidenceConfig
from lr_dist.evidence.protocol import Evidence

CONTENDERS = {
    "flat": {"text": "flat:lr={lr}", "settings": {"lr": ["1e-4", "3e-3"]}, "curve": "lr"},
    "l2-sp": {"text": "flat:lr=3e-3 + l2-sp:alpha={alpha}", "settings": {"alpha": [0.001, 1]}},
}


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    config = folder / "config.yaml"
    content = {
        "model": str(tiny_model),
        "search": [list(TASKS)],
        "held_out": [list(reversed(TASKS))],
        "contenders": CONTENDERS,
        "first": "flat:lr=3e-3",
        "tuning_seeds": [0],
        "seeds": [5, 6],
        "limit": 96,
        "epochs": 1,
        "precision": "32-true",
    }
    config.write_text(yaml.safe_dump(content))
    arguments = ["evidence", "--config", str(config), "--output", str(folder / "out")]
    assert main(arguments) == 0
    return folder, arguments


def test_every_arm_is_tuned_on_the_search_sequences_and_fixed(run):
    folder, _ = run
    tuning = json.loads((folder / "out" / "tuning" / "-".join(TASKS) / "result.json").read_text())
    assert tuning["config"]["evaluate_on"] == "dev"
    assert len(tuning["runs"]) == 4
    choices = json.loads((folder / "out" / "chosen.json").read_text())["choices"]
    best = max((r for r in tuning["runs"] if "l2-sp" not in r["arm"]), key=lambda r: r["metrics"]["average_accuracy"])
    assert best["arm"].endswith(choices["flat"]["text"])
    assert choices["flat"]["tried"] == 2


def test_the_held_out_sequences_are_scored_on_validation_with_every_seed(run):
    folder, _ = run
    name = "-".join(reversed(TASKS))
    result = json.loads((folder / "out" / "held-out" / name / "result.json").read_text())
    assert result["config"]["evaluate_on"] == "validation"
    assert {r["seed"] for r in result["runs"]} == {5, 6}
    assert len(result["arms"]) == 3  # both rates of the control's curve, and the chosen strength
    # Arms share the first stage: what was learned before the second one is the same to the digit.
    learned = {(r["seed"], r["matrix"][1][0]) for r in result["runs"] if "l2-sp" not in r["arm"]}
    assert len(learned) == 2


def test_table_page_and_result_say_the_same(run, capsys, tmp_path):
    folder, arguments = run
    outcome = json.loads((folder / "out" / "evidence.json").read_text())
    assert (outcome["finished"], outcome["planned"]) == (6, 6)
    control, other = outcome["findings"]
    assert control["name"] == "flat"
    assert control["differences"]["p_o"]["mean"] == 0
    text, html = ((folder / "out" / f"evidence.{kind}").read_text() for kind in ("md", "html"))
    for finding in (control, other):
        assert f"{finding['means']['p_o']:.3f}" in text
        assert f"{finding['means']['p_o']:.3f}" in html
    assert "<svg" in html
    assert_readable_everywhere(html, tmp_path)
    # A finished protocol runs nothing again.
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("runs/*.json")}
    assert main([*arguments, "--only-report", "true"]) == 0
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("runs/*.json")} == before
    capsys.readouterr()


def test_choices_of_other_arms_are_refused(run):
    folder, _ = run
    config = EvidenceConfig(
        search=(TASKS,), held_out=(tuple(reversed(TASKS)),), contenders={"flat": CONTENDERS["flat"]}
    )
    with pytest.raises(ConfigurationError, match="chosen for other arms"):
        Evidence(config, folder / "out").choices()
