"""What runs lose of a text, as a measure of comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comparison import FLAT, FROZEN, Listener, config_of
from rich.console import Console
from tiny_folder import save_tiny_model

from lr_dist.cli import main
from lr_dist.errors import ConfigurationError, MaskedLMHeadError, RetentionTextError
from lr_dist.models import load_backbone, load_tokenizer
from lr_dist.report.terminal import print_comparison
from lr_dist.retention.fit_head import HeadFit, fit_mlm_head
from lr_dist.retention.measure import RetentionSetup, parse_retention
from lr_dist.retention.texts import read_texts, token_rows
from lr_dist.runs.numbers import number
from lr_dist.sequence.compare import compare
from lr_dist.tasks import load_task

# One seed, three steps a task.
ONCE = {"seeds": (0,), "epochs": 1, "limit": 48}
FAST = ",texts=20,sizes=4,least=5,fit_texts=80,fit_epochs=2,fit_lr=1e-2"


@pytest.fixture(scope="module")
def model(text, tmp_path_factory) -> str:
    """Trained on the text, so that there is something to lose."""
    folder = str(save_tiny_model(tmp_path_factory.mktemp("masking"), mask=True))
    encoder, tokenizer = load_backbone(folder), load_tokenizer(folder)
    rows = token_rows(read_texts(text), tokenizer, least=5)
    fit_mlm_head(encoder, tokenizer, rows, HeadFit(epochs=4, lr=1e-2, encoder_lr=3e-3), train_encoder=True)
    encoder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(dict.fromkeys(load_task("demo-sentiment").train["text_a"])))
    return str(path)


def measured(model: str, text: str, output: Path, **changes):
    setup = RetentionSetup(model, parse_retention(text + FAST), output / "retention")
    listener = Listener()
    return compare(config_of(model, **changes), output, listener=listener, measures=[setup]), listener


@pytest.fixture(scope="module")
def comparison(model, text, tmp_path_factory):
    return measured(model, text, tmp_path_factory.mktemp("measured"), **ONCE)


def test_a_frozen_encoder_has_lost_nothing_and_a_trained_one_something(comparison) -> None:
    result, _ = comparison
    metrics = {run["arm"]: run["metrics"] for run in result.runs}
    assert metrics[FROZEN]["retention_lost"] == 0
    assert metrics[FROZEN]["retention_lost_frozen"] == 0
    assert metrics[FLAT]["retention_lost_frozen"] > metrics[FLAT]["retention_lost"] > 0.01
    measure = result.runs[0]["measures"]["retention"]
    assert measure["lost"]["refitted"]["mean"] == result.runs[0]["metrics"]["retention_lost"]
    assert measure["head"]["fitted"]["tokens"] > 0
    summary = {each["arm"]: each["metrics"] for each in result.summary}
    assert summary[FLAT]["retention_lost"]["mean"] == metrics[FLAT]["retention_lost"]


def test_the_measure_changes_no_score(comparison, model, tmp_path) -> None:
    result, _ = comparison
    plain = compare(config_of(model, **ONCE), tmp_path, listener=Listener())
    assert [run["matrix"] for run in plain.runs] == [run["matrix"] for run in result.runs]
    assert "measures" not in plain.runs[0]


def test_the_table_shows_it(comparison) -> None:
    result, _ = comparison
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_comparison(result, console)
    shown = console.export_text()
    assert "nats lost" in shown
    assert number(result.runs[0]["metrics"]["retention_lost"]) in shown


def test_finished_runs_are_not_repeated_and_another_text_is_another_run(comparison, model, text, tmp_path) -> None:
    first, listener = measured(model, text, tmp_path, distributions=(FLAT,), **ONCE)
    again, repeated = measured(model, text, tmp_path, distributions=(FLAT,), **ONCE)
    assert len(listener.ran) == 1
    assert repeated.ran == []
    assert again.runs == first.runs
    other = tmp_path / "other.txt"
    other.write_text("\n".join(reversed(Path(text).read_text().splitlines()[:150])))
    _, changed = measured(model, str(other), tmp_path, distributions=(FLAT,), **ONCE)
    assert len(changed.ran) == 1


def test_one_task_alone_has_it_too(model, text, tmp_path, capsys) -> None:
    arguments = ["--model", model, "--tasks", "demo-sentiment", "--distributions", FLAT, "--seeds", "0"]
    arguments += ["--limit", "64", "--epochs", "1", "--precision", "32-true", "--retention", text + FAST]
    assert main(["compare", *arguments, "--output", str(tmp_path / "one")]) == 0
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert result["runs"][0]["metrics"]["retention_lost_frozen"] != 0
    assert result["config"]["retention"] == text + FAST
    assert "nats lost" in capsys.readouterr().out
    assert "nats lost" in (tmp_path / "one" / "report.html").read_text()
    assert (tmp_path / "one" / "retention" / "head.safetensors").exists()


def test_shared_stages_are_taken_over(model, text, tmp_path) -> None:
    arms = {"distributions": (FLAT,), "arms": (f"{FLAT} | flat:lr=1e-4",), **ONCE}
    kept, _ = measured(model, text, tmp_path / "kept", **arms)
    alone, _ = measured(model, text, tmp_path / "alone", **arms, keep_stages=False)
    assert [run["taken_over"] for run in kept.runs if run["taken_over"]] == [[0]]
    assert [run["metrics"] for run in kept.runs] == [run["metrics"] for run in alone.runs]


def test_wrong_input_is_named_before_anything_is_trained(model, text, tmp_path, tiny_model, capsys) -> None:
    with pytest.raises(ConfigurationError, match="key=value"):
        parse_retention("text.txt,text=3")
    with pytest.raises(ConfigurationError, match="Did you mean"):
        parse_retention("text.txt,txts=3")
    with pytest.raises(ConfigurationError, match=r"texts in .* must be a number"):
        parse_retention("text.txt,texts=many")
    with pytest.raises(ConfigurationError, match="Nothing to score"):
        parse_retention(",texts=3")
    with pytest.raises(RetentionTextError, match="cannot be read"):
        RetentionSetup(model, parse_retention(str(tmp_path / "none.txt")), tmp_path)
    setup = RetentionSetup(model, parse_retention(f"{text},head={tmp_path / 'none.safetensors'}"), tmp_path)
    with pytest.raises(MaskedLMHeadError, match=r"none\.safetensors.* cannot be read"):
        setup().identity()
    arguments = ["--model", tiny_model, "--tasks", "demo-sentiment", "--distributions", FLAT, "--seeds", "0"]
    assert main(["compare", *arguments, "--retention", text + FAST, "--output", str(tmp_path / "none")]) == 2
    assert "has no mask token" in capsys.readouterr().err
