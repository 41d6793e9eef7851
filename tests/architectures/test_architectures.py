"""A sample of the sweep over every architecture, what the sweep rests on, and its committed result."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))

import sweep
import table
from build import build, mappings, tiny_configs
from examine import compare, examine
from inputs import argument_sets
from oracle import Truth, growing_lists, observe

from lr_dist.layers import LayerMap, assign_layers

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "configs" / "evidence" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"

# model type, class, layers: of each kind of architecture, and of each kind of flow that was once read wrongly
SAMPLE = [
    ("albert", "AlbertForSequenceClassification", 1),
    ("bart", "BartForSequenceClassification", 11),
    ("bert", "BertForPreTraining", 5),
    ("bloom", "BloomForCausalLM", 2),
    ("canine", "CanineModel", 7),
    ("cohere_asr", "CohereAsrModel", 10),
    ("convnext", "ConvNextForImageClassification", 18),
    ("deberta-v2", "DebertaV2ForMaskedLM", 5),
    ("distilbert", "DistilBertForQuestionAnswering", 5),
    ("electra", "ElectraForPreTraining", 5),
    ("falcon_mamba", "FalconMambaForCausalLM", 5),
    ("fnet", "FNetForMaskedLM", 5),
    ("gemma2", "Gemma2ForCausalLM", 5),
    ("gpt2", "GPT2ForTokenClassification", 5),
    ("hubert", "HubertForCTC", 5),
    ("informer", "InformerModel", 4),
    ("jamba", "JambaForCausalLM", 5),
    ("layoutlm", "LayoutLMForTokenClassification", 5),
    ("llama", "LlamaForSequenceClassification", 5),
    ("mamba", "MambaForCausalLM", 5),
    ("marian", "MarianMTModel", 11),
    ("mixtral", "MixtralForCausalLM", 5),
    ("mobilebert", "MobileBertForMaskedLM", 5),
    ("modernbert", "ModernBertForMaskedLM", 5),
    ("pvt", "PvtForImageClassification", 8),
    ("qwen2_moe", "Qwen2MoeForCausalLM", 5),
    ("resnet", "ResNetForImageClassification", 16),
    ("roberta", "RobertaForMultipleChoice", 5),
    ("rwkv", "RwkvForCausalLM", 5),
    ("segformer", "SegformerForImageClassification", 8),
    ("siglip_vision_model", "SiglipVisionModel", 5),
    ("swin", "SwinForImageClassification", 12),
    ("t5", "T5ForConditionalGeneration", 10),
    ("videoprism_vision_model", "VideoPrismVisionModel", 9),
    ("vilt", "ViltModel", 5),
    ("vit_mae", "ViTMAEForPreTraining", 11),
    ("wav2vec2", "Wav2Vec2ForSequenceClassification", 5),
    ("whisper", "WhisperForConditionalGeneration", 8),
    ("xlm", "XLMWithLMHeadModel", 5),
    ("xlnet", "XLNetLMHeadModel", 5),
    ("yolos", "YolosModel", 5),
]
REFUSED = [
    ("clip", "CLIPModel", "2 stacks of layers"),
    ("llava", "LlavaModel", "2 stacks of layers"),
    ("blip-2", "Blip2Model", "3 stacks of layers"),
    ("efficientnet", "EfficientNetModel", "no stack of transformer layers"),
    ("fastspeech2_conformer", "FastSpeech2ConformerModel", r"duration_predictor\.conv_layers\.0"),
]


@pytest.mark.parametrize(("model_type", "class_name", "layers"), SAMPLE, ids=lambda value: str(value))
def test_a_model_is_grouped_as_its_own_run_says(model_type: str, class_name: str, layers: int) -> None:
    finding = examine(model_type, class_name)
    assert (finding.outcome, finding.wrong, finding.reason) == ("right", [], "")
    assert finding.layers == layers
    assert finding.seen >= 0.85 * finding.parameters


@pytest.mark.parametrize(("model_type", "class_name", "reason"), REFUSED, ids=lambda value: str(value))
def test_what_has_no_single_depth_is_refused(model_type: str, class_name: str, reason: str) -> None:
    finding = examine(model_type, class_name)
    assert finding.outcome == "refused"
    assert re.search(reason, finding.reason)


# The oracle can say no ------------------------------------------------------------------------------------


def tiny(class_name: str, model_type: str) -> tuple[torch.nn.Module, Any]:
    """A tiny model on the CPU, and its config."""
    _, config = next(tiny_configs(model_type))
    return build(class_name, config, "cpu"), config


@pytest.fixture(scope="module")
def classifier() -> tuple[LayerMap, Truth]:
    """BERT with a classifier: its grouping, and what its run shows."""
    model, config = tiny("BertForSequenceClassification", "bert")
    lists = growing_lists(config, lambda changed: build("BertForSequenceClassification", changed))
    assert lists == {"bert.encoder.layer": {"num_hidden_layers"}}
    arguments = next(argument_sets(model))
    return assign_layers(model), observe(model, lambda: model(**arguments), lists)


def test_the_run_shows_the_depth_of_every_parameter(classifier: tuple[LayerMap, Truth]) -> None:
    layers, truth = classifier
    assert (truth.num_layers, truth.stacks, truth.unused, truth.beside) == (5, (("bert.encoder.layer",),), (), ())
    assert truth.depths.keys() == layers.group_of.keys()
    assert list(truth.depths["bert.embeddings.position_embeddings.weight"]) == [0]
    assert list(truth.depths["bert.encoder.layer.3.output.LayerNorm.bias"]) == [4]
    assert list(truth.depths["bert.pooler.dense.weight"]) == [6]
    assert compare(layers, truth) == []


def moved(layers: LayerMap, fragment: str, group: str) -> LayerMap:
    """The grouping with all parameters whose name contains `fragment` in another group."""
    groups: dict[str, list[str]] = {name: [] for name in layers.groups}
    for name, old in layers.group_of.items():
        groups[group if fragment in name else old].append(name)
    return LayerMap(layers.num_layers, {name: tuple(members) for name, members in groups.items()})


@pytest.mark.parametrize(
    ("fragment", "group", "count"),
    [
        ("word_embeddings", "layers.0", 1),
        ("embeddings.LayerNorm", "head", 2),
        ("layer.0.", "embeddings", 16),
        ("layer.2.", "layers.3", 16),
        ("layer.4.output.LayerNorm", "head", 2),
        ("pooler", "layers.4", 2),
        ("classifier", "embeddings", 2),
    ],
)
def test_a_grouping_with_one_thing_moved_is_wrong(
    classifier: tuple[LayerMap, Truth], fragment: str, group: str, count: int
) -> None:
    layers, truth = classifier
    wrong = compare(moved(layers, fragment, group), truth)
    assert len(wrong) == count
    assert all(fragment in line and f"is in {group}" in line for line in wrong)


def test_a_grouping_of_another_depth_is_wrong(classifier: tuple[LayerMap, Truth]) -> None:
    layers, truth = classifier
    assert compare(dataclasses.replace(layers, num_layers=4), truth)[0].startswith("4 layers, the run has 5")


class TwoBranches(torch.nn.Module):
    """A second branch that no layer feeds and that feeds none."""

    def __init__(self) -> None:
        super().__init__()
        self.bert, _ = tiny("BertModel", "bert")
        self.side, self.out = torch.nn.Linear(4, 48), torch.nn.Linear(96, 2)

    def forward(self, tokens: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([self.bert(tokens).pooler_output, self.side(features)], dim=-1))


def test_the_run_sees_what_is_beside_the_layers() -> None:
    model = TwoBranches()
    truth = observe(model, lambda: model(torch.ones(1, 4).long(), torch.ones(1, 4)), {"bert.encoder.layer": set()})
    assert truth.beside == ("side.weight", "side.bias")
    assert list(truth.depths["out.weight"]) == [6]


def test_the_run_sees_that_two_towers_are_parallel() -> None:
    model, config = tiny("CLIPModel", "clip")
    lists = growing_lists(config, lambda changed: build("CLIPModel", changed))
    arguments = next(found for found in argument_sets(model) if "pixel_values" in found)
    truth = observe(model, lambda: model(**arguments), lists)
    assert truth.doubts == ("`text_model.encoder.layers` and `vision_model.encoder.layers` are parallel",)


# The sweep -----------------------------------------------------------------------------------------------


def run_sweep(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it: its server of forks is for a process of its own."""
    command = [sys.executable, str(Path(sweep.__file__)), "--output", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    options = ["--mapping", "MODEL", "--models", "bert", "clip"]
    assert run_sweep(tmp_path, *options).returncode == 0
    state = tmp_path / "findings.jsonl"
    lines = state.read_text().splitlines()
    assert [json.loads(line)[:2] for line in lines] == [["bert", "BertModel"], ["clip", "CLIPModel"]]
    state.write_text(lines[0] + "\n" + lines[1][:30])
    assert "2 classes, 1 to do" in run_sweep(tmp_path, *options).stdout  # the first is not examined again
    assert state.read_text().count("CLIPModel") == 2  # the line that was cut short, and the new one
    result = json.loads((tmp_path / "architectures.json").read_text())
    assert result["mappings"] == {
        "MODEL": {"bert/BertModel": ["right", 5, 87, 87], "clip/CLIPModel": ["several stacks"]}
    }
    assert (tmp_path / "architectures.md").read_text() == table.render(result)


def test_a_model_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    run_sweep(tmp_path, "--mapping", "MODEL", "--models", "bert", "--timeout", "0")
    finding = json.loads((tmp_path / "findings.jsonl").read_text())
    assert finding == ["bert", "BertModel", {"outcome": "unbuildable", "reason": "not done after 0 s"}]


@pytest.mark.parametrize("options", [["--mapping", "NONE"], ["--models", "no-such-model"]])
def test_an_unknown_mapping_or_model_is_an_error(options: list[str], tmp_path: Path) -> None:
    done = run_sweep(tmp_path, *options)
    assert done.returncode == 1
    assert options[1] in done.stderr


# Its committed result ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evidence() -> dict[str, Any]:
    return json.loads(EVIDENCE.read_text(encoding="utf-8"))


def test_the_page_shows_the_tables_of_the_evidence_file(evidence: dict[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = page.partition("<!-- tables: begin -->\n")[2].partition("<!-- tables: end -->")[0]
    assert shown == table.render(evidence)


# An OCR network of convolutions whose stages hold lists of their own, which we take for the layers.
KNOWN_WRONG = {"pp_ocrv6_tiny_rec/PPOCRV6TinyRecModel"}


def test_only_what_is_known_is_wrong_in_the_evidence_file(evidence: dict[str, Any]) -> None:
    rows = {name: row for rows in evidence["mappings"].values() for name, row in rows.items()}
    assert {row[0] for row in rows.values()} <= table.COLUMNS.keys() - {"crash"}
    assert {name for name, row in rows.items() if row[0] == "wrong"} == KNOWN_WRONG
    assert all(row[1] > 0 and 0 < row[3] <= row[2] for row in rows.values() if row[0] == "right")


def test_the_evidence_file_covers_every_bare_model_of_the_version_that_it_names(evidence: dict[str, Any]) -> None:
    version = evidence["environment"]["transformers"]
    if version != transformers.__version__:
        assert f"transformers {version}," in PAGE.read_text(encoding="utf-8")
        pytest.skip(f"the evidence file is of transformers {version}, installed is {transformers.__version__}")
    expected = [f"{model_type}/{class_name}" for model_type, class_name in mappings()["MODEL"]]
    assert list(evidence["mappings"]["MODEL"]) == expected


def test_the_sample_has_the_numbers_of_the_evidence_file(evidence: dict[str, Any]) -> None:
    if evidence["environment"]["transformers"] != transformers.__version__:
        pytest.skip("the evidence file is of another transformers")
    rows = {name: row for rows in evidence["mappings"].values() for name, row in rows.items()}
    found = [f"{model_type}/{class_name}" for model_type, class_name, _ in SAMPLE]
    assert sum(name in rows for name in found) >= 5
    for name, (_, _, layers) in zip(found, SAMPLE, strict=True):
        if name in rows:
            assert rows[name][:2] == ["right", layers]
    finding = examine("yolos", "YolosModel")
    assert rows["yolos/YolosModel"] == ["right", finding.layers, finding.parameters, finding.seen]


def test_a_model_of_80_layers_is_grouped_in_less_than_a_second() -> None:
    config = transformers.LlamaConfig(num_hidden_layers=80, hidden_size=8192, num_attention_heads=64)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    started = time.process_time()
    layers = assign_layers(model)
    assert time.process_time() - started < 1.0
    assert layers.num_layers == 80
    assert len(layers.group_of) == 723
