"""`lr-dist informed` and `lr-dist prototypes` from the command line, with a tiny model and generated tasks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browser import assert_readable_everywhere
from tiny_folder import save_tiny_model

import lr_dist.extras
from lr_dist.cli import main
from lr_dist.knowledge.informed.result import InformedResult

WORDS = {
    "positive": "wonderful lovely great charming superb pleasant brilliant delightful",
    "negative": "bad terrible dreadful nasty horrible poor boring miserable",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("knowledge") / "words.tsv"
    facts = [f"{word}\tpolarity\t{polarity}" for polarity, words in WORDS.items() for word in words.split()]
    path.write_text("\n".join(facts))
    templates = "polarity: {adjective: ['the film was {word} .', 'the book is {word} .', 'this room was {word} .']}"
    path.with_name("templates.yaml").write_text(templates)
    return path


def command(model: Path, knowledge: Path, output: Path, *more: str) -> list[str]:
    words = "--task demo-sentiment --limits 8 --seeds 0..1 --tuning-seeds 7 --rates flat:lr=1e-3 flat:lr=3e-3"
    sizes = "--stage-rates flat:lr=3e-3 --stage-epochs 2 --min-steps 4 --curve-points 2 --curve-rows 30 --dev-size 40"
    paths = ["--model", str(model), "--knowledge", str(knowledge), "--output", str(output)]
    templates = ["--templates", str(knowledge.with_name("templates.yaml")), "--precision", "32-true"]
    return ["informed", *paths, *templates, *words.split(), *sizes.split(), *more]


def test_informed_compares_its_arms_and_continues_where_it_stopped(
    model: Path, knowledge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["--arms", "none", "informed", "mixed", "unrelated"]
    few = command(model, knowledge, tmp_path, "--parts", "head", "--rates", "flat:lr=3e-3", *arms)
    assert main(few) == 0
    result = InformedResult.load(tmp_path / "result.json")
    labels = ["none", "informed", "informed: head", "mixed", "unrelated"]
    assert sorted({run["label"] for run in result.runs}) == sorted(labels)
    assert len(result.runs) == result.planned_runs == 5 * 2
    assert {run["status"] for run in result.runs} == {"done"}
    # Equal compute: one stage of mixed has the steps of both stages of informed.
    of = {(run["label"], run["seed"]): run for run in result.runs}
    informed, mixed, unrelated = (of[name, 0] for name in ("informed", "mixed", "unrelated"))
    assert informed["stage_steps"] == unrelated["stage_steps"] > 0
    assert mixed["steps"] == informed["steps"] + informed["stage_steps"]
    # The head comes with the prototypes, except that of unrelated text.
    assert informed["zero_shot"] is not None
    assert unrelated["zero_shot"] is None
    page = (tmp_path / "report.html").read_text()
    assert "Which part carries the gain" in page
    assert "Speed of learning" in page
    assert "The prototypes alone, without an example of the task, score" in page
    assert not re.search(r"(?:src|href)=.http", page)
    (tmp_path / "browser").mkdir()
    assert_readable_everywhere(page, tmp_path / "browser")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    # One of the results and one of the tuning is lost.
    lost = [path for path in files if json.loads(path.read_text())["label"] == "mixed"][:2]
    for path in lost:
        path.unlink()
    capsys.readouterr()
    assert main(few) == 0
    again = InformedResult.load(tmp_path / "result.json")
    assert [run["score"] for run in again.runs] == [run["score"] for run in result.runs]
    changed = [path for path in (tmp_path / "runs").iterdir() if path.stat().st_mtime_ns != files[path]]
    assert sorted(changed) == sorted(lost)


def test_a_prototype_folder_is_a_task_that_compare_learns_first(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prototypes"
    assert main(["prototypes", "--knowledge", "polarity", "--output", str(folder), "--test", "demo-sentiment"]) == 0
    about = json.loads((folder / "prototypes.json").read_text())
    assert about["prototypes"]["leakage"]["checked"] > 0
    tasks = ["--tasks", f"facts={folder}", "demo-sentiment", "--limit", "60", "--epochs", "1"]
    arms = ["--arms", "flat:lr=1e-3 + replay:ratio=0.5,size=40", "--seeds", "0", "--precision", "32-true"]
    assert main(["compare", "--model", str(model), *tasks, *arms, "--output", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [task["name"] for task in result["tasks"]] == ["facts", "demo-sentiment"]
    assert result["runs"][0]["held_examples"] > 0


def test_points_of_an_equation_are_written_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "pendulum.yaml"
    path.write_text("equation: period = 2*pi*sqrt(length/9.81)\nranges: {length: [0.1, 2.0]}\n")
    assert main(["prototypes", "--knowledge", str(path), "--per-class", "5", "--output", str(tmp_path / "out")]) == 0
    header, *rows = (tmp_path / "out" / "points.csv").read_text().splitlines()
    assert header == "length,period"
    length, period = map(float, rows[4].split(","))
    assert period == pytest.approx(2 * 3.141592653589793 * (length / 9.81) ** 0.5, rel=1e-14)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--limits", "8", "9000"], "fewer than the limit 9000"),
        (["--parts", "lowest-9"], "the model has 3 layers"),
        (["--task", "demo-entailment"], "demo-entailment is on pairs of texts"),
        (["--task", "demo-acceptability", "--kind", "polarity"], "cannot be in one training set"),
        (["--tuning-seeds", "1"], "results need their own"),
        (["--unrelated", "demo-sentiment"], "which is the task itself"),
        (["--seeds", "4..1"], "spans as 0..4"),
        (["--knowledge", "nowhere.tsv"], "cannot be read"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_trained(
    model: Path, knowledge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    more = more if "--kind" in more or "--task" not in more else [*more, "--kind", "polarity"]
    assert main(command(model, knowledge, tmp_path, *more)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["prototypes", "--knowledge", "polarity"], "networkx"),
        (["prototypes", "--knowledge", "equation.yaml"], "sympy"),
        (["informed", "--knowledge", "polarity", "--task", "sst2"], "networkx"),
    ],
)
def test_the_extra_is_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], missing: str
) -> None:
    found = lr_dist.extras.find_spec
    monkeypatch.setattr(lr_dist.extras, "find_spec", lambda name: None if name == missing else found(name))
    assert main(arguments) == 2
    assert f"This needs {missing}, not installed here: pip install 'lr-dist[knowledge]'" in capsys.readouterr().err
