"""PEFT: what an adapter trains sits in the group of the layer that it adapts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import peft
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from tiny_trainer import LINEAR, assert_rates, layerwise
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from lr_dist import LayerwiseLR, LRDistribution, assign_layers, param_groups
from lr_dist.errors import LayersNotFoundError

LORA = {"r": 2, "target_modules": ["query", "value"], "modules_to_save": ["classifier"]}


def bert_with(kind: type = LoraConfig, **settings: Any) -> PeftModel:
    """The tiny BERT with an adapter; LoRA on queries and values unless told otherwise."""
    torch.manual_seed(1)
    return get_peft_model(tiny.bert(), kind(task_type=TaskType.SEQ_CLS, **(settings or LORA)))


def llama_with(kind: type, **settings: Any) -> PeftModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=40, **sizes)
    return get_peft_model(LlamaForCausalLM(config), kind(task_type=TaskType.CAUSAL_LM, **settings))


def t5_with(kind: type, **settings: Any) -> PeftModel:
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, num_layers=2, num_decoder_layers=3, num_heads=2, d_ff=32)
    return get_peft_model(T5ForConditionalGeneration(config), kind(task_type=TaskType.SEQ_2_SEQ_LM, **settings))


def trained_in(model: torch.nn.Module) -> dict[str, str]:
    """The group of each trainable parameter, every one of which must have one."""
    group_of = assign_layers(model).group_of
    return {name: group_of[name] for name, p in model.named_parameters() if p.requires_grad}


def layer_in_the_name(name: str) -> str | None:
    """The depth that a name of BERT, Llama or T5 (two encoder layers) tells."""
    found = re.search(r"(?:encoder\.layer|model\.layers|(encoder|decoder)\.block)\.(\d+)\.", name)
    return found and f"layers.{int(found[2]) + (2 if found[1] == 'decoder' else 0)}"


BERT_TARGETS = {"target_modules": ["query", "value"]}
LLAMA_TARGETS = {"target_modules": ["q_proj", "v_proj"]}
T5_TARGETS = {"target_modules": ["q", "v"]}
IN_LAYERS: dict[str, tuple[Callable[..., PeftModel], str, dict[str, Any]]] = {
    "lora": (bert_with, "LoraConfig", {"r": 2, **BERT_TARGETS}),
    "lora of everything": (bert_with, "LoraConfig", {"r": 2, "target_modules": "all-linear"}),
    "dora": (bert_with, "LoraConfig", {"r": 2, "use_dora": True, **BERT_TARGETS}),
    "lora, llama": (llama_with, "LoraConfig", {"r": 2, **LLAMA_TARGETS}),
    "lora, t5": (t5_with, "LoraConfig", {"r": 2, **T5_TARGETS}),
    "adalora": (bert_with, "AdaLoraConfig", {"init_r": 2, "total_step": 9, **BERT_TARGETS}),
    "ia3": (bert_with, "IA3Config", {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": []}),
    "ia3, t5": (t5_with, "IA3Config", {"target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}),
    "loha": (bert_with, "LoHaConfig", {"r": 2, **BERT_TARGETS}),
    "lokr": (bert_with, "LoKrConfig", {"r": 2, **BERT_TARGETS}),
    "oft": (bert_with, "OFTConfig", {"r": 0, "oft_block_size": 4, **BERT_TARGETS}),
    "vera": (bert_with, "VeraConfig", {"r": 2, **BERT_TARGETS}),
    "fourier": (bert_with, "FourierFTConfig", {"n_frequency": 5, **BERT_TARGETS}),
    "adaption prompt, llama": (llama_with, "AdaptionPromptConfig", {"adapter_len": 3, "adapter_layers": 2}),
}


@pytest.mark.parametrize("name", IN_LAYERS)
def test_an_adapter_takes_the_depth_of_its_layer(name: str) -> None:
    build, kind, settings = IN_LAYERS[name]
    model = build(getattr(peft, kind), **settings)
    trained = trained_in(model)
    adapted = {parameter: group for parameter, group in trained.items() if "modules_to_save" not in parameter}
    expected = {parameter: layer_in_the_name(parameter) for parameter in adapted}
    if name == "lora of everything":
        # The pooler is linear too, and comes after the layers.
        expected |= {parameter: "head" for parameter in adapted if ".pooler." in parameter}
    assert adapted == expected
    layers = {"t5": 5, "llama": 2 if "prompt" in name else 3}.get(name.rpartition(", ")[2], 3)
    assert len({group for group in adapted.values() if group != "head"}) == layers
    assert {group for parameter, group in trained.items() if "modules_to_save" in parameter} <= {"head"}


def test_adapters_of_norms_take_the_depth_of_the_norm() -> None:
    trained = trained_in(llama_with(peft.LNTuningConfig, target_modules=["input_layernorm", "norm"]))
    assert sorted(trained.values()) == ["head", "layers.0", "layers.1", "layers.2"]
    trained = trained_in(bert_with(peft.LNTuningConfig, target_modules=["LayerNorm"]))
    assert {group for name, group in trained.items() if ".embeddings." in name} == {"embeddings"}
    assert {group for name, group in trained.items() if ".layer.1." in name} == {"layers.1"}


AT_THE_INPUT: dict[str, dict[str, Any]] = {
    "PromptTuningConfig": {"num_virtual_tokens": 3},
    "PrefixTuningConfig": {"num_virtual_tokens": 3},
    "PromptEncoderConfig": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "MultitaskPromptTuningConfig": {"num_virtual_tokens": 3, "num_tasks": 2},
}


@pytest.mark.parametrize("kind", AT_THE_INPUT)
@pytest.mark.parametrize("build", [bert_with, llama_with, t5_with])
def test_prompts_and_prefixes_are_at_the_input(kind: str, build: Callable[..., PeftModel]) -> None:
    trained = trained_in(build(getattr(peft, kind), **AT_THE_INPUT[kind]))
    prompt = {name: group for name, group in trained.items() if "prompt_encoder" in name}
    assert set(prompt.values()) == {"embeddings"}
    rest = set(trained) - set(prompt)
    # A classifier learns beside the prompt; a language model's head is as it was.
    assert {trained[name] for name in rest} == ({"head"} if build is bert_with else set())


def test_trained_tokens_are_embeddings() -> None:
    settings = {"token_indices": [1, 2], "target_modules": ["word_embeddings"]}
    trained = trained_in(bert_with(peft.TrainableTokensConfig, **settings))
    assert set(trained.values()) == {"embeddings"}


def test_modules_to_save_are_where_their_originals_are() -> None:
    places = {"classifier": "head", "pooler": "head", "word_embeddings": "embeddings"}
    trained = trained_in(bert_with(r=2, target_modules=["query"], modules_to_save=list(places)))
    for module, group in places.items():
        saved = {name: group for name, group in trained.items() if f"{module}.modules_to_save" in name}
        assert set(saved.values()) == {group}, module


def test_of_two_adapters_the_active_one_is_trained() -> None:
    model = bert_with()
    model.add_adapter("second", LoraConfig(task_type=TaskType.SEQ_CLS, r=3, target_modules=["key"]))
    model.set_adapter("second")
    groups = param_groups(model, tiny.EXPLICIT)
    names = {id(p): name for name, p in model.named_parameters()}
    held = {names[id(p)]: group["name"] for group in groups for p in group["params"]}
    assert {name for name in held if "lora" in name} == {
        f"base_model.model.bert.encoder.layer.{k}.attention.self.key.lora_{side}.second.weight"
        for k in range(3)
        for side in "AB"
    }
    assert all(group == layer_in_the_name(name) for name, group in held.items() if "lora" in name)


def test_what_all_layers_share_is_in_the_first_of_them() -> None:
    settings = {"num_vectors": 8, "vector_length": 8, "topk": 1, "target_modules": ["query", "value"]}
    trained = trained_in(bert_with(peft.VBLoRAConfig, **settings))
    bank = [group for name, group in trained.items() if "vector_bank" in name]
    assert bank == ["layers.0"]
    assert all(group == layer_in_the_name(n) for n, group in trained.items() if "bank" not in n and "lora" in n)


def test_a_network_beside_the_layers_is_refused_with_a_way_out() -> None:
    model = bert_with(peft.ShadowConfig)
    with pytest.raises(LayersNotFoundError, match=r"stacks=.*shadow_backbone"):
        assign_layers(model)
    placed = assign_layers(model, {r"\.shadow_": "embeddings"})
    assert placed.num_layers == 3


# Trained -------------------------------------------------------------------------------------------------


def moved(model: torch.nn.Module, before: dict[str, torch.Tensor], part: str) -> float:
    return max((p - before[n]).abs().max().item() for n, p in model.named_parameters() if part in n)


def test_lora_under_the_trainer_learns_at_the_rates_of_its_layers(tmp_path: Path) -> None:
    model = bert_with()
    before = tiny.weights(model)
    trainer, rates = layerwise(tmp_path, model=model, weight_decay=0.01)
    trainer.train()
    assert_rates(rates.seen, {name: rate for name, rate in tiny.RATES.items() if name != "embeddings"}, LINEAR)
    assert moved(model, before, "base_layer") == moved(model, before, "embeddings") == 0
    for k, rate in enumerate((3e-5, 2e-4, 5e-4)):
        assert 0.5 < moved(model, before, f"layer.{k}.attention.self.query.lora_B") / (2.5 * rate) < 1.5
    assert 0.5 < moved(model, before, "classifier.modules_to_save") / (2.5 * 7e-3) < 1.5


def test_a_resumed_run_of_lora_ends_where_the_unbroken_run_ends(tmp_path: Path) -> None:
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 5, "weight_decay": 0.1}
    frozen = LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0")
    unbroken, _ = layerwise(tmp_path, frozen, model=bert_with(), **options)
    unbroken.train()
    shutil.rmtree(tmp_path / "checkpoint-8")
    resumed, rates = layerwise(tmp_path, frozen, model=bert_with(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert len(rates.seen) == 3
    assert {name.partition("/")[0] for name in rates.seen[0]} == {"layers.1", "layers.2", "head"}
    for (name, ours), theirs in zip(resumed.model.named_parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_prompt_under_the_trainer_learns_at_the_rate_of_the_embeddings(tmp_path: Path) -> None:
    model = bert_with(peft.PromptTuningConfig, num_virtual_tokens=3)
    before = tiny.weights(model)
    trainer, rates = layerwise(tmp_path, {**tiny.EXPLICIT, "embeddings": 4e-3}, model=model)
    trainer.train()
    assert_rates(rates.seen, {"embeddings": 4e-3, "head": 7e-3}, LINEAR)
    assert 0.5 < moved(model, before, "prompt_encoder") / (2.5 * 4e-3) < 1.5
    assert moved(model, before, "base_model.bert.encoder.layer") == 0


class Adapted(tiny.Classifier):
    """The LightningModule of a user of PEFT."""

    def __init__(self, configure: Callable[[L.LightningModule], Any]) -> None:
        super().__init__(configure)
        self.model = bert_with()


def test_lora_under_lightning_learns_at_the_rates_of_its_layers() -> None:
    def configure(module: L.LightningModule) -> Any:
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module, rates = Adapted(configure), tiny.Recorder()
    before = tiny.weights(module)
    tiny.fit(module, LayerwiseLR(tiny.EXPLICIT, verbose=False), rates, data=tiny.batches(3))
    expected = {name: rate for name, rate in tiny.RATES.items() if name != "embeddings"}
    assert set(rates.rates) == set(expected)
    for name, rate in expected.items():
        assert rates.rates[name] == pytest.approx([rate, rate / 2, rate / 3])
    assert moved(module, before, "base_layer") == moved(module, before, "embeddings") == 0
    for k, rate in enumerate((3e-5, 2e-4, 5e-4)):
        assert 0.5 < moved(module, before, f"layer.{k}.attention.self.value.lora_B") / (11 / 6 * rate) < 1.5
