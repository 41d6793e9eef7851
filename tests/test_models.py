"""Loading models by name."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, GPT2Config, GPT2Model, T5Config, T5Model

from lr_dist.errors import ConfigurationError, ModelLoadError
from lr_dist.models import load_backbone, load_skeleton, load_tokenizer, weights_fingerprint
from lr_dist.sequence.classifier import SequenceClassifier, check_heads
from lr_dist.sequence.settings import SequenceSettings


def test_a_checkpoint_saved_in_bf16_is_loaded_in_float32(tiny_model, tmp_path):
    AutoModel.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert backbone.training


def test_the_pooler_that_the_classifier_does_not_use_is_left_out(tiny_model):
    assert not any("pooler" in name for name, _ in load_backbone(tiny_model).named_parameters())


def test_the_skeleton_has_the_same_parameters_without_memory(tiny_model):
    skeleton = dict(load_skeleton(tiny_model).named_parameters())
    for name, parameter in load_backbone(tiny_model).named_parameters():
        assert skeleton[name].shape == parameter.shape
        assert skeleton[name].is_meta


def test_fingerprints_tell_weights_apart(tiny_model):
    first, second = load_backbone(tiny_model), load_backbone(tiny_model)
    assert weights_fingerprint(first) == weights_fingerprint(second)
    with torch.no_grad():
        second.embeddings.word_embeddings.weight[0, 0] += 1e-7
    assert weights_fingerprint(first) != weights_fingerprint(second)


@pytest.mark.parametrize("load", [load_backbone, load_skeleton, load_tokenizer])
def test_a_model_that_is_not_there_is_an_error_that_says_what_to_give(load, tmp_path):
    with pytest.raises(ModelLoadError, match=r"no-model.*Give `minilm`"):
        load(str(tmp_path / "no-model"))


@pytest.mark.minilm
def test_minilm_is_a_bert_of_six_layers_with_pre_trained_weights(minilm_path):
    backbone = load_backbone("minilm")
    assert backbone.config.num_hidden_layers == 6
    tokenizer = load_tokenizer("minilm")
    backbone.eval()
    with torch.inference_mode():
        texts = tokenizer(["a film", "a movie", "the price of oil"], padding=True, return_tensors="pt")
        states = backbone(**texts).last_hidden_state
        mask = texts["attention_mask"][..., None]
        vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    # Random weights would not know that a film is a movie.
    assert vectors[0] @ vectors[1] > 0.6 > 0.3 > vectors[0] @ vectors[2]


def _classifier(backbone: torch.nn.Module, *, reads_first_token: bool) -> SequenceClassifier:
    settings = SequenceSettings()
    return SequenceClassifier(backbone, {"a": 2, "b.c": 3}, reads_first_token=reads_first_token, settings=settings)


def test_every_name_of_a_task_is_a_name_of_a_head():
    backbone = GPT2Model(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    names = ("values", "training", "type", "v1.2", "sst2")
    model = SequenceClassifier(
        backbone, dict(zip(names, range(2, 7), strict=True)), reads_first_token=False, settings=SequenceSettings()
    ).eval()
    batch = {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    assert [model(batch, name).shape[1] for name in names] == [2, 3, 4, 5, 6]
    model.start_task("values", regression=False, total_steps=1)
    assert torch.isfinite(model.training_step({**batch, "labels": torch.tensor([1])}, 0))
    assert [name for name, weight in model.heads.named_parameters() if weight.requires_grad] == [
        "values_.weight",
        "values_.bias",
    ]


@pytest.mark.parametrize("names", [("news.v1", "news_v1"), ("values", "values_")])
def test_heads_that_would_be_one_module_are_refused(names):
    check_heads(["news.v1", "news.v2", "news.v1"])
    with pytest.raises(ConfigurationError, match=rf"heads '{names[0]}' and '{names[1]}'"):
        check_heads(names)


def test_a_decoder_is_read_at_its_last_token_that_is_not_padding():
    backbone = GPT2Model(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    model = _classifier(backbone, reads_first_token=False).eval()
    short = {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    padded = {
        "input_ids": torch.tensor([[3, 4, 5, 0, 0], [3, 4, 6, 7, 8]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    }
    with torch.inference_mode():
        torch.testing.assert_close(model(short, "a")[0], model(padded, "a")[0])
        assert model(padded, "b.c").shape == (2, 3)


def test_starting_a_task_trains_its_head_and_the_backbone_and_no_other_head(tiny_model):
    model = _classifier(load_backbone(tiny_model), reads_first_token=True)
    model.start_task("b.c", regression=False, total_steps=1)
    trained = {
        name.split(".")[1] for name, p in model.named_parameters() if name.startswith("heads") and p.requires_grad
    }
    assert trained == {"b_c"}
    assert all(p.requires_grad for p in model.backbone.parameters())


def test_an_encoder_decoder_is_refused():
    backbone = T5Model(T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ConfigurationError, match="T5Model is an encoder-decoder"):
        _classifier(backbone, reads_first_token=True)
