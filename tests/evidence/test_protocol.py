"""A whole evidence run on a tiny model, its resumption and its page."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from browser import assert_readable_everywhere
from comparison import TASKS
from rich.console import Console

from lr_dist.cli import main
from lr_dist.cli.evidence import _Lines, parser
from lr_dist.cli.options import read_options
from lr_dist.errors import ConfigurationError, InvalidResultError
from lr_dist.evidence.config import EvidenceConfig
from lr_dist.evidence.protocol import Evidence
from lr_dist.evidence.tuning import taken_choices
from lr_dist.runs.numbers import number
from lr_dist.sequence.compare import Listener
from lr_dist.sequence.output import locked

ROOT = Path(__file__).parents[2]
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
        assert number(finding["means"]["p_o"]) in text
        assert number(finding["means"]["p_o"]) in html
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


def test_choices_of_another_run_are_taken_and_nothing_is_tuned(run, tmp_path) -> None:
    folder, _ = run
    content = yaml.safe_load((folder / "config.yaml").read_text())
    del content["search"], content["contenders"]["flat"]["curve"]
    content |= {"choices": str(folder / "out" / "chosen.json"), "seeds": [7]}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    assert main(["evidence", "--config", str(config), "--output", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "tuning").exists()
    outcome = json.loads((tmp_path / "out" / "evidence.json").read_text())
    theirs = json.loads((folder / "out" / "chosen.json").read_text())["choices"]
    assert outcome["choices"] == theirs
    assert [finding["text"] for finding in outcome["findings"]] == [theirs[name]["text"] for name in ("flat", "l2-sp")]


def test_an_arm_that_is_given_up_keeps_its_row(run, tmp_path) -> None:
    folder, _ = run
    content = yaml.safe_load((folder / "config.yaml").read_text())
    del content["search"]
    content |= {"choices": str(folder / "out" / "chosen.json"), "seeds": [7, 8]}
    content["contenders"]["l2-sp"]["seeds"] = 1
    config, out = tmp_path / "config.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(content))
    assert main(["evidence", "--config", str(config), "--output", str(out)]) == 0
    outcome = json.loads((out / "evidence.json").read_text())
    assert (outcome["finished"], outcome["planned"]) == (5, 5)  # two rates with two seeds, and one run
    flat, l2_sp = outcome["findings"]
    assert (flat["differences"]["p_o"]["pairs"], flat["given_up"]) == (2, None)
    assert (l2_sp["differences"]["p_o"]["pairs"], l2_sp["given_up"]) == (1, 1)
    # It is compared with the control's run of the same seed, not with the mean of both.
    name = "-".join(reversed(TASKS))
    runs = [
        run
        for part in (name, f"{name}-seeds-1")
        for run in json.loads((out / "held-out" / part / "result.json").read_text())["runs"]
    ]
    p_o = {run["arm"].partition(" | ")[2]: run["metrics"]["p_o"] for run in runs if run["seed"] == 7}
    assert l2_sp["differences"]["p_o"]["mean"] == pytest.approx(p_o[l2_sp["text"]] - p_o[flat["text"]])
    assert "l2-sp (1 seed)" in (out / "evidence.md").read_text()


def test_a_step_that_had_to_wait_for_another_process_loses_no_run(run) -> None:
    folder, _ = run
    content = yaml.safe_load((folder / "config.yaml").read_text())
    config = read_options(EvidenceConfig, parser().parse_args(["--config", str(folder / "config.yaml")]))
    evidence = Evidence(config, folder / "out")
    first, second = evidence.held_out_steps(evidence.choices())
    assert (len(first.seeds), len(second.seeds)) == (1, 2)
    other_process = ExitStack()

    def listener_of(step, number, of) -> Listener:
        # The first step finds its folder in use and comes back after the second one.
        other_process.close()
        if not tried:
            other_process.enter_context(locked(step.folder(evidence.output)))
        tried.append(len(step.seeds))
        return _Lines(Console(quiet=True), step, number, of)

    tried: list[int] = []
    evidence._run_steps([first, second], listener_of, "")
    assert tried == [1, 2, 1]
    assert {run["seed"] for run in evidence.result(second).runs} == set(content["seeds"])


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"ewc": "flat:lr=1e-4 + ewc:strength=1"}, "no settings for the arm ewc; it has flat, l2-sp"),
        ({"l2-sp": CONTENDERS["l2-sp"] | {"text": "flat:lr=1e-3 + l2-sp:alpha={alpha}"}}, "does not come from"),
    ],
)
def test_choices_that_were_made_for_other_arms_are_not_taken(run, arm, says) -> None:
    arms = {"flat": CONTENDERS["flat"], **arm}
    chosen = str(run[0] / "out" / "chosen.json")
    config = EvidenceConfig(choices=chosen, held_out=(TASKS,), contenders=arms)
    with pytest.raises(ConfigurationError, match=says):
        Evidence(config, run[0] / "out").choices()


@pytest.mark.parametrize("content", ["[]", "{}", '{"choices": {"flat": {"name": "flat"}}}'])
def test_another_file_is_not_taken_for_choices(tmp_path, content) -> None:
    (tmp_path / "other.json").write_text(content)
    config = EvidenceConfig(
        choices=str(tmp_path / "other.json"), held_out=(TASKS,), contenders={"flat": CONTENDERS["flat"]}
    )
    with pytest.raises(InvalidResultError, match=r"is not the chosen\.json"):
        Evidence(config, tmp_path).choices()


@pytest.mark.parametrize("path", sorted((ROOT / "configs/evidence").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_protocols_are_valid(path, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LR_DIST_DATA", str(tmp_path))
    config = read_options(EvidenceConfig, parser().parse_args(["--config", str(path)]))
    choices = Evidence(config, tmp_path).choices()
    if config.choices is None:
        chosen = path.with_suffix("") / "chosen.json"
        assert choices == {}
        assert not chosen.exists() or set(taken_choices(config.arms(), chosen)) == set(config.contenders)
    else:
        assert set(choices) == set(config.contenders)
