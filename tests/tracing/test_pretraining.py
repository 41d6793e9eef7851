"""`lr-dist influence --pretraining`: which texts of the pre-training a task's prediction rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import FLAT, Listener, config_of
from tiny_folder import save_tiny_model

from lr_dist.cli import main
from lr_dist.errors import NoMaskedLMHeadError
from lr_dist.retention.influence.ekfac import Queries, gradient_products
from lr_dist.retention.text_config import RetentionConfig
from lr_dist.sequence.compare import compare
from lr_dist.tasks import load_task
from lr_dist.tracing.kept_run import KeptRun
from lr_dist.tracing.pretraining import SHARE, Pretraining

SENTIMENT = "the film was wonderful"
PAIR = "a man bought a poodle || a man bought a dog"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison whose model has a mask token, with the weights after both stages."""
    model = str(save_tiny_model(tmp_path_factory.mktemp("model"), mask=True))
    output = tmp_path_factory.mktemp("kept")
    config = config_of(model, distributions=(FLAT,), seeds=(0,), limit=32, epochs=1, keep_weights=True)
    compare(config, output, listener=Listener())
    return output


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 different lines of two sentences."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    train = load_task("demo-entailment").train
    lines = dict.fromkeys(f"{a} {b}" for a, b in zip(train["text_a"], train["text_b"], strict=True))
    file.write_text("\n".join(list(lines)[:150]))
    return file


def config(text: Path, **changes: Any) -> RetentionConfig:
    return RetentionConfig(**{"text": str(text), "texts": 24, "least": 4, "fit_epochs": 1, **changes})


@pytest.fixture(scope="module")
def pretraining(folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    run = KeptRun.open(folder)
    return Pretraining.of(run, config(text), masks=3, batch_size=4, folder=tmp_path_factory.mktemp("head"))


def test_each_text_is_masked_k_times_and_the_labels_are_what_is_hidden(pretraining: Pretraining) -> None:
    stage, mask_id = pretraining.stage, 4
    assert stage.examples == len(pretraining.texts) == 24
    assert len(stage.rows) == 24 * 3
    for number, row in enumerate(stage.rows):
        whole = pretraining.rows.scored[number // 3]
        places = row["places"]
        assert len(places) == max(1, round(SHARE * len(whole)))
        assert set(places.tolist()) <= set(whole.ordinary.tolist())
        assert (row["input_ids"][places] == mask_id).all()
        restored = row["input_ids"].clone()
        restored[places] = row["label"]
        assert torch.equal(restored, whole.ids)
    masks = [{tuple(stage.rows[text * 3 + mask]["places"].tolist()) for mask in range(3)} for text in range(24)]
    assert max(map(len, masks)) > 1


def test_scores_are_products_with_the_gradient_of_the_mean_masked_loss(folder: Path, pretraining: Pretraining) -> None:
    run, stage = KeptRun.open(folder), pretraining.stage
    later = run.stage(run.model(0), 0, run.draw(0, 8), batch_size=4)
    batch = next(later.batches())
    found = gradient_products(stage, later, Queries([batch], later.objective.losses))
    name = "backbone.encoder.layer.1.output.dense"
    weight = stage.model.get_submodule(name).weight
    weight.requires_grad_(True)
    # Text 5 alone, without padding.
    losses = [stage.objective.losses(stage.model, stage.collate([stage.rows[5 * 3 + mask]])).sum() for mask in range(3)]
    (mine,) = torch.autograd.grad(torch.stack(losses).mean(), weight)
    asked = later.model.get_submodule(name)
    (theirs,) = torch.autograd.grad(later.objective.losses(later.model, batch)[0], asked.weight, retain_graph=True)
    (bias,) = torch.autograd.grad(later.objective.losses(later.model, batch)[0], asked.bias)
    (own_bias,) = torch.autograd.grad(
        torch.stack(
            [stage.objective.losses(stage.model, stage.collate([stage.rows[5 * 3 + mask]])).sum() for mask in range(3)]
        ).mean(),
        stage.model.get_submodule(name).bias.requires_grad_(True),
    )
    expected = -float((mine * theirs).sum() + (own_bias * bias).sum())
    assert float(found.layers[name][0, 5]) == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert stage.excluded["head.transform"] == "it is taken as constant"


def test_a_prediction_is_traced_to_the_texts_of_the_pre_training(folder: Path, text: Path, tmp_path: Path) -> None:
    words = ["influence", "--run", str(folder), "--pretraining", str(text), "--candidates", "24", "--masks", "2"]
    words += ["--top", "3", "--output", str(tmp_path)]
    assert main([*words, "--stage", "1", "--query", SENTIMENT]) == 0
    result = json.loads((tmp_path / "influence.json").read_text())
    assert result["tasks"] == {"earlier": "the pre-training text", "later": "demo-sentiment"}
    (answer,) = result["predictions"]
    lines = text.read_text().splitlines()
    assert all(entry["text"] in lines for entry in answer["for"] + answer["against"])
    assert answer["for"][0]["score"] > 0 > answer["against"][0]["score"]
    # How many texts the pre-training had is not known.
    assert answer["for"][0]["estimated_change_if_removed"] is None
    assert result["stages"]["the pre-training text"]["masks"] == 2
    assert (tmp_path / "head.safetensors").exists()
    # Of the second task, by default, with the head that was fitted before.
    assert main([*words, "--query", PAIR, "--head", str(tmp_path / "head.safetensors")]) == 0
    assert json.loads((tmp_path / "influence.json").read_text())["tasks"]["later"] == "demo-entailment"


def test_a_text_with_nothing_left_to_fit_a_head_on_is_named(folder: Path, text: Path) -> None:
    with pytest.raises(NoMaskedLMHeadError, match="A head can be fitted on plain text"):
        Pretraining.of(KeptRun.open(folder), config(text, texts=150), masks=1, batch_size=4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pretraining", "no-such-file.txt"], "cannot be read"),
        (["--pretraining", "{empty}"], "is empty"),
        (["--pretraining", "{unknown}"], "knows no token of the text"),
        (["--pretraining", "{text}", "--masks", "0"], "masks must be"),
        (["--pretraining", "{text}", "--most-forgotten", "2"], "give --query TEXT"),
        (["--pretraining", "{text}", "--stage", "3"], "from 1 on"),
        (["--pretraining", "{text}", "--head", "no-head.safetensors"], "cannot be read"),
        (["--head", "head.safetensors"], "which --pretraining FILE needs"),
    ],
)
def test_wrong_input_is_named(
    folder: Path, text: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "unknown.txt").write_text("qwzx vbnm qwzx vbnm qwzx vbnm qwzx vbnm qwzx\n" * 3)
    files = {"text": text, "empty": tmp_path / "empty.txt", "unknown": tmp_path / "unknown.txt"}
    filled = [word.format(**files) for word in words]
    assert main(["influence", "--run", str(folder), "--query", PAIR, "--output", str(tmp_path / "out"), *filled]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
