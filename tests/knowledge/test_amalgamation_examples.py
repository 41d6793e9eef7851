"""The two examples of amalgamation run, with a tiny model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparison import TASKS

EXAMPLES = Path(__file__).parents[2] / "examples"


def main_of(name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"example_{Path(name).stem}", EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_articles_as_classes(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twelve articles in the form of WikiText-2; a thirteenth is too short to be taken."""
    for number, name in enumerate(("validation.txt", "test.txt")):
        lines = []
        for article in range(7):
            sentences = [f"good film {number} {article} {row} of a bad and dull old story" for row in range(8)]
            if number and article == 6:
                sentences = sentences[:1]
            lines += [f" = Article {number} {article} = ", " = = History = = ", " . ".join(sentences)]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    options = ["--data", str(tmp_path), "--model", tiny_model, "--sentences", "5", "--test", "2", "--passes", "2"]
    options += ["--teacher-epochs", "1", "--epochs", "1", "--rates", "flat:lr=1e-3"]
    table = main_of("amalgamate_articles.py")([*options, "--overlap", "2", "--output", str(tmp_path / "result.json")])
    methods = {"student muka-soft", "student uhc", "averaged encoders", "task arithmetic", "labelled student"}
    assert methods <= table.keys()
    assert all(0 <= value <= 1 for row in table.values() for value in row["accuracy"])
    assert json.loads((tmp_path / "result.json").read_text())["table"] == table
    capsys.readouterr()
    assert main_of("amalgamate_articles.py")([*options, "--layers", "1"]) == {}
    assert "top 1" in capsys.readouterr().out


def test_classes_of_a_task_with_a_label_in_common(tiny_model: str, tmp_path: Path) -> None:
    classes = ("contradiction", "entailment", "neutral")
    for split, count in (("train", 60), ("validation", 18)):
        rows = [f"good film {split} {row},bad story {row},{classes[row % 3]}\n" for row in range(count)]
        (tmp_path / f"{split}.csv").write_text("premise,hypothesis,label\n" + "".join(rows), encoding="utf-8")
    options = ["--task", f"nli={tmp_path}", "--model", tiny_model, "--sentences", "12", "--test", "4", "--passes", "2"]
    options += ["--teacher-epochs", "1", "--epochs", "1", "--rates", "flat:lr=1e-3"]
    main = main_of("amalgamate_articles.py")
    table = main([*options, "--known", "entailment+neutral", "neutral+contradiction"])
    assert {"teacher 1 on its own labels", "student muka-soft", "student uhc", "averaged encoders"} <= table.keys()
    with pytest.raises(SystemExit, match="all of them: contradiction"):
        main([*options, "--known", "entailment+neutral"])


def test_teachers_beside_a_sequence(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tasks", *TASKS, "--model", tiny_model, "--limit", "48", "--epochs", "1", "--passes", "2"]
    options += ["--state", str(tmp_path)]
    arms = ["flat:lr=1e-3", "kenneweg2022", "flat:lr=1e-3 + replay:size=16,ratio=0.1"]
    main = main_of("teachers_or_sequence.py")
    (rows,) = main([*options, "--arms", *arms, "--targets", "soft"])
    assert list(rows) == [*arms, "teachers, each on its own task", "student, soft"]
    # A student costs what its teachers cost, too.
    assert rows["student, soft"]["seconds"] > rows["teachers, each on its own task"]["seconds"]
    assert "any label" in capsys.readouterr().out
    # Seconds are never the same twice: what is finished was not learned again.
    assert main([*options, "--arms", *arms, "--targets", "soft"]) == [rows]
    (more,) = main([*options, "--arms", *arms, "--targets", "soft", "right", "unweighted", "--student-epochs", "2"])
    assert {name: more[name] for name in rows} == rows
    assert list(more)[len(rows) :] == ["student, right", "student, unweighted"]
    # Of these, the targets say whose labels a text has: one bit where the teacher is the right one.
    assert "between_nats=0.69" in capsys.readouterr().out
