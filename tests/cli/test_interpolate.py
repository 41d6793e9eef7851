"""`lr-dist interpolate` from end to end, on folders that transformers wrote."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lr_dist.cli import main
from lr_dist.tasks import load_task, tokenize_task, train_loader


def write_task(folder: Path, words: list[str], signs: list[str]) -> None:
    """A task of texts of four words, one of which is the sign of its class."""
    folder.mkdir()
    for split, count in {"train": 400, "validation": 150}.items():
        draw = random.Random(f"{folder.name}/{split}")
        rows = ["text,label"]
        for _ in range(count):
            label, text = draw.randint(0, 1), draw.choices(words, k=3)
            text.insert(draw.randint(0, 3), signs[label])
            rows.append(f"{' '.join(text)},{label}")
        (folder / f"{split}.csv").write_text("\n".join(rows))


def trained(model: Any, task: str, tokenizer: Any) -> None:
    tokens = tokenize_task(load_task(task), tokenizer, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for epoch in range(2):
        for batch in train_loader(tokens.train, 16, epoch, tokenizer.pad_token_id):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.fixture(scope="module")
def tasks(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two tasks that so small a model learns in a few seconds."""
    folder = tmp_path_factory.mktemp("tasks")
    vocabulary = AutoTokenizer.from_pretrained(tiny_model).get_vocab()
    words = [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if word.isalpha()][:12]
    for name, signs in {"old": words[:2], "new": words[2:4]}.items():
        write_task(folder / name, words[4:], signs)
    return [f"{name}={folder / name}" for name in ("old", "new")]


@pytest.fixture(scope="module")
def folders(tasks: list[str], tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model after the first task, and after the second with a new head."""
    folder = tmp_path_factory.mktemp("fine-tuned")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    for name, task in zip(("before", "after"), tasks, strict=True):
        if name == "after":
            model.classifier.reset_parameters()
        trained(model, task, tokenizer)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "before", folder / "after"


def test_the_curve_is_printed_and_the_chosen_weights_written(
    tasks: list[str], folders: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    before, after = folders
    output = tmp_path / "out"
    options = ["--tasks", *tasks, "--examples", "200", "--evaluations", "8", "--output", str(output)]
    assert main(["interpolate", str(before), str(after), *options]) == 0
    printed = capsys.readouterr().out
    assert "0 (before)" in printed
    assert "1 (after)" in printed
    result = json.loads((output / "interpolation.json").read_text())
    curve = {each["alpha"]: each for each in result["curve"]}
    assert list(curve) == [i / 10 for i in range(11)]
    # The ends are the two models: each knows its own task, and the second has learned the new one.
    assert curve[0]["p_o"] > 0.8
    assert curve[1]["p_s"] > max(0.8, curve[0]["p_s"])
    assert set(result["alphas"]) == {"embeddings", "layers.0", "layers.1", "layers.2"}
    assert [task["name"] for task in result["tasks"]] == ["old", "new"]
    assert "<title>alpha 0: p_o " in (output / "curve.svg").read_text()
    # The written folder is a model again: its body lies between the two, the head is the new one.
    written = AutoModelForSequenceClassification.from_pretrained(output)
    ends = [AutoModelForSequenceClassification.from_pretrained(path) for path in folders]
    for name, weight in written.named_parameters():
        start, end = (dict(model.named_parameters())[name] for model in ends)
        group = "embeddings" if ".embeddings." in name else f"layers.{name.split('.')[3]}" if "layer." in name else None
        alpha = 1.0 if group is None else result["alphas"][group]
        torch.testing.assert_close(weight, start + alpha * (end - start), msg=name)
    head = load_file(output / "old-head.safetensors")
    assert set(head) == {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert torch.equal(head["classifier.weight"], ends[0].classifier.weight)
    assert AutoTokenizer.from_pretrained(output).pad_token == "[PAD]"


@pytest.mark.parametrize(("alpha", "at"), [("0", 0.0), ("1", 1.0)])
def test_at_the_ends_the_body_is_that_of_a_model(tasks, folders, tmp_path, capsys, alpha: str, at: float) -> None:
    output = tmp_path / "out"
    options = ["--tasks", *tasks, "--examples", "50", "--alpha", alpha, "--output", str(output)]
    assert main(["interpolate", *map(str, folders), *options]) == 0
    result = json.loads((output / "interpolation.json").read_text())
    assert result["choice"] is None
    assert result["score"] == {
        key: {each["alpha"]: each for each in result["curve"]}[at][key] for key in ("p_o", "p_s")
    }
    name = "bert.encoder.layer.1.output.dense.weight"
    end = load_file(folders[int(at)] / "model.safetensors")[name]
    assert torch.equal(load_file(output / "model.safetensors")[name], end)


def test_checkpoint_files_give_what_their_folders_give(tasks, folders, tiny_model, tmp_path, capsys) -> None:
    options = ["--tasks", *tasks, "--examples", "50", "--alpha", "0.3"]
    assert main(["interpolate", *map(str, folders), *options, "--output", str(tmp_path / "folders")]) == 0
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    first, second = tmp_path / "first.ckpt", tmp_path / "second.safetensors"
    # As a LightningModule saves it, beside other things; and as `model.state_dict()`.
    torch.save({"epoch": 2, "state_dict": {f"net.{n}": w for n, w in weights[0].items()} | {"w": torch.ones(1)}}, first)
    save_file(weights[1], second)
    files = ["interpolate", str(first), str(second), *options]
    assert main([*files, "--model", tiny_model, "--output", str(tmp_path / "files")]) == 0
    results = [json.loads((tmp_path / name / "interpolation.json").read_text()) for name in ("folders", "files")]
    assert results[0]["curve"] == results[1]["curve"]
    written = [load_file(tmp_path / name / "model.safetensors") for name in ("folders", "files")]
    # transformers before version 5 can save BERT's norms under their old names.
    ours, theirs = (
        {n.replace(".gamma", ".weight").replace(".beta", ".bias"): w for n, w in e.items()} for e in written
    )
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    del weights[1]["bert.encoder.layer.0.output.dense.weight"]
    save_file(weights[1], second)
    (tmp_path / "damaged.ckpt").write_bytes(b"no checkpoint")
    capsys.readouterr()
    for arguments, says in [
        (files, "--model NAME"),
        ([*files, "--model", tiny_model], "lacks bert.encoder.layer.0.output.dense.weight"),
        ([*files[:2], str(tmp_path / "damaged.ckpt"), *options, "--model", tiny_model], "Cannot read the checkpoint"),
    ]:
        assert main([*arguments, "--output", str(tmp_path / "none")]) == 2
        assert says in capsys.readouterr().err


def test_wrong_input_is_named_before_anything_is_written(tasks, folders, tiny_model, tmp_path, capsys) -> None:
    before, after = map(str, folders)
    output = ["--output", str(tmp_path / "out")]
    other = tmp_path / "three"
    model = AutoModelForSequenceClassification.from_pretrained(before, num_labels=3, ignore_mismatched_sizes=True)
    model.save_pretrained(other)
    small = tmp_path / "small"
    config = model.config
    config.num_hidden_layers, config.num_labels = 2, 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(small)
    cases = [
        ([before, after, "--tasks", tasks[0]], "Two models are two tasks"),
        ([before, after], "--tasks sst2 qqp"),
        ([before, after, "--tasks", *tasks, "--alpha", "1.2"], "InvalidAlphaError"),
        ([before, after, "--tasks", *tasks, "--alpha", "lineer:first=1"], "Unknown family"),
        ([before, tiny_model, "--tasks", *tasks], "is no fine-tuned classifier: its file lacks"),
        ([str(other), after, "--tasks", *tasks], "has 3 outputs, and old needs 2"),
        ([str(small), after, "--tasks", *tasks], "ModelMismatchError: .*only after has bert.encoder.layer.2"),
        ([before, str(tmp_path / "none"), "--tasks", *tasks], "ModelLoadError"),
        ([before, after, "--tasks", *tasks, "--examples", "1"], "examples must be"),
        ([before, after, "--tasks", *tasks, "--output", after], "give another one"),
    ]
    for arguments, says in cases:
        arguments = arguments if "--output" in arguments else [*arguments, *output]
        assert main(["interpolate", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert re.search(says, error), (says, error)
        assert not (tmp_path / "out" / "model.safetensors").exists()
