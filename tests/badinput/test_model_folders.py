"""A model whose files do not hold it is refused by name; none starts at random, and none runs code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, GPT2Config, LayoutLMConfig, LayoutLMModel

from lr_dist.errors import MissingWeightsError, ModelLoadError, UnusedLayersWarning
from lr_dist.models import load_backbone, load_skeleton, load_tokenizer, weights_fingerprint


@pytest.fixture
def folder(tiny_model: str, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


# Missing weights -----------------------------------------------------------------------------------------


def test_layers_that_the_file_lacks_are_named(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=5)
    with pytest.raises(MissingWeightsError, match=r"Missing in the file, 32 of 85: encoder\.layer\.3\.attention"):
        load_backbone(str(folder))


def test_weights_under_another_prefix_are_named_on_both_sides(folder: Path) -> None:
    edit_weights(folder, lambda w: {f"student.{key}": value for key, value in w.items()})
    with pytest.raises(MissingWeightsError, match=r"Missing in the file.*embeddings.*not in the model: student\.emb"):
        load_backbone(str(folder))


def test_the_weights_of_another_architecture_are_refused(folder: Path) -> None:
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=3, n_head=2, n_positions=64).save_pretrained(folder)
    with pytest.raises(MissingWeightsError, match="GPT2Model would have random weights"):
        load_backbone(str(folder))


def test_one_missing_tensor_is_enough(folder: Path) -> None:
    lost = "encoder.layer.1.output.dense.bias"
    edit_weights(folder, lambda w: {key: value for key, value in w.items() if key != lost})
    with pytest.raises(MissingWeightsError, match=r"1 of 53: encoder\.layer\.1\.output\.dense\.bias"):
        load_backbone(str(folder))


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    edit_config(folder, intermediate_size=48)
    with pytest.raises(ModelLoadError, match=r"shape|size mismatch|mismatch"):
        load_backbone(str(folder))


def test_a_head_that_is_not_used_may_be_there_and_a_pooler_may_be_missing(folder: Path) -> None:
    """A masked-LM checkpoint has a head, a `bert.` prefix and no pooler: the usual case must stay silent."""
    before = load_backbone(str(folder))
    full = BertForMaskedLM(before.config)
    full.bert.load_state_dict(before.state_dict())
    full.save_pretrained(folder)
    assert weights_fingerprint(load_backbone(str(folder))) == weights_fingerprint(before)


def test_a_pooler_that_must_be_there_and_is_missing_starts_alike_each_time(folder: Path) -> None:
    # LayoutLM has no option to leave its pooler out.
    config = LayoutLMConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    LayoutLMModel(config).save_pretrained(folder)
    edit_weights(folder, lambda w: {key: value for key, value in w.items() if "pooler" not in key})
    first, second = load_backbone(str(folder)), load_backbone(str(folder))
    assert any("pooler" in name for name, _ in first.named_parameters())
    assert weights_fingerprint(first) == weights_fingerprint(second)


def test_layers_that_the_config_leaves_out_are_said(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=2)
    with pytest.warns(UnusedLayersWarning, match=r"encoder\.layer\.2\."):
        load_backbone(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(folder: Path, value: float) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["encoder.layer.0.output.dense.weight"][3, 1] = value
        return weights

    edit_weights(folder, spoil)
    with pytest.raises(ModelLoadError, match=r"encoder\.layer\.0\.output\.dense\.weight.*NaN or infinite"):
        load_backbone(str(folder))


# Code ----------------------------------------------------------------------------------------------------


def test_a_models_own_code_never_runs_whatever_stands_on_standard_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """transformers asks on standard input where trust_remote_code is not given; `yes y | lr-dist ...` would agree."""
    mark = tmp_path / "code-ran"
    (folder / "modeling_theirs.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import BertModel, BertConfig\n"
        "class C(BertConfig):\n    model_type = 'theirs'\nclass M(BertModel):\n    config_class = C\n"
    )
    edit_config(
        folder,
        model_type="theirs",
        auto_map={"AutoConfig": "modeling_theirs.C", "AutoModel": "modeling_theirs.M"},
    )
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *a: asked.append("asked") or "y")
    for load in (load_backbone, load_skeleton, load_tokenizer):
        if load is load_tokenizer:
            edit_tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
            edit_tokenizer["auto_map"] = {"AutoTokenizer": ["modeling_theirs.T", None]}
            edit_tokenizer["tokenizer_class"] = "TheirTokenizer"
            (folder / "tokenizer_config.json").write_text(json.dumps(edit_tokenizer))
        with pytest.raises(ModelLoadError, match="trust_remote_code"):
            load(str(folder))
    assert not asked
    assert not mark.exists()


def test_a_pickle_that_would_run_code_is_refused(folder: Path, tmp_path: Path) -> None:
    class Run:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Run()}))
    with pytest.raises(ModelLoadError):
        load_backbone(str(folder))
    assert not (tmp_path / "ran").exists()


# Files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 10**9, "intermediate_size": 10**9}, "parameters"),
        ({"vocab_size": 10**10}, "parameters"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"num_hidden_layers": 1e300}, "num_hidden_layers"),
        ({"text_config": {"num_hidden_layers": 10**12}}, r"text_config\.num_hidden_layers"),
        ({"vocab_size": 10**400}, "vocab_size"),
        ({"num_attention_heads": 0}, "ZeroDivisionError|heads"),
        ({"hidden_size": "many"}, "hidden_size|Error"),
        ({"num_hidden_layers": None}, "num_hidden_layers|Error"),
        ({"model_type": ["bert"]}, "."),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "."),
        ({"attn_implementation": "flash_attention_3"}, "."),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_memory_is_taken(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    import resource

    edit_config(folder, **changes)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ModelLoadError, match=message):
        load_backbone(str(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe\x00", os.urandom(300), b"[" * 100_000])
def test_files_that_are_something_else_are_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match="Cannot load the model"):
        (load_tokenizer if name == "tokenizer.json" else load_backbone)(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_says_what_to_run(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(ModelLoadError, match=r"git-lfs's pointer.*git lfs pull"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_among_the_files_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    for load in (load_backbone, load_skeleton, load_tokenizer):
        with pytest.raises(ModelLoadError, match="is not a file"):
            load(str(folder))


def test_a_file_in_place_of_the_folder_is_said(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="is a file, not a folder"):
        load_backbone(str(folder / "config.json"))


def test_a_folder_of_the_home_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_skeleton("~/model").config.num_hidden_layers == 3


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "~/none", "three/parts/name"])
@pytest.mark.parametrize("load", [load_backbone, load_skeleton, load_tokenizer])
def test_a_folder_that_is_not_there_is_named_so(load: Any, name: str) -> None:
    with pytest.raises(ModelLoadError, match="no such folder"):
        load(name)
