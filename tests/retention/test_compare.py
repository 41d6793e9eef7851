"""Drift and the layer probe in real comparisons: in the result file, in the report, and without a trace in the runs."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparison import FLAT, FROZEN, Listener, config_of
from transformers import AutoTokenizer, GPT2Config, GPT2Model, PreTrainedTokenizerFast

from lr_dist.errors import ConfigurationError, InvalidResultError
from lr_dist.report.page import render_report
from lr_dist.retention.compare import DriftMeasure, measures_of
from lr_dist.retention.config import RetentionCompareConfig
from lr_dist.sequence.compare import Comparison, compare
from lr_dist.sequence.result import ComparisonResult

PROBED = functools.partial(DriftMeasure, True)
LAYERS = ["embeddings", "layers.0", "layers.1", "layers.2", "head"]


@pytest.fixture(scope="module")
def measured(tiny_model, tmp_path_factory) -> tuple[ComparisonResult, Listener, object]:
    output, listener = tmp_path_factory.mktemp("drift"), Listener()
    config = config_of(tiny_model, seeds=(0,))
    result = compare(config, output, listener=listener, command="test", measures=[PROBED])
    return result, listener, output


def test_the_runs_are_the_same_as_without_it(measured, tiny_comparison):
    result, listener, output = measured
    plain = {run["arm"]: run for run in tiny_comparison[0].runs if run["seed"] == 0}
    for run in result.runs:
        assert run["matrix"] == plain[run["arm"]]["matrix"]
        assert "measures" not in plain[run["arm"]]
        assert run["identity"] != plain[run["arm"]]["identity"]
    # The first stage that the arms could share is still trained once for each arm, in as many steps.
    assert listener.steps == 2 * 2 * 2 * 6
    assert ComparisonResult.load(output / "result.json") == result


def test_layers_that_are_frozen_stay_and_the_others_go(measured):
    for run in measured[0].runs:
        first, second = run["measures"]["drift"]
        assert (first["task"], second["task"]) == ("demo-sentiment", "demo-entailment")
        assert list(first["drift"]) == LAYERS
        assert first["since_start"] == first["drift"]
        still = [stage["drift"][layer] for stage in (first, second) for layer in LAYERS[:-1]]
        assert set(still) == {0.0} if run["arm"] == FROZEN else min(still) > 0
        assert min(stage["drift"]["head"] for stage in (first, second)) > 0
        if run["arm"] == FLAT:
            assert max(second["drift"].values()) < 1
            assert second["since_start"]["layers.1"] > second["drift"]["layers.1"]


def test_all_layers_put_back_have_the_score_before_the_stage(measured):
    for run in measured[0].runs:
        first, second = run["measures"]["drift"]
        assert "probe" not in first
        probe = second["probe"]
        assert probe["p_o"] == run["matrix"][2][0]
        assert probe["p_o"] + probe["all_put_back"] == pytest.approx(run["matrix"][1][0], abs=1e-12)
        if run["arm"] == FROZEN:
            # Only the second task's head has changed, which the first one does not use.
            assert probe["put_back"] == {"head": 0.0}
        else:
            assert list(probe["put_back"]) == LAYERS
            # The layers' gains were measured with other weights than the run's own.
            assert len(set(probe["put_back"].values())) > 1


def test_hidden_states_of_the_first_task_stay_where_the_encoder_is_frozen_and_change_where_it_learns(measured):
    for run in measured[0].runs:
        first, second = run["measures"]["drift"]
        assert "cka" not in first
        assert list(second["cka"]) == LAYERS[1:-1]  # the first token's embedding is the same in every text
        if run["arm"] == FROZEN:
            assert second["cka"] == pytest.approx(dict.fromkeys(LAYERS[1:-1], 1.0), abs=1e-9)
        else:
            assert max(second["cka"].values()) < 1 - 1e-6
            assert min(second["cka"].values()) > 0


def test_a_decoder_is_measured_too(tiny_model, tmp_path):
    """Its head reads the last token, so the rows are the means of the texts' tokens."""
    words = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, model_max_length=64, pad_token="[PAD]", unk_token="[UNK]"
    )
    torch.manual_seed(0)
    sizes = {"vocab_size": len(words), "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    GPT2Model(GPT2Config(**sizes, pad_token_id=0, bos_token_id=3, eos_token_id=3)).save_pretrained(tmp_path / "gpt")
    tokenizer.save_pretrained(tmp_path / "gpt")
    config = config_of(str(tmp_path / "gpt"), distributions=(FLAT,), seeds=(0,), epochs=1)
    result = compare(config, tmp_path / "out", listener=Listener(), command="test", measures=[PROBED])
    first, second = result.runs[0]["measures"]["drift"]
    assert list(first["drift"]) == ["embeddings", "layers.0", "layers.1", "head"]
    assert list(second["cka"]) == ["embeddings", "layers.0", "layers.1"]
    assert all(0.5 < value < 1 for value in second["cka"].values())
    assert second["probe"]["p_o"] + second["probe"]["all_put_back"] == pytest.approx(result.runs[0]["matrix"][1][0])


def test_the_report_has_a_heat_map_for_each_arm(measured, tiny_comparison):
    page = render_report(measured[0])
    assert "How far each layer went" in page
    assert "How much of what each layer computes has changed" in page
    assert "Which layer did the forgetting" in page
    part = page[page.index("How far each layer went") : page.index("How much of what")]
    assert part.count("<svg") == 2
    value = measured[0].runs[0]["measures"]["drift"][1]["drift"]["layers.1"]
    assert f">{value:.2g}<" in part
    assert "How far each layer went" not in render_report(tiny_comparison[0])


def test_a_measured_comparison_continues_as_such_only(measured, tiny_model):
    _, _, output = measured
    idle = Listener()
    compare(
        config_of(tiny_model, seeds=(0,)),
        output,
        listener=idle,
        command="test",
        measures=[PROBED],
    )
    assert idle.ran == []


def test_a_drift_that_was_altered_by_hand_is_refused_by_name(measured):
    result = measured[0]
    for wrong in ([{"drift": {"head": "far"}}], [{"drift": 3}], [[1]]):
        runs = [{**run, "measures": {"drift": wrong}} for run in result.runs]
        with pytest.raises(InvalidResultError, match="altered or cut"):
            render_report(replace(result, runs=runs))


def test_the_options_ask_for_it(tiny_model, tmp_path):
    base = config_of(tiny_model, seeds=(0,))
    values = {"model": base.model, "tasks": base.tasks, "distributions": base.distributions, "seeds": (0,)}
    plain = RetentionCompareConfig(**values, limit=96, settings=base.settings)
    # A setting at its default orphans no finished comparison.
    assert plain.to_dict() == base.to_dict()
    assert measures_of(plain) == ()
    asked = replace(plain, drift=True)
    assert asked.to_dict() == {**base.to_dict(), "drift": True}
    (make,) = measures_of(asked)
    assert make().identity() == {"probe": False, "cka_texts": 300}
    (make,) = measures_of(replace(plain, layer_probe=True))
    assert make().identity() == {"probe": True, "cka_texts": 300}


def test_a_comparison_without_it_is_not_continued_with_it(tiny_model, tiny_comparison):
    config = config_of(tiny_model)
    asked = RetentionCompareConfig(
        **{name: getattr(config, name) for name in ("model", "tasks", "distributions", "seeds", "limit", "settings")},
        drift=True,
    )
    with pytest.raises(ConfigurationError, match="drift: None there, True now"):
        compare(asked, tiny_comparison[2], listener=Listener(), measures=measures_of(asked))


def test_measures_are_not_made_again_for_the_identity_of_each_run(tiny_model: str, tmp_path: Path) -> None:
    made: list[DriftMeasure] = []

    def make() -> DriftMeasure:
        made.append(PROBED())
        return made[-1]

    comparison = Comparison.prepare(config_of(tiny_model, seeds=(0, 1, 2)), [make])
    before = len(made)
    folders = {comparison.kept_weights(tmp_path, label, seed) for label in comparison.arms for seed in (0, 1, 2)}
    assert len(folders) == 6
    assert len(made) == before + 1
