"""`lr-dist influence` on the kept stages of a real comparison."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import assert_readable_everywhere
from comparison import FLAT, Listener, config_of
from safetensors.torch import load_file, save_file

from lr_dist.cli import main
from lr_dist.sequence.compare import compare
from lr_dist.tracing.kept_run import KeptRun
from lr_dist.tracing.removal import learn_without
from lr_dist.tracing.settings import TraceSettings
from lr_dist.tracing.trace import Tracer

SENTIMENT = "the film was wonderful"
PAIR = "a man bought a poodle || a man bought a dog"


@pytest.fixture(scope="module")
def folder(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with two arms, one seed, and the weights after every stage."""
    output = tmp_path_factory.mktemp("kept")
    arms = (FLAT, "flat:lr=1e-4")
    config = config_of(tiny_model, distributions=arms, seeds=(0,), limit=64, epochs=3, keep_weights=True)
    compare(config, output, listener=Listener())
    return output


@pytest.fixture(scope="module")
def asked(folder: Path) -> dict[str, Any]:
    """The result of a command with both kinds of questions."""
    words = ["influence", "--run", str(folder), "--query", PAIR, "--forgotten", SENTIMENT, "--most-forgotten", "1"]
    assert main([*words, "--top", "3", "--candidates", "48"]) == 0
    return json.loads((folder / "influence" / "influence.json").read_text())


def test_a_prediction_is_traced_to_the_first_task(asked: dict[str, Any], folder: Path) -> None:
    (answer,) = asked["predictions"]
    assert answer["text"] == PAIR
    assert answer["prediction"] in ("entailment", "not_entailment")
    assert 0.5 <= answer["probability"] <= 1
    scores = [entry["score"] for entry in answer["for"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    assert max(abs(entry["strength"]) for side in ("for", "against") for entry in answer[side]) == 1
    assert min(scores) > 0 > max(entry["score"] for entry in answer["against"])
    run = KeptRun.open(folder)
    for entry in answer["for"]:
        assert entry["text"] == run.bench.tasks[0].train[entry["row"]]["text_a"]
        assert entry["label"] == run.bench.tasks[0].classes[run.bench.tasks[0].train[entry["row"]]["label"]]
        assert entry["estimated_change_if_removed"] == -entry["score"] / 64
        assert sum(abs(share) for share in entry["layers"].values()) == pytest.approx(1)
        assert set(entry["layers"]) <= {"layers.0", "layers.1", "layers.2", "head"}


def test_forgetting_is_traced_to_the_second_task(asked: dict[str, Any], folder: Path) -> None:
    typed, worst = asked["forgetting"]
    assert typed["text"] == SENTIMENT
    assert worst["loss_after"] > worst["loss_before"]
    run = KeptRun.open(folder)
    entry = typed["for"][0]
    example = run.bench.tasks[1].train[entry["row"]]
    assert entry["text"] == f"{example['text_a']} || {example['text_b']}"
    assert entry["effect"] == "made it forget"


def test_the_result_says_what_it_depends_on(asked: dict[str, Any]) -> None:
    stage = asked["stages"]["demo-sentiment"]
    assert stage["candidates"] == 48
    assert set(asked["seconds"]) == set(asked["processor_seconds"])
    assert all(seconds > 0 for seconds in asked["processor_seconds"].values())
    assert stage["training_examples"] == 64
    assert stage["factors"]["labels"] == "sampled"
    assert set(stage["damping"]) == set(stage["layers"])
    assert "heads.demo-entailment" in stage["left_out"]
    assert asked["arm"].startswith(FLAT)


def test_the_page_stands_alone_and_escapes_texts(asked: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    page = (folder / "influence" / "influence.html").read_text()
    assert_readable_everywhere(page, tmp_path)
    assert "http" not in page.replace("http-equiv", "")
    assert PAIR in page
    assert asked["predictions"][0]["for"][0]["text"] in page
    from lr_dist.report.influence import write_influence_page

    asked = json.loads(json.dumps(asked).replace(SENTIMENT, "<script>x</script>"))
    page = write_influence_page(asked, folder / "other.html").read_text()
    assert "<script>x" not in page
    assert "&lt;script&gt;x" in page


def test_factors_are_used_again(asked: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {path: path.stat().st_mtime_ns for path in (folder / "influence" / "factors").rglob("*.safetensors")}
    assert kept
    words = ["influence", "--run", str(folder), "--query", "a cat slept || an animal slept", "--candidates", "48"]
    assert main([*words, "--top", "2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    said = " ".join(capsys.readouterr().out.split())
    assert "Examples of demo-sentiment that the prediction rests on" in said
    assert "Examples of demo-sentiment that speak against it" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Nothing is asked"),
        (["--query", "  "], "two texts, FIRST || SECOND"),
        (["--query", "only one text"], "two texts, FIRST || SECOND"),
        (["--forgotten", " "], "one text that is not empty"),
        (["--forgotten", "qwzx vbnm"], "knows no word"),
        (["--query", PAIR, "--arm", "flat:lr=5"], "these have"),
        (["--query", PAIR, "--stage", "1"], "from 2 on"),
        (["--query", PAIR, "--damping", "0"], "damping must be"),
        (["--query", PAIR, "--labels", "true"], "labels must be sampled"),
        (["--query", PAIR, "--candidates", "1"], "candidates must be"),
        (["--remove", "-1"], "remove must be"),
        (["--remove", "64"], "nothing would be left to choose from"),
        (["--remove", "8", "--draws", "0"], "draws must be"),
    ],
)
def test_wrong_input_is_named(folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["influence", "--run", str(folder), *words]) == 2
    assert said in capsys.readouterr().err


def test_weights_that_are_missing_or_of_another_model_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["influence", "--run", str(tmp_path), "--query", PAIR]) == 2
    assert "no file" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("influence"))
    for file in copy.glob("weights/*/stage-1.safetensors"):
        weights = load_file(file)
        weights["backbone.encoder.layer.0.attention.self.query.weight"] = torch.zeros(3, 3)
        save_file(weights, file)
    assert main(["influence", "--run", str(copy), "--query", PAIR, "--candidates", "16"]) == 2
    assert "ModelMismatchError" in capsys.readouterr().err
    shutil.rmtree(copy / "weights")
    assert main(["influence", "--run", str(copy), "--query", PAIR]) == 2
    assert "--keep-weights true" in capsys.readouterr().err


def test_learning_again_without_nothing_gives_the_kept_weights(folder: Path) -> None:
    run = KeptRun.open(folder)
    module, scores = learn_without(run, 1, (), seed=run.run["seed"])
    kept = load_file(run.weights / "stage-2.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in module.state_dict().items())
    assert [scores.p_o, scores.p_s] == run.run["matrix"][-1]


def test_the_forgetting_makers_are_removed_and_compared_with_random_ones(folder: Path, tmp_path: Path) -> None:
    words = ["--run", str(folder), "--remove", "24", "--draws", "2", "--output", str(tmp_path)]
    assert main(["influence", *words]) == 0
    removal = json.loads((tmp_path / "influence.json").read_text())["removal"]
    assert removal["removed"] == 24
    assert removal["training_examples"] == 64
    scores = removal["scores"]
    assert [len(rows) for rows in scores.values()] == [2, 2, 2]
    pairs = zip(scores["forgetting-makers"], scores["random"], strict=True)
    mean = removal["forgetting-makers minus random"]["loss"]["mean"]
    assert mean == pytest.approx(sum(ours["loss"] - other["loss"] for ours, other in pairs) / 2)
    # Without those that raised the earlier task's loss most, it is lower than without others.
    assert mean < 0
    assert "the forgetting-makers" in (tmp_path / "influence.html").read_text()


def test_examples_that_are_left_out_are_not_learned(folder: Path) -> None:
    run = KeptRun.open(folder)
    whole, half = (learn_without(run, 1, rows, seed=5)[0] for rows in ((), range(32)))
    other = learn_without(run, 1, range(32, 64), seed=5)[0]
    weights = [model.state_dict()["backbone.encoder.layer.0.output.dense.weight"] for model in (whole, half, other)]
    assert not any(torch.equal(one, two) for one, two in zip(weights, (*weights[1:], weights[0]), strict=True))


def test_texts_that_are_asked_together_have_the_scores_of_each_alone(folder: Path, tmp_path: Path) -> None:
    run = KeptRun.open(folder)
    tracer = Tracer(run, 1, TraceSettings(candidates=24, top=24), folder / "influence" / "factors")
    texts: list[tuple[str, float | None]] = [(SENTIMENT, None), ("the plot was dull", 0.0)]
    together = tracer.forgotten(texts)
    alone = [tracer.forgotten([text])[0] for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert one["text"] == other["text"]
        assert one["loss_after"] == other["loss_after"]
        scores = [
            {entry["row"]: entry["score"] for side in ("for", "against") for entry in each[side]}
            for each in (one, other)
        ]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-8)
    assert together[0]["for"][0]["score"] != together[1]["for"][0]["score"]
