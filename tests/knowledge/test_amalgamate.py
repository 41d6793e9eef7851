"""A student from real small teachers: what it learns, how it is chosen, saved, stopped and continued; the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import assert_readable_everywhere
from knowledge.amalgamating import (
    bert,
    distilbert,
    fitted,
    pretrained,
    save,
    sentences,
    word_tokenizer,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lr_dist.cli import main
from lr_dist.errors import ConfigurationError, DropoutOffError, TeacherError
from lr_dist.knowledge.amalgamation.config import AmalgamationConfig, StudentSettings
from lr_dist.knowledge.amalgamation.pipeline import AmalgamationListener, amalgamate, held_out_rows
from lr_dist.knowledge.amalgamation.student import student_logits
from lr_dist.knowledge.amalgamation.teacher import FunctionTeacher
from lr_dist.knowledge.amalgamation.texts import Texts, tokenise

LABELS = ("fish", "bird", "tree", "tool")
TRAIN, _ = sentences(360, seed=1)
TEST, ANSWERS = sentences(80, seed=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two teachers of two architectures and tokenizers, trained on their own labels, and what students start from."""
    place = tmp_path_factory.mktemp("models")
    animals = fitted(bert(LABELS[:2]), word_tokenizer(), *sentences(128, LABELS[:2], seed=3))
    others = word_tokenizer(LABELS[2:], backwards=True)
    things = fitted(distilbert(LABELS[2:]), others, *sentences(128, LABELS[2:], seed=4))
    return {
        "animals": save(animals, place / "animals"),
        "things": save(things, place / "things", others),
        "student": pretrained(place / "pretrained"),
    }


def config(folders: dict[str, str], text: str = "texts", target: str = "soft", **settings: Any) -> AmalgamationConfig:
    options = {"epochs": 5, "batch_size": 16, "rates": "flat:lr=3e-3", "precision": "32-true", **settings}
    return AmalgamationConfig(
        teachers=(folders["animals"], folders["things"]),
        text=text,
        student=folders["student"],
        target=target,
        passes=4,
        settings=StudentSettings(**options),
    )


def accuracy(folder: Path) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenise(Texts.of(TEST), tokenizer, 64)
    predicted = student_logits(model, tokens, tokenizer.pad_token_id).argmax(1).tolist()
    return sum(model.config.id2label[p] == a for p, a in zip(predicted, ANSWERS, strict=True)) / len(TEST)


def test_a_student_of_different_teachers_knows_all_labels(folders: dict[str, str], tmp_path: Path) -> None:
    """Another architecture, another tokenizer, disjoint labels, no label of the texts."""
    result = amalgamate(config(folders), tmp_path, texts=Texts.of(TRAIN))
    assert result.labels == LABELS
    assert accuracy(tmp_path) > 0.8  # a quarter by chance; each teacher alone knows half of them
    written = json.loads((tmp_path / "amalgamation.json").read_text())
    assert written["labels"] == list(LABELS)
    assert written["training"]["losses"] == list(result.trained.losses)
    assert [each["scored_now"] for each in written["teachers"]] == [len(set(TRAIN))] * 2
    assert not (tmp_path / "training").exists() or not list((tmp_path / "training").rglob("*.ckpt"))


def test_the_saved_student_is_a_normal_checkpoint_with_equal_logits(folders: dict[str, str], tmp_path: Path) -> None:
    kept: dict[str, Any] = {}

    class Listener(AmalgamationListener):
        def training_step(self, step: int, steps: int, losses: tuple[float, ...]) -> None:
            kept["losses"] = losses

    result = amalgamate(config(folders), tmp_path, texts=Texts.of(TRAIN), listener=Listener())
    assert (tmp_path / "model.safetensors").is_file()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {label: index for index, label in enumerate(LABELS)}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = Texts.of(TRAIN)
    held = held_out_rows(texts, config(folders))
    ours = student_logits(model, tokenise(texts, word_tokenizer(), 64).rows_at(held), 0)
    with torch.no_grad():
        theirs = model(**tokenizer([TRAIN[row] for row in held], padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(ours, theirs)
    assert kept["losses"] == result.trained.losses[:-1]
    # The best epoch by the held-out loss: a later, worse one does not replace it.
    assert result.trained.losses[result.trained.best - 1] == min(result.trained.losses)


def test_the_best_epoch_is_kept_and_not_the_last(folders: dict[str, str], tmp_path: Path) -> None:
    """A high rate after a low one spoils the weights: the first epochs' are the ones that are saved."""
    from lr_dist.knowledge.amalgamation.student import train_student
    from lr_dist.knowledge.amalgamation.targets import Objective, divergence
    from lr_dist.models import load_new_classifier

    texts, names = sentences(64, seed=5)
    tokens = tokenise(Texts.of(texts), word_tokenizer(), 64)
    targets = torch.nn.functional.one_hot(torch.tensor([LABELS.index(name) for name in names])).float()
    objective = Objective(targets, torch.ones(64), divergence)
    weights = []
    for rates in ("flat:lr=3e-3 @ 50% > flat:lr=0.5", "flat:lr=3e-3 @ 50% > flat:lr=1e-6"):
        model = load_new_classifier(folders["student"], LABELS, seed=0)
        options = StudentSettings(
            rates=rates, epochs=4, batch_size=8, schedule="constant", warmup=0, precision="32-true"
        )
        trained = train_student(model, tokens, objective, range(0, 64, 5), options, pad_token_id=0)
        assert len(trained.losses) == 4
        weights.append((trained, {name: value.clone() for name, value in model.state_dict().items()}))
    spoiled, spoiled_weights = weights[0]
    assert spoiled.best <= 2
    assert spoiled.losses[spoiled.best - 1] == min(spoiled.losses)
    assert spoiled.losses[3] > 2 * min(spoiled.losses)
    assert spoiled.losses[:2] == weights[1][0].losses[:2]
    # They are the weights after that epoch: their loss is the one that was measured then.
    from lr_dist.knowledge.amalgamation.student import held_out_loss

    model = load_new_classifier(folders["student"], LABELS)
    model.load_state_dict(spoiled_weights)
    held = tokens.rows_at(range(0, 64, 5))
    assert held_out_loss(model, objective, held, 0) == pytest.approx(min(spoiled.losses), rel=1e-5)


def test_a_stopped_call_ends_as_one_that_was_not(folders: dict[str, str], tmp_path: Path) -> None:
    texts = Texts.of(TRAIN[:96])
    dropping = pretrained(tmp_path / "pretrained", dropout=0.1)
    settings = config({**folders, "student": dropping}, schedule="linear")
    whole = amalgamate(settings, tmp_path / "whole", texts=texts)

    class Stop(AmalgamationListener):
        def training_step(self, step: int, steps: int, losses: tuple[float, ...]) -> None:
            if len(losses) == 2:  # in the third epoch
                raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        amalgamate(settings, tmp_path / "stopped", texts=texts, listener=Stop())
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    resumed = amalgamate(settings, tmp_path / "stopped", texts=texts)
    assert resumed.trained.resumed == 2
    assert [each["scored_now"] for each in resumed.teachers] == [0, 0]
    assert resumed.trained.losses == whole.trained.losses
    files = [(tmp_path / each / "model.safetensors").read_bytes() for each in ("whole", "stopped")]
    assert files[0] == files[1]


@pytest.mark.parametrize("target", ["hard", "vkd", "uhc"])
def test_every_target_teaches_all_labels(folders: dict[str, str], tmp_path: Path, target: str) -> None:
    result = amalgamate(config(folders, target=target), tmp_path, texts=Texts.of(TRAIN))
    assert result.trained.losses[-1] < result.trained.losses[0] / 2
    # UHC compares nothing between the teachers' labels, so it can be wrong there.
    assert target == "uhc" or accuracy(tmp_path) > 0.55
    assert (result.agreement is None) == (target == "uhc")


def test_functions_are_teachers_and_rates_are_by_layer(folders: dict[str, str], tmp_path: Path) -> None:
    from knowledge.amalgamating import WORDS

    def knows(*labels: str) -> Any:
        def logits(texts: list[Any]) -> list[list[float]]:
            return [[4.0 * any(word in text.split() for word in WORDS[label]) for label in labels] for text in texts]

        return logits

    teachers = [
        FunctionTeacher("a", knows("fish", "bird"), LABELS[:2]),
        FunctionTeacher("b", knows("tree", "tool"), LABELS[2:]),
    ]
    frozen = AmalgamationConfig(
        teachers=("a", "b"),
        text="texts",
        student=folders["student"],
        passes=0,
        settings=StudentSettings(rates="decay:lr=3e-3,factor=0.5", epochs=5, batch_size=16, precision="32-true"),
    )
    result = amalgamate(frozen, tmp_path, teachers=teachers, texts=Texts.of(TRAIN))
    assert accuracy(tmp_path) > 0.6
    assert result.agreement is not None
    # The layers moved by their own rates: the embeddings least, the last layer more.
    start = AutoModelForSequenceClassification.from_pretrained(folders["student"], num_labels=4).state_dict()
    end = AutoModelForSequenceClassification.from_pretrained(tmp_path).state_dict()

    def moved(name: str) -> float:
        return (end[name] - start[name]).abs().max().item()

    query = "bert.encoder.layer.{}.attention.self.query.weight"
    assert moved(query.format(0)) < moved(query.format(1))


def test_the_command_trains_saves_and_says_what_to_do_next(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TRAIN), encoding="utf-8")
    command = [
        *("amalgamate", "--teachers", folders["animals"], folders["things"], "--text", str(tmp_path / "texts.txt")),
        *("--student", folders["student"], "--output", str(tmp_path / "student"), "--passes", "4", "--epochs", "5"),
        *("--rates", "flat:lr=3e-3", "--batch-size", "16", "--top-layers", "1"),
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "4 labels, 360 texts" in said
    # In a log, a line at the start of each of the five epochs.
    assert len(re.findall(r"^student: [\d,]+ of [\d,]+ steps", said, re.MULTILINE)) == 5
    assert "from_pretrained" in said
    assert accuracy(tmp_path / "student") > 0.7
    page = (tmp_path / "student" / "amalgamation.html").read_text()
    assert page.index("One student for 4 labels of 2 teachers.") < page.index("<h2>")
    assert "fish, bird" in page
    assert f'from_pretrained("{tmp_path / "student"}")' in page
    assert_readable_everywhere(page, tmp_path)
    # Again: the scores are kept, nothing is scored twice.
    assert main([*command, "--epochs", "1"]) == 0
    assert "0 texts scored" in capsys.readouterr().out


def test_demo_tasks_are_texts(folders: dict[str, str]) -> None:
    from lr_dist.knowledge.amalgamation.pipeline import load_texts
    from lr_dist.tasks import DEMO_TASKS

    one, two = DEMO_TASKS[:2]
    both = load_texts(config(folders, text=f"{one}+{two}"))
    assert len(both) == sum(len(load_texts(config(folders, text=name))) for name in (one, two))


def test_a_folder_with_the_name_of_a_task_does_not_hide_it(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lr_dist.knowledge.amalgamation.pipeline import load_texts

    monkeypatch.chdir(tmp_path)
    expected = len(load_texts(config(folders, text="demo-sentiment")))
    (tmp_path / "demo-sentiment").mkdir()
    assert len(load_texts(config(folders, text="demo-sentiment"))) == expected


def test_tables_and_unknown_names_are_no_texts(folders: dict[str, str], tmp_path: Path) -> None:
    from lr_dist.errors import UnknownTaskError, UnreadableFileError
    from lr_dist.knowledge.amalgamation.pipeline import load_texts

    for text, error in (("a.csv", ConfigurationError), ("missing.txt", UnreadableFileError), ("no", UnknownTaskError)):
        with pytest.raises(error):
            load_texts(config(folders, text=text))


def test_a_student_from_a_fine_tuned_model_gets_a_new_head(folders: dict[str, str]) -> None:
    """Also where the file holds a head with as many outputs, for other labels."""
    from lr_dist.models import load_new_classifier

    tuned = AutoModelForSequenceClassification.from_pretrained(folders["animals"])
    first, second, other = (load_new_classifier(folders["animals"], ("x", "y"), seed=seed) for seed in (0, 0, 1))
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(first.state_dict()[query], tuned.state_dict()[query])
    assert not torch.equal(first.classifier.weight, tuned.classifier.weight)
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert first.config.id2label == {0: "x", 1: "y"}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"teachers": ("a",)}, ConfigurationError, "at least two"),
        ({"teachers": ("a", "a")}, ConfigurationError, "twice"),
        ({"text": ""}, ConfigurationError, "--text"),
        ({"target": "best"}, ConfigurationError, "soft, hard, vkd, uhc"),
        ({"tau": 0.0}, ConfigurationError, "tau"),
        ({"temperature": -1.0}, ConfigurationError, "temperature"),
        ({"passes": 1}, DropoutOffError, "at least 2"),
        ({"passes": -1}, ConfigurationError, "passes"),
        ({"top_layers": 0}, ConfigurationError, "top_layers"),
        ({"limit": 1}, ConfigurationError, "limit"),
        ({"scoring_batch": 0}, ConfigurationError, "scoring_batch"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        AmalgamationConfig(**{"teachers": ("a", "b"), "text": "x", **options})


@pytest.mark.parametrize("options", [{"held_out": 0.0}, {"held_out": 1}, {"epochs": 0}, {"warmup": 1.0}, {"lr": 0.0}])
def test_wrong_settings_of_the_training_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        StudentSettings(**options)


def test_outputs_and_teachers_that_do_not_fit_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="folder of a model"):
        amalgamate(config(folders), folders["animals"], texts=Texts.of(TRAIN))
    without = save(bert(LABELS[:2], dropout=0.0), tmp_path / "without")
    settings = config({**folders, "animals": without})
    with pytest.raises(DropoutOffError, match="passes=0"):
        amalgamate(settings, tmp_path / "out", texts=Texts.of(TRAIN))
    unnamed = save(bert(("LABEL_0", "LABEL_1")), tmp_path / "unnamed")
    with pytest.raises(TeacherError, match="no names"):
        amalgamate(config({**folders, "animals": unnamed}), tmp_path / "out", texts=Texts.of(TRAIN))
