"""Which parameter sits at which depth: every architecture from its config, with tiny random weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import transformers as hf
from peft import LoraConfig, PromptEncoderConfig, TaskType, get_peft_model
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lr_dist.errors import InvalidOverrideError, LayersNotFoundError, LRDistError, UnplacedParametersError
from lr_dist.layers import LayerMap, assign_layers, clean_name, group_names

TEXT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 24, "max_position_embeddings": 20, "num_labels": 2, "pad_token_id": 0}

CONFIGS: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "bert": lambda: hf.BertConfig(**TEXT),
    "roberta": lambda: hf.RobertaConfig(**TEXT),
    "distilbert": lambda: hf.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=3, n_heads=2, hidden_dim=24, max_position_embeddings=20
    ),
    "electra": lambda: hf.ElectraConfig(**TEXT, embedding_size=8),
    "deberta": lambda: hf.DebertaV2Config(
        **TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm",
        conv_kernel_size=3, position_buckets=8, max_relative_positions=-1, position_biased_input=False,
    ),
    "mpnet": lambda: hf.MPNetConfig(**TEXT),
    "albert": lambda: hf.AlbertConfig(**TEXT, embedding_size=8),
    "gpt2": lambda: hf.GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=20, pad_token_id=0),
    "llama": lambda: hf.LlamaConfig(**TEXT, num_key_value_heads=2),
    "modernbert": lambda: hf.ModernBertConfig(**TEXT),
    "vit": lambda: hf.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    ),
    "t5": lambda: hf.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_decoder_layers=2, num_heads=2
    ),
    "bart": lambda: hf.BartConfig(
        vocab_size=50, d_model=16, encoder_layers=3, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=20,
    ),
}  # fmt: skip
HEADS: dict[str, Any] = {
    "bare": hf.AutoModel,
    "classifier": hf.AutoModelForSequenceClassification,
    "mlm": hf.AutoModelForMaskedLM,
    "clm": hf.AutoModelForCausalLM,
    "seq2seq": hf.AutoModelForSeq2SeqLM,
    "image": hf.AutoModelForImageClassification,
}
BERT_GROUPS = {
    "embeddings.word_embeddings.weight": "embeddings",
    "embeddings.position_embeddings.weight": "embeddings",
    "embeddings.LayerNorm.weight": "embeddings",
    "encoder.layer.0.attention.self.query.weight": "layers.0",
    "encoder.layer.2.output.LayerNorm.bias": "layers.2",
}


def under(prefix: str, groups: dict[str, str], **more: str) -> dict[str, str]:
    return {f"{prefix}.{name}": group for name, group in groups.items()} | {
        name.replace("__", "."): group for name, group in more.items()
    }


DEBERTA_GROUPS = BERT_GROUPS | {
    "encoder.rel_embeddings.weight": "embeddings",
    "encoder.LayerNorm.weight": "embeddings",
    "encoder.conv.conv.weight": "layers.0",
    "encoder.conv.LayerNorm.bias": "layers.0",
}
del (
    DEBERTA_GROUPS["embeddings.position_embeddings.weight"],
    DEBERTA_GROUPS["encoder.layer.0.attention.self.query.weight"],
)
T5_GROUPS = {
    "shared.weight": "embeddings",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "layers.0",
    "encoder.block.2.layer.1.DenseReluDense.wi.weight": "layers.2",
    "encoder.final_layer_norm.weight": "layers.2",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "layers.3",
    "decoder.block.1.layer.1.EncDecAttention.q.weight": "layers.4",
    "decoder.final_layer_norm.weight": "head",
}
BART_GROUPS = {
    "shared.weight": "embeddings",
    "encoder.embed_positions.weight": "embeddings",
    "encoder.layernorm_embedding.weight": "embeddings",
    "encoder.layers.2.fc2.weight": "layers.2",
    "decoder.embed_positions.weight": "embeddings",
    "decoder.layernorm_embedding.bias": "embeddings",
    "decoder.layers.0.encoder_attn.k_proj.weight": "layers.3",
}
LLAMA_GROUPS = {
    "embed_tokens.weight": "embeddings",
    "layers.0.input_layernorm.weight": "layers.0",
    "layers.2.mlp.down_proj.weight": "layers.2",
    "norm.weight": "head",
}
GPT2_GROUPS = {"wte.weight": "embeddings", "wpe.weight": "embeddings", "h.1.ln_1.bias": "layers.1", "ln_f.bias": "head"}
MODERNBERT_GROUPS = {
    "embeddings.tok_embeddings.weight": "embeddings",
    "embeddings.norm.weight": "embeddings",
    "layers.1.attn_norm.weight": "layers.1",
    "final_norm.weight": "head",
}
ALBERT_GROUPS = {
    "embeddings.word_embeddings.weight": "embeddings",
    "embeddings.LayerNorm.weight": "embeddings",
    "encoder.embedding_hidden_mapping_in.weight": "embeddings",
    "encoder.albert_layer_groups.0.albert_layers.0.ffn.weight": "layers.0",
}
DISTILBERT_GROUPS = {
    "embeddings.LayerNorm.weight": "embeddings",
    "transformer.layer.0.sa_layer_norm.weight": "layers.0",
    "transformer.layer.2.ffn.lin1.bias": "layers.2",
}
VIT_GROUPS = {
    "embeddings.cls_token": "embeddings",
    "embeddings.position_embeddings": "embeddings",
    "embeddings.patch_embeddings.projection.weight": "embeddings",
    "layers.2.layernorm_before.weight": "layers.2",
    "layernorm.weight": "head",
}
ELECTRA_GROUPS = BERT_GROUPS | {"embeddings_project.weight": "embeddings"}
MPNET_GROUPS = BERT_GROUPS | {"encoder.relative_attention_bias.weight": "embeddings"}
del MPNET_GROUPS["encoder.layer.0.attention.self.query.weight"]

# architecture, head, number of layers, exact groups of some parameters
CASES: list[tuple[str, str, int, dict[str, str]]] = [
    ("bert", "bare", 3, BERT_GROUPS | {"pooler.dense.weight": "head"}),
    ("bert", "classifier", 3, under("bert", BERT_GROUPS, bert__pooler__dense__bias="head", classifier__weight="head")),
    ("bert", "mlm", 3, under("bert", BERT_GROUPS, cls__predictions__transform__LayerNorm__weight="head")),
    ("roberta", "bare", 3, BERT_GROUPS | {"pooler.dense.weight": "head"}),
    ("roberta", "classifier", 3, under("roberta", BERT_GROUPS, classifier__out_proj__weight="head")),
    ("roberta", "mlm", 3, under("roberta", BERT_GROUPS, lm_head__layer_norm__bias="head")),
    ("distilbert", "bare", 3, DISTILBERT_GROUPS),
    ("distilbert", "classifier", 3, under("distilbert", DISTILBERT_GROUPS, pre_classifier__weight="head")),
    ("distilbert", "mlm", 3, under("distilbert", DISTILBERT_GROUPS, vocab_layer_norm__weight="head")),
    ("electra", "bare", 3, ELECTRA_GROUPS),
    ("electra", "classifier", 3, under("electra", ELECTRA_GROUPS, classifier__dense__weight="head")),
    ("electra", "mlm", 3, under("electra", ELECTRA_GROUPS, generator_predictions__dense__weight="head")),
    ("deberta", "bare", 3, DEBERTA_GROUPS),
    ("deberta", "classifier", 3, under("deberta", DEBERTA_GROUPS, pooler__dense__weight="head")),
    ("deberta", "mlm", 3, under("deberta", DEBERTA_GROUPS, cls__predictions__transform__dense__weight="head")),
    ("mpnet", "bare", 3, MPNET_GROUPS | {"pooler.dense.weight": "head"}),
    ("mpnet", "classifier", 3, under("mpnet", MPNET_GROUPS, classifier__dense__weight="head")),
    ("mpnet", "mlm", 3, under("mpnet", MPNET_GROUPS, lm_head__dense__weight="head")),
    ("albert", "bare", 1, ALBERT_GROUPS | {"pooler.weight": "head"}),
    ("albert", "classifier", 1, under("albert", ALBERT_GROUPS, classifier__weight="head")),
    ("albert", "mlm", 1, under("albert", ALBERT_GROUPS, predictions__LayerNorm__weight="head")),
    ("gpt2", "bare", 3, GPT2_GROUPS),
    ("gpt2", "classifier", 3, under("transformer", GPT2_GROUPS, score__weight="head")),
    ("gpt2", "clm", 3, under("transformer", GPT2_GROUPS)),
    ("llama", "bare", 3, LLAMA_GROUPS),
    ("llama", "classifier", 3, under("model", LLAMA_GROUPS, score__weight="head")),
    ("llama", "clm", 3, under("model", LLAMA_GROUPS, lm_head__weight="head")),
    ("modernbert", "bare", 3, MODERNBERT_GROUPS),
    ("modernbert", "classifier", 3, under("model", MODERNBERT_GROUPS, head__norm__weight="head")),
    ("modernbert", "mlm", 3, under("model", MODERNBERT_GROUPS, head__dense__weight="head", decoder__bias="head")),
    ("vit", "bare", 3, VIT_GROUPS | {"pooler.dense.weight": "head"}),
    ("vit", "image", 3, under("vit", VIT_GROUPS, classifier__weight="head")),
    ("t5", "bare", 5, T5_GROUPS),
    ("t5", "classifier", 5, under("transformer", T5_GROUPS, classification_head__dense__weight="head")),
    ("t5", "seq2seq", 5, T5_GROUPS),
    ("bart", "bare", 5, BART_GROUPS),
    ("bart", "classifier", 5, under("model", BART_GROUPS, classification_head__out_proj__weight="head")),
    ("bart", "seq2seq", 5, under("model", BART_GROUPS)),
    ("bart", "clm", 2, {"model.decoder.embed_tokens.weight": "embeddings"}),
]  # fmt: skip


def build(name: str, head: str = "bare") -> nn.Module:
    torch.manual_seed(0)
    return HEADS[head].from_config(CONFIGS[name]())


def check_complete(model: nn.Module, layers: LayerMap) -> None:
    """Every trainable parameter in exactly one group, by identity; names as in `named_parameters`."""
    parameters = dict(model.named_parameters())
    placed = [id(parameters[name]) for names in layers.groups.values() for name in names]
    assert len(placed) == len(set(placed))
    assert set(placed) >= {id(p) for p in model.parameters() if p.requires_grad}
    assert list(layers.groups) == group_names(layers.num_layers)
    assert all(layers.groups[f"layers.{k}"] for k in range(layers.num_layers))


@pytest.mark.parametrize(
    ("name", "head", "num_layers", "expected"), CASES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_architecture_has_its_layers_and_named_parameters(
    name: str, head: str, num_layers: int, expected: dict[str, str]
) -> None:
    model = build(name, head)
    layers = assign_layers(model)
    assert layers.num_layers == num_layers
    assert {parameter: layers.group_of[parameter] for parameter in expected} == expected
    check_complete(model, layers)


def test_the_groups_of_bert_hold_exactly_their_parameters() -> None:
    layers = assign_layers(build("bert", "classifier"))
    assert [len(names) for names in layers.groups.values()] == [5, 16, 16, 16, 4]
    assert layers.groups["head"] == (
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias",
    )  # fmt: skip


def test_group_names_run_from_the_input_to_the_output() -> None:
    assert group_names(2) == ["embeddings", "layers.0", "layers.1", "head"]


# Models of nobody's library ------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), nn.MultiheadAttention(dim, 2, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        x = x + self.attn(h, h, h)[0]
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimmViT(nn.Module):
    """timm's names and calls, registered from the head down."""

    def __init__(self, dim: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.head, self.norm = nn.Linear(dim, 2), nn.LayerNorm(dim)
        self.blocks = nn.Sequential(*[Block(dim) for _ in range(depth)])
        self.norm_pre = nn.LayerNorm(dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(dim)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(self.norm_pre(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(x)[:, 0])


def test_a_timm_style_vit_is_placed_by_the_flow_of_data_not_by_registration() -> None:
    model = TimmViT()
    layers = assign_layers(model)
    check_complete(model, layers)
    assert layers.num_layers == 4
    assert layers.groups["embeddings"] == (
        "pos_embed", "cls_token", "norm_pre.weight", "norm_pre.bias",
        "patch_embed.proj.weight", "patch_embed.proj.bias",
    )  # fmt: skip
    assert layers.groups["head"] == ("head.weight", "head.bias", "norm.weight", "norm.bias")


def torch_encoder(depth: int, norm: nn.Module | None = None) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), depth, norm=norm)


class TorchEncoder(nn.Module):
    """Attribute names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(8, 2)
        self.m = torch_encoder(3, norm=nn.LayerNorm(8))
        self.a = nn.Embedding(30, 8)
        self.position = nn.Parameter(torch.zeros(1, 5, 8))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.b(self.m(self.a(ids) + self.position).mean(1))


def test_torch_transformer_encoder_alone_has_no_embeddings() -> None:
    layers = assign_layers(torch_encoder(3, norm=nn.LayerNorm(8)))
    assert layers.num_layers == 3
    assert layers.groups["embeddings"] == ()
    assert layers.groups["head"] == ("norm.weight", "norm.bias")


def test_torch_transformer_encoder_inside_a_module_takes_its_surroundings() -> None:
    model = TorchEncoder()
    layers = assign_layers(model)
    check_complete(model, layers)
    assert layers.groups["embeddings"] == ("position", "a.weight")
    assert layers.groups["head"] == ("b.weight", "b.bias", "m.norm.weight", "m.norm.bias")


def test_torch_transformer_counts_the_encoder_then_the_decoder() -> None:
    model = nn.Transformer(8, 2, num_encoder_layers=2, num_decoder_layers=3, dim_feedforward=16, batch_first=True)
    layers = assign_layers(model)
    check_complete(model, layers)
    assert layers.num_layers == 5
    assert layers.group_of["encoder.norm.weight"] == "layers.1"
    assert layers.group_of["decoder.layers.0.linear1.weight"] == "layers.2"
    assert layers.group_of["decoder.norm.weight"] == "head"


def test_in_a_sequential_the_order_decides() -> None:
    encoder = torch_encoder(2)
    layers = assign_layers(nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), encoder, nn.LayerNorm(8), nn.Linear(8, 2)))
    assert layers.groups["embeddings"] == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert layers.groups["head"] == ("3.weight", "3.bias", "4.weight", "4.bias")


@pytest.mark.parametrize("stable", [False, True])
def test_one_name_is_placed_by_what_forward_does_with_it(stable: bool) -> None:
    # Wav2Vec2's `encoder.layer_norm` comes before the layers, and after them in the pre-norm variant.
    config = hf.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, conv_dim=[8, 8],
        conv_stride=[2, 2], conv_kernel=[3, 3], num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=2, do_stable_layer_norm=stable, feat_extract_norm="layer",
    )  # fmt: skip
    layers = assign_layers(hf.Wav2Vec2Model(config))
    assert layers.group_of["encoder.layer_norm.weight"] == ("head" if stable else "embeddings")
    assert layers.group_of["feature_extractor.conv_layers.1.conv.weight"] == "embeddings"


# Wrapped models ------------------------------------------------------------------------------------------


class OddModule(L.LightningModule):
    """The head is registered first, and no name says what it is."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.zz_top = nn.Linear(16, 2)
        self.frobnicator = backbone

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.zz_top(self.frobnicator(**batch).last_hidden_state[:, 0])

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return self.logits(batch).sum()


@pytest.mark.parametrize("name", ["bert", "deberta", "albert", "gpt2", "modernbert", "vit", "electra"])
def test_a_lightning_module_under_any_attribute_name_changes_only_the_prefix(name: str) -> None:
    backbone = build(name)
    bare = assign_layers(backbone)
    module = OddModule(backbone)
    layers = assign_layers(module)
    check_complete(module, layers)
    expected = {f"frobnicator.{key}": group for key, group in bare.group_of.items()}
    assert layers.group_of == expected | {"zz_top.weight": "head", "zz_top.bias": "head"}


class Distilled(OddModule):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.old_model = copy.deepcopy(backbone).requires_grad_(False)

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        aim = self.old_model(**batch).last_hidden_state
        return nn.functional.mse_loss(self.frobnicator(**batch).last_hidden_state, aim) + self.logits(batch).sum()


def test_a_frozen_teacher_has_no_depth() -> None:
    module = Distilled(build("bert"))
    layers = assign_layers(module)
    check_complete(module, layers)
    assert layers.num_layers == 3
    assert not any(name.startswith("old_model.") for name in layers.group_of)
    assert layers.group_of["frobnicator.encoder.layer.2.output.dense.bias"] == "layers.2"


def test_a_frozen_copy_that_no_source_mentions_has_no_depth() -> None:
    module = OddModule(build("bert"))
    module.ema = copy.deepcopy(module.frobnicator).requires_grad_(False)
    layers = assign_layers(module)
    check_complete(module, layers)
    assert not any(name.startswith("ema.") for name in layers.group_of)


class TwoHeads(OddModule):
    """One head in `forward`, one only in the training step, the backbone by a name that is known at run time."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.yy, self.name = nn.Linear(2, 2), "frobnicator"

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.zz_top(getattr(self, self.name)(**batch).last_hidden_state[:, 0])

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return self.yy(self(batch)).sum()


def test_a_head_that_only_the_training_step_uses_is_the_head() -> None:
    layers = assign_layers(TwoHeads(build("bert")))
    assert layers.groups["head"][:2] == ("zz_top.weight", "zz_top.bias")
    assert layers.groups["head"][-2:] == ("yy.weight", "yy.bias")


def test_a_trainable_second_model_is_refused() -> None:
    module = Distilled(build("bert"))
    module.old_model.requires_grad_(True)
    with pytest.raises(LayersNotFoundError, match=r"2 stacks.*old_model\.encoder\.layer"):
        assign_layers(module)


@pytest.mark.parametrize("frozen", ["encoder.", "decoder."])
def test_freezing_one_side_of_an_encoder_decoder_does_not_change_the_depth(frozen: str) -> None:
    model = build("t5")
    before = assign_layers(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    assert assign_layers(model) == before


def test_frozen_parameters_keep_their_place() -> None:
    model = build("bert", "classifier")
    before = assign_layers(model)
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    assert assign_layers(model) == before


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_a_compiled_model_keeps_its_groups(name: str) -> None:
    model = build(name)
    bare = assign_layers(model)
    compiled = torch.compile(model)
    layers = assign_layers(compiled)
    check_complete(compiled, layers)
    assert layers.group_of == {f"_orig_mod.{key}": group for key, group in bare.group_of.items()}


def test_layers_compiled_and_checkpointed_one_by_one_keep_their_groups() -> None:
    model = build("bert", "classifier")
    bare = assign_layers(model)
    for k, layer in enumerate(model.bert.encoder.layer):
        model.bert.encoder.layer[k] = torch.compile(checkpoint_wrapper(layer)) if k else checkpoint_wrapper(layer)
    model.bert = checkpoint_wrapper(model.bert)
    layers = assign_layers(model)
    check_complete(model, layers)
    assert any("layer.1._orig_mod._checkpoint_wrapped_module" in name for name in layers.groups["layers.1"])
    assert {clean_name(name): group for name, group in layers.group_of.items()} == bare.group_of


def test_layers_that_are_wrapped_differently_are_still_alike() -> None:
    model = TorchEncoder()
    bare = assign_layers(model)
    model.m.layers[0] = checkpoint_wrapper(model.m.layers[0])
    model.m.layers[1] = torch.compile(model.m.layers[1])
    layers = assign_layers(model)
    assert {clean_name(name): group for name, group in layers.group_of.items()} == bare.group_of


def test_clean_name_strips_every_wrapper() -> None:
    name = "_orig_mod.layers._fsdp_wrapped_module.0._checkpoint_wrapped_module._fsdp_wrapped_module.w"
    assert clean_name(name) == "layers.0.w"
    assert clean_name("my_orig_mod.w") == "my_orig_mod.w"


def test_lora_adapters_take_their_layers_depth_and_saved_modules_are_the_head() -> None:
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=2, target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    model = get_peft_model(build("bert", "classifier"), config)
    layers = assign_layers(model)
    check_complete(model, layers)
    trained = {name: layers.group_of[name] for name, p in model.named_parameters() if p.requires_grad}
    prefix = "base_model.model.bert.encoder.layer.{}.attention.self.{}.lora_{}.default.weight"
    expected = {
        prefix.format(k, part, side): f"layers.{k}" for k in range(3) for part in ("query", "value") for side in "AB"
    }
    saved = "base_model.model.classifier.modules_to_save.default."
    assert trained == expected | {saved + "weight": "head", saved + "bias": "head"}


def test_a_prompt_encoder_is_at_the_input() -> None:
    config = PromptEncoderConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=3, encoder_hidden_size=8)
    model = get_peft_model(build("bert", "classifier"), config)
    layers = assign_layers(model)
    check_complete(model, layers)
    prompt = [name for name in layers.group_of if name.startswith("prompt_encoder.")]
    assert len(prompt) > 1
    assert {layers.group_of[name] for name in prompt} == {"embeddings"}


@pytest.mark.parametrize(
    ("name", "head", "output"),
    [
        ("bert", "mlm", "cls.predictions.decoder.weight"),
        ("gpt2", "clm", "lm_head.weight"),
        ("t5", "seq2seq", "lm_head.weight"),
    ],
)
def test_a_tied_output_is_counted_once_at_its_shallowest_place(name: str, head: str, output: str) -> None:
    model = build(name, head)
    tied = model.get_input_embeddings().weight
    assert model.get_parameter(output) is tied
    layers = assign_layers(model)
    parameters = dict(model.named_parameters())
    assert [group for key, group in layers.group_of.items() if parameters[key] is tied] == ["embeddings"]


def test_a_parameter_tied_into_a_layer_is_in_the_shallower_layer() -> None:
    model = build("bert")
    model.encoder.layer[2].output.dense.weight = model.encoder.layer[1].output.dense.weight
    layers = assign_layers(model)
    check_complete(model, layers)
    assert layers.group_of["encoder.layer.1.output.dense.weight"] == "layers.1"


def test_nothing_is_run_so_meta_tensors_are_placed() -> None:
    with torch.device("meta"):
        model = build("llama", "clm")
    assert assign_layers(model).group_of["model.norm.weight"] == "head"


def test_a_truncated_model_counts_the_layers_that_are_left() -> None:
    model = build("bert")
    model.encoder.layer = model.encoder.layer[:2]
    assert assign_layers(model).num_layers == 2


# In doubt: an error, and the override that it shows --------------------------------------------------------


class TwoBranches(nn.Module):
    """A second branch beside the transformer: neither before its layers nor after them, whatever its name says."""

    def __init__(self) -> None:
        super().__init__()
        self.bert, self.side_embed, self.out = build("bert"), nn.Linear(4, 16), nn.Linear(32, 2)

    def forward(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        text = self.bert(ids).pooler_output
        return self.out(torch.cat([text, self.side_embed(features)], dim=-1))


def shown_overrides(error: LRDistError) -> dict[str, str]:
    found = re.search(r"overrides=\{(.*)\}", str(error))
    assert found is not None
    return dict(re.findall(r'r"([^"]+)": "([^"]+)"', found[1]))


def test_an_unplaceable_parameter_names_itself_and_the_shown_override_works() -> None:
    model = TwoBranches()
    with pytest.raises(UnplacedParametersError, match=r"side_embed\.weight, side_embed\.bias") as caught:
        assign_layers(model)
    overrides = shown_overrides(caught.value)
    assert overrides == {r"^side_embed\.": "head"}
    layers = assign_layers(model, overrides)
    check_complete(model, layers)
    assert layers.groups["head"][-4:] == ("side_embed.weight", "side_embed.bias", "out.weight", "out.bias")


def test_an_unused_parameter_is_in_doubt_unless_it_is_frozen() -> None:
    model = build("bert")
    model.register_parameter("mystery", nn.Parameter(torch.zeros(1)))
    with pytest.raises(UnplacedParametersError, match="mystery") as caught:
        assign_layers(model)
    assert "overrides={" not in str(caught.value)
    model.mystery.requires_grad_(False)
    assert "mystery" not in assign_layers(model).group_of


def test_a_network_between_encoder_and_decoder_is_in_doubt() -> None:
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(
        hf.BertConfig(**TEXT), hf.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    )
    model = hf.EncoderDecoderModel(config)
    with pytest.raises(UnplacedParametersError, match=r"encoder\.pooler\.dense\.weight") as caught:
        assign_layers(model)
    assert shown_overrides(caught.value) == {r"^encoder\.pooler\.": "layers.2"}
    layers = assign_layers(model, {r"^encoder\.pooler\.": "layers.2"})
    assert layers.num_layers == 6
    assert layers.group_of["decoder.bert.encoder.layer.0.crossattention.self.key.weight"] == "layers.3"


class Sandwich(nn.Module):
    """A pre-trained encoder with a user's own transformer on top of it."""

    def __init__(self) -> None:
        super().__init__()
        self.bert, self.top = build("bert"), torch_encoder(2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.top(self.bert(ids).last_hidden_state[..., :8])


def test_a_second_stack_becomes_the_head_when_an_override_says_so() -> None:
    model = Sandwich()
    with pytest.raises(LayersNotFoundError, match=r"`bert\.encoder\.layer` \(3 x BertLayer\), `top\.layers` \(2 x"):
        assign_layers(model)
    layers = assign_layers(model, {r"^top\.": "head"})
    check_complete(model, layers)
    assert layers.num_layers == 3
    assert layers.group_of["top.layers.1.linear1.weight"] == "head"


def sourceless(names: dict[str, nn.Module]) -> nn.Module:
    """A module whose source cannot be read, so that only names are left."""
    scope: dict[str, Any] = {"nn": nn}
    exec("class Built(nn.Module):\n    def forward(self, x):\n        return self.blocks(x)", scope)
    model = scope["Built"]()
    model.blocks = nn.ModuleList([Block(), Block()])
    for name, module in names.items():
        setattr(model, name, module)
    return model


def test_without_source_names_decide_and_a_norm_is_in_doubt() -> None:
    clear = {
        "lm_head": nn.Linear(8, 2),
        "wte": nn.Embedding(5, 8),
        "ln_f": nn.LayerNorm(8),
        "lookup": nn.Embedding(2, 8),
    }
    layers = assign_layers(sourceless(clear))
    assert layers.groups["embeddings"] == ("wte.weight", "lookup.weight")
    assert layers.groups["head"] == ("lm_head.weight", "lm_head.bias", "ln_f.weight", "ln_f.bias")
    with pytest.raises(UnplacedParametersError, match=r"layer_norm\.weight, layer_norm\.bias"):
        assign_layers(sourceless({"layer_norm": nn.LayerNorm(8)}))


def test_many_unplaced_parameters_are_counted_not_listed() -> None:
    model = build("bert")
    for k in range(25):
        model.register_parameter(f"mystery{k}", nn.Parameter(torch.zeros(1)))
    with pytest.raises(UnplacedParametersError, match=r"25 trainable.*mystery9 and 15 more"):
        assign_layers(model)


def clip() -> nn.Module:
    text = hf.CLIPTextConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24
    )
    image = hf.CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    )  # fmt: skip
    return hf.CLIPModel(hf.CLIPConfig(text_config=text.to_dict(), vision_config=image.to_dict(), projection_dim=8))


def test_two_parallel_towers_are_refused_and_the_submodule_or_stacks_or_overrides_help() -> None:
    model = clip()
    with pytest.raises(
        LayersNotFoundError, match=r"text_model\.encoder\.layers.*vision_model\.encoder\.layers"
    ) as caught:
        assign_layers(model)
    assert 'model.get_submodule("text_model")' in str(caught.value)
    assert assign_layers(model.get_submodule("text_model")).num_layers == 3
    assert "stacks=('text_model', 'vision_model')" in str(caught.value)
    overrides = {r"^(vision_model|visual_projection)\b": "embeddings", "^logit_scale": "head"}
    layers = assign_layers(model, overrides)
    check_complete(model, layers)
    assert layers.num_layers == 3


def test_parallel_transformers_in_a_list_are_no_layers() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList([TorchEncoder() for _ in range(3)])

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.stack([member(ids) for member in self.members]).mean(0)

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList([Block() for _ in range(3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([member(x) for member in self.members]).mean(0)

    for model in (Ensemble(), Experts()):
        with pytest.raises(LayersNotFoundError):
            assign_layers(model)


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]),
        nn.LSTM(4, 4, 2),
        nn.Identity(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_model_without_layers_is_refused(model: nn.Module) -> None:
    with pytest.raises(LayersNotFoundError, match="no stack of transformer layers"):
        assign_layers(model)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(LayersNotFoundError, match="str"):
        assign_layers("bert")  # type: ignore[arg-type]


# Overrides -----------------------------------------------------------------------------------------------


def test_the_first_matching_override_decides_and_negative_layers_count_from_the_end() -> None:
    model = build("bert", "classifier")
    overrides = [(r"layer\.1\..*bias$", "head"), (r"layer\.1\.", "layers.-1"), (r"pooler", "layers.0")]
    layers = assign_layers(model, overrides)
    check_complete_but_empty = [name for name in layers.groups if not layers.groups[name]]
    assert check_complete_but_empty == ["layers.1"]
    assert layers.group_of["bert.encoder.layer.1.output.dense.bias"] == "head"
    assert layers.group_of["bert.encoder.layer.1.output.dense.weight"] == "layers.2"
    assert layers.group_of["bert.pooler.dense.weight"] == "layers.0"


def test_overrides_are_searched_in_clean_names() -> None:
    layers = assign_layers(torch.compile(build("bert")), {r"^pooler\.": "layers.2"})
    assert layers.group_of["_orig_mod.pooler.dense.weight"] == "layers.2"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({r"^nothing\.": "head"}, r"\^nothing.*matches no parameter"),
        ({r"(pooler": "head"}, r"\(pooler.*not a regular expression"),
        ({"pooler": "layers.3"}, r"'layers\.3'.*layers\.2"),
        ({"pooler": "layers.-4"}, r"'layers\.-4'"),
        ({"pooler": "layers.x"}, r"'layers\.x'"),
        ({"pooler": "Head"}, "'Head'"),
        ({"pooler": 1}, "pair"),
        ([("pooler", "head", "more")], "pair"),
        (["ab"], "pair"),
        ("pooler", "must map"),
        (3, "must map"),
    ],
)
def test_a_bad_override_names_itself(overrides: Any, message: str) -> None:
    with pytest.raises(InvalidOverrideError, match=message):
        assign_layers(build("bert"), overrides)
