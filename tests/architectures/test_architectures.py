"""A sample of the sweep over every architecture, what the sweep rests on, and its committed result."""

from __future__ import annotations

import dataclasses
import json
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
    ("whisper", "WhisperForConditionalGeneration", 11),
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
    assert finding.seen >= 0.9 * finding.parameters


@pytest.mark.parametrize(("model_type", "class_name", "reason"), REFUSED, ids=lambda value: str(value))
def test_what_has_no_single_depth_is_refused(model_type: str, class_name: str, reason: str) -> None:
    finding = examine(model_type, class_name)
    assert finding.outcome == "refused"
    assert __import__("re").search(reason, finding.reason)
