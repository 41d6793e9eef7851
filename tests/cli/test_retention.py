"""`lr-dist retention` from end to end, on folders that transformers wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import assert_readable_everywhere
from safetensors.torch import load_file, save_file
from tiny_mlm import WORDS, masked_lm, save, sentences, tokenizer
from transformers import BertForSequenceClassification

from lr_dist.cli import main

FAST = [
    "--texts",
    "24",
    "--sizes",
    "4",
    "--fit-texts",
    "128",
    "--fit-epochs",
    "4",
    "--fit-lr",
    "1e-2",
    "--precision",
    "32-true",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(["= Title =", "", *sentences(400)]))
    return str(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A masked LM, the same without its head, and a classifier whose encoder is another one by then."""
    folder = tmp_path_factory.mktemp("models")
    model = masked_lm(hidden=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    words = tokenizer()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):  # masked training, so that there is something to lose
        batch = words(sentences(16, seed=int(torch.randint(10**6, (), generator=generator))), return_tensors="pt")
        ids = batch["input_ids"]
        hidden = (torch.rand(ids.shape, generator=generator) < 0.3) & (ids >= 5)
        labels = ids.where(hidden, -100)
        model(input_ids=ids.masked_fill(hidden, 4), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    paths = {"before": save(folder / "before", model), "headless": save(folder / "headless", model.bert)}
    classifier = BertForSequenceClassification(model.config)
    classifier.bert.load_state_dict(model.bert.state_dict(), strict=False)
    with torch.no_grad():
        for layer in classifier.bert.encoder.layer:
            layer.output.dense.weight.add_(torch.randn(32, 64, generator=generator), alpha=0.3)
    return {**paths, "after": save(folder / "after", classifier)}


def measured(arguments: list[str], output: Path) -> dict[str, Any]:
    assert main(["retention", *FAST, *arguments, "--output", str(output)]) == 0
    return json.loads((output / "retention.json").read_text())


def test_what_is_lost_is_printed_and_written(folders, text, tmp_path, capsys) -> None:
    arguments = ["--model", folders["before"], "--after", folders["after"], "--text", text]
    result = measured(arguments, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "Lost for good" in printed
    assert "Next: compare rates" in printed
    lost, before, after = (result["retention"][part] for part in ("lost", "before", "after"))
    for head in ("frozen", "refitted"):
        assert lost[head]["mean"] == pytest.approx(before[head]["mean"] - after[head]["mean"])
        assert f"{lost[head]['mean']:.3f} ± {lost[head]['error']:.3f}" in printed
    assert lost["frozen"]["mean"] > lost["refitted"]["mean"] > 3 * lost["refitted"]["error"]
    assert result["schema_version"] == 1
    # Two layers were changed, from the first on; the embeddings were not.
    assert list(result["layers"]) == ["embeddings", "layers.0", "layers.1"]
    assert [values["drift"] > 0.01 for values in result["layers"].values()] == [False, True, True]
    assert result["layers"]["embeddings"]["cka"] == pytest.approx(1, abs=1e-5)
    assert result["layers"]["layers.1"]["cka"] < 0.999
    assert "layers.1" in printed
    assert result["text"]["scored"]["texts"] == 24
    assert result["head"]["beats_unigram"]
    assert result["head"]["fitted"] is None
    lines = [json.loads(line) for line in (tmp_path / "out" / "after.jsonl").read_text().splitlines()]
    assert len(lines) == 25
    total = sum(line["scores"]["frozen"]["log_likelihood"] for line in lines[1:])
    assert total / result["text"]["scored"]["tokens"] == pytest.approx(after["frozen"]["mean"])
    # The page shows what the terminal does, the verdict first.
    page = (tmp_path / "out" / "retention.html").read_text()
    assert f"Lost for good: {lost['refitted']['mean']:.3f} ± {lost['refitted']['error']:.3f} nats" in page
    assert page.index("Lost for good") < page.index("<h2>")
    assert f"before, the old head: {before['frozen']['mean']:.3f}" in page
    assert_readable_everywhere(page, tmp_path)
    # A second call reads what is there, and computes the same.
    assert measured(arguments, tmp_path / "out")["retention"] == result["retention"]


def test_a_model_has_lost_nothing_against_itself(folders, text, tmp_path, capsys) -> None:
    result = measured(["--model", folders["before"], "--after", folders["before"], "--text", text], tmp_path / "out")
    assert result["retention"]["lost"]["frozen"]["mean"] == 0
    assert result["retention"]["lost"]["refitted"]["mean"] == pytest.approx(0, abs=1e-6)


def test_a_model_without_a_head_gets_one_that_is_used_again(folders, text, tmp_path, capsys) -> None:
    arguments = ["--model", folders["headless"], "--text", text]
    first = measured(arguments, tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed.count("fitting a head ...") == 1
    assert "Next: give the fine-tuned model, --after FOLDER" in printed
    assert first["head"]["fitted"]["text"] == first["text"]["fitted"]["fingerprint"]
    assert first["head"]["masked_loss"] < first["head"]["chance"]
    path = tmp_path / "out" / "head.safetensors"
    written = path.stat().st_mtime_ns
    second = measured([*arguments, "--after", folders["after"]], tmp_path / "out")
    assert path.stat().st_mtime_ns == written
    assert second["retention"]["before"] == first["retention"]["before"]
    assert second["retention"]["lost"]["frozen"]["mean"] > 0
    # Given as a file; and without text to refit it on.
    third = measured(
        [*arguments, "--after", folders["after"], "--head", str(path), "--fit-texts", "0"], tmp_path / "third"
    )
    assert set(third["retention"]["lost"]) == {"frozen"}
    assert third["retention"]["lost"]["frozen"]["mean"] == pytest.approx(
        second["retention"]["lost"]["frozen"]["mean"], abs=1e-5
    )


def test_masked_training_of_the_whole_model_makes_a_base_of_its_own(folders, text, tmp_path, capsys) -> None:
    arguments = ["--model", folders["headless"], "--text", text]
    first = measured([*arguments, "--train-encoder", "true"], tmp_path / "out")
    base, head = tmp_path / "out" / "base", tmp_path / "out" / "head.safetensors"
    assert f"fine-tune from {base}" in capsys.readouterr().out
    weights = [load_file(Path(each) / "model.safetensors") for each in (folders["headless"], base)]
    name = "encoder.layer.1.output.dense.weight"
    assert not torch.equal(weights[0][name], weights[1][name])
    again = measured(["--model", str(base), "--head", str(head), "--text", text], tmp_path / "again")
    assert again["retention"]["before"]["frozen"] == first["retention"]["before"]["frozen"]
    output = ["--output", str(tmp_path / "none")]
    assert main(["retention", *arguments, "--train-encoder", "true", "--after", folders["after"], *output]) == 2
    assert "makes another base" in capsys.readouterr().err


def test_a_checkpoint_file_gives_what_its_folder_gives(folders, text, tmp_path, capsys) -> None:
    weights = load_file(Path(folders["after"]) / "model.safetensors")
    path = tmp_path / "weights.ckpt"
    torch.save({"epoch": 1, "state_dict": {f"net.{name}": weight for name, weight in weights.items()}}, path)
    arguments = ["--model", folders["before"], "--text", text, "--fit-texts", "0"]
    ends = [measured([*arguments, "--after", str(after)], tmp_path / Path(after).stem) for after in
            (folders["after"], path)]  # fmt: skip
    assert ends[0]["retention"] == ends[1]["retention"]


def test_wrong_input_is_named_before_anything_is_scored(folders, text, tmp_path, capsys) -> None:
    other = masked_lm(layers=1, hidden=32)
    small = save(tmp_path / "small", other.bert)
    words = save(tmp_path / "words", masked_lm(hidden=32).bert, [*WORDS[:-1], "swims"])
    empty, short, unknown = (tmp_path / f"{name}.txt" for name in ("empty", "short", "unknown"))
    empty.write_text("\n\n")
    short.write_text("the old river .\n")
    unknown.write_text("zebra " * 12)
    changed = load_file(Path(folders["headless"]) / "model.safetensors")
    changed["encoder.layer.0.output.dense.bias"] = changed["encoder.layer.0.output.dense.bias"] + 1
    torch.save({"weights": 3}, tmp_path / "none.ckpt")
    save_file({"weight": torch.ones(1)}, tmp_path / "head.safetensors")
    before = ["--model", folders["before"], "--text", text]
    cases = [
        (["--model", folders["before"]], "Nothing to score"),
        (["--model", folders["before"], "--text", str(empty)], "RetentionTextError: .*is empty"),
        (["--model", folders["before"], "--text", str(short)], "The longest text has 4 tokens"),
        (["--model", folders["before"], "--text", str(unknown)], "knows no token of the text"),
        (["--model", folders["before"], "--text", str(tmp_path / "no.txt")], "cannot be read"),
        ([*before, "--after", small], "ModelMismatchError: .*another architecture.*encoder.layer.1"),
        ([*before, "--after", words], "TokenizerMismatchError"),
        ([*before, "--after", str(tmp_path / "none.ckpt")], "ModelLoadError"),
        ([*before, "--masks", "1"], "masks must be a whole number of at least 2"),
        ([*before, "--head", str(tmp_path / "head.safetensors")], "no masked-LM head of lr-dist"),
        (["--model", folders["headless"], "--text", text, "--fit-texts", "0"], "NoMaskedLMHeadError: .*fit_mlm_head"),
        ([*before, "--fit-text", text, "--texts", "400"], "has 0 texts that are not scored"),
    ]
    for arguments, says in cases:
        output = tmp_path / "out"
        assert main(["retention", *FAST[2:], *arguments, "--output", str(output)]) == 2, arguments
        error = capsys.readouterr().err
        assert re.search(says, error), (says, error)
        assert not (output / "before.jsonl").exists()
