"""Tiny models of every kind that the installed transformers knows, from its own config classes.

A config is shrunk by what its fields are called and hold: fewer layers, narrower, a small vocabulary. Nothing is
known about a model beyond its config, but for the few in `EXTRA` that cannot be built from their own defaults.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

ENCODER_DEPTH, DECODER_DEPTH = 5, 6  # unlike each other, and unlike the usual number of stages or convolutions
VOCABULARY = 120

Changes = dict[str, Any]

# What a model type's config lacks for a model to be built of it.
_RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
_NO_TIMM: Changes = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}
_NO_TIMM |= {"backbone_config": {**_RESNET, "out_features": ["stage2", "stage3", "stage4"]}}
_FULL = {"rope_type": "default", "rope_theta": 10000.0}
_GLM_ROPE = {**_FULL, "partial_rotary_factor": 1.0, "mrope_section": [1, 1, 2]}
EXTRA: dict[str, Changes] = {
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _FULL, "sliding_attention": _FULL}},
    "conditional_detr": _NO_TIMM,
    "dab-detr": _NO_TIMM,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deformable_detr": _NO_TIMM,
    "detr": {**_NO_TIMM, "backbone_config": {**_RESNET, "out_features": ["stage4"]}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "emu3": {"vocabulary_map": {"<image>": 4, "<|extra_200|>": 5}},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "gemma3n_text": {"intermediate_size": 64, "num_kv_shared_layers": 0, "activation_sparsity_pattern": None},
    "glm4v_moe_text": {
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "rope_parameters": {**_GLM_ROPE, "mrope_section": [2, 3, 3]},
    },
    "glm4v_text": {"rope_parameters": _GLM_ROPE},
    "glm_image_text": {"rope_parameters": _GLM_ROPE},
    "hunyuan_vl_text": {"rope_parameters": {**_FULL, "mrope_section": [2, 1, 1]}},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"]},
    "table-transformer": {**_NO_TIMM, "backbone_config": {**_RESNET, "out_features": ["stage4"]}},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid"]},
}

# Narrower heads, or fewer of them: which of the two a model takes depends on what else it derives from them.
_SHRINKING = [("widths", 16), ("heads", 16), ("widths", 8), ("heads", 8), ("widths", 4), ("heads", 4), ("widths", 1)]
_HEADS = re.compile(r"heads?$")
_HEAD_WIDTH = re.compile(r"head_dim|head_size|d_kv|rotary|rope|section")
# Fields that hold a depth: `num_hidden_layers`, `n_layer`, `encoder_layers`, `depth`, ...
_DEPTH = re.compile(r"^(num|n)?_?(\w+_)?(hidden_|decoder_|encoder_|attention_)?layers?$|^depth$")
_NO_WIDTH = re.compile(
    r"image_size|img_size|patch|kernel|stride|window|position|vocab|chunk|block|batch|^num_|^n_(?!embd|inner)|pool|segment|type|grid"
    r"|crop|factor|ratio|layers|group|merge|frames|length|prob|drop|rate|token|act|sampl|quer|max_|theta|base$|index"
    r"|scal|resolution|_bins|hop|bucket|heads?$|(height|width)$"
)
_TOKEN = re.compile(r"token(_id|_index|_ids)?$|_id$|_ids$")


def mappings() -> dict[str, dict[tuple[str, str], None]]:
    """AutoModel's mappings: short name -> pairs (model type, model class), in their order."""
    found: dict[str, dict[tuple[str, str], None]] = {}
    for name in sorted(dir(modeling_auto)):
        lazy = getattr(modeling_auto, name)
        if type(lazy).__name__ != "_LazyAutoMapping":
            continue
        pairs: dict[tuple[str, str], None] = {}
        for model_type, classes in lazy._model_mapping.items():
            for model_class in classes if isinstance(classes, tuple | list) else (classes,):
                pairs[model_type, model_class] = None
        found[re.sub(r"^MODEL_(FOR_)?|_?MAPPING$", "", name) or "MODEL"] = pairs
    return {"MODEL": found.pop("MODEL"), **found}


def tiny_configs(model_type: str) -> Iterator[tuple[str, PreTrainedConfig | Exception]]:
    """Configs of a model type, from the smallest on.

    Yields:
        How it was shrunk, and the config, or what its class raised. Not every config makes a model.
    """
    config_class = CONFIG_MAPPING[model_type]
    seen = set()
    for what, factor in _SHRINKING:
        for filled, derived in ((False, True), (False, False), (True, True), (True, False)):
            how = f"{what} / {factor}" + (", gaps filled" if filled else "") + ("" if derived else ", edited")
            try:
                default = config_class()
                changes = {**_changes(default, what, factor, filled), **EXTRA.get(model_type, {})}
                # A config that is made anew derives its lists of layers from their number; an edited one keeps the
                # values that its class gives to the configs inside it.
                config = config_class(**changes) if derived else _edited(default, changes)
                text = repr(sorted(config.to_dict().items(), key=str))
            except Exception as error:
                yield how, error
                continue
            if text not in seen:
                seen.add(text)
                yield how, config


def build(class_name: str, config: PreTrainedConfig, device: str = "meta") -> nn.Module:
    """The model in float32 and evaluation mode, on this device; on the CPU with random weights."""
    config = copy.deepcopy(config)
    torch.manual_seed(0)
    cls: Any = getattr(transformers, class_name)
    with torch.device(device):
        # The grouped matrix product of experts asks for widths that no tiny model has.
        model = cls._from_config(config, dtype=torch.float32, experts_implementation="eager")
    return model.float().eval()


def _changes(config: PreTrainedConfig, what: str, factor: int, filled: bool) -> Changes:
    changes: Changes = {}
    used = 0
    for name, value in vars(config).items():
        if name.startswith("_") or name in ("id2label", "label2id", "transformers_version"):
            continue
        if isinstance(value, PreTrainedConfig):
            changes[name] = {"model_type": value.model_type, **_changes(value, what, factor, filled)}
        elif value is None:
            if filled and (gap := _gap(config, name, what, factor)):
                changes[name] = gap
        elif isinstance(value, bool):
            continue
        elif isinstance(value, int):
            new = _number(name, value, what, factor)
            if _TOKEN.search(name) and value >= VOCABULARY:
                used += 1
                new = VOCABULARY - used
            if new != value:
                changes[name] = new
        elif isinstance(value, list | tuple) and value and all(type(x) is int for x in value):
            if _TOKEN.search(name):
                new_list = [x if x < VOCABULARY else VOCABULARY - 1 for x in value]
            else:
                new_list = [_number(name, x, what, factor) for x in value]
            if new_list != list(value):
                changes[name] = type(value)(new_list)
    return changes


def _gap(config: PreTrainedConfig, name: str, what: str, factor: int) -> int | None:
    """What a field must be that the class leaves open although its model needs it."""
    heads = getattr(config, "num_attention_heads", None)
    if name == "vocab_size":
        return VOCABULARY
    if name == "prediction_length":
        return 4
    if name == "num_key_value_heads" and isinstance(heads, int):
        return _number(name, heads, what, factor)
    if name == "head_dim" and isinstance(heads, int):
        return config.hidden_size // heads // (factor if what == "widths" else 1)
    return None


def _number(name: str, value: int, what: str, factor: int) -> int:
    if "vocab" in name:
        return min(value, VOCABULARY)
    if "expert" in name and name.startswith(("num", "n_", "moe_num")):
        return min(value, 16 if "per_tok" not in name else 2)  # sixteen, for those that split them into eight groups
    if _DEPTH.search(name) and "feat_extract" not in name:
        return min(value, DECODER_DEPTH if "decoder" in name else ENCODER_DEPTH)
    if what == "heads" and _HEADS.search(name):
        return max(1, value // factor)
    if what == "heads" and _HEAD_WIDTH.search(name):
        return value
    if value >= 32 and value % factor == 0 and not _NO_WIDTH.search(name):
        return value // factor
    return value


def _edited(config: PreTrainedConfig, changes: Changes) -> PreTrainedConfig:
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(getattr(config, name, None), PreTrainedConfig):
            _edited(getattr(config, name), {k: v for k, v in value.items() if k != "model_type"})
        else:
            setattr(config, name, value)
    for name, value in vars(config).items():
        # One entry for each layer.
        depth = getattr(config, "num_hidden_layers", None)
        if "layer" in name and isinstance(value, list) and isinstance(depth, int) and len(value) > depth:
            setattr(config, name, value[:depth])
    return config
