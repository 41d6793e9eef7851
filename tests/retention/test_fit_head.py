"""Heads for encoders without one: fitted, saved, fitted again, and the words when they do not fit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_mlm import WORDS, masked_lm, sentences, tokenizer

from lr_dist.errors import ConfigurationError, MaskedLMHeadError, RetentionTextError
from lr_dist.models import weights_fingerprint
from lr_dist.retention.fit_head import HeadFit, fit_mlm_head, masked_loss, refit, unigram, unigram_loss
from lr_dist.retention.masked_lm import MaskedLM
from lr_dist.retention.mlm_head import MLMHead, embeddings_of
from lr_dist.retention.texts import token_rows

FIT = HeadFit(epochs=5, lr=1e-2, encoder_lr=3e-3, batch_size=16)


@pytest.fixture(scope="module")
def rows():
    return token_rows(sentences(300), tokenizer())


@pytest.fixture(scope="module")
def held_out():
    return token_rows(sentences(60, seed=1), tokenizer())


def untrained():
    return masked_lm(hidden=32).bert.eval()


@pytest.fixture(scope="module")
def base(rows):
    """An encoder that was trained on the text, and the head that was trained with it."""
    encoder = untrained()
    return encoder, fit_mlm_head(encoder, tokenizer(), rows, FIT, train_encoder=True)


@pytest.fixture(scope="module")
def encoder(base):
    return base[0]


@pytest.fixture(scope="module")
def head(encoder, rows) -> MLMHead:
    return fit_mlm_head(encoder, tokenizer(), rows, FIT, name="tiny")


def test_the_head_beats_the_unigram_on_other_text_and_the_encoder_stays(encoder, rows, held_out, head) -> None:
    before = weights_fingerprint(encoder)
    fit_mlm_head(encoder, tokenizer(), rows[:40], HeadFit(epochs=1), name="tiny")
    assert weights_fingerprint(encoder) == before
    frequencies = unigram(rows, len(WORDS) + 5)
    loss = masked_loss(MaskedLM.from_parts(encoder, head, tokenizer()), held_out, beside=frequencies)
    assert loss.unigram == pytest.approx(unigram_loss(held_out, frequencies), abs=0.2)
    assert loss.unigram < math.log(len(WORDS) + 5)
    assert loss.gain[0] == pytest.approx(loss.unigram - loss.mean)
    assert loss.gain[0] > 3 * loss.gain[1]
    assert loss.beats_unigram
    assert torch.equal(head.decoder, embeddings_of(encoder))


def test_an_unfitted_head_predicts_about_the_unigram(encoder, rows, held_out) -> None:
    frequencies = unigram(rows, len(WORDS) + 5)
    new = MLMHead(embeddings_of(encoder), 32, frequencies.log())
    new.norm.weight.data.zero_()
    loss = masked_loss(MaskedLM.from_parts(encoder, new, tokenizer()), held_out, rate=1.0)
    assert loss.mean == pytest.approx(unigram_loss(held_out, frequencies), abs=1e-4)


def test_the_unigram_is_smoothed(rows) -> None:
    frequencies = unigram(rows, 40)
    assert float(frequencies.sum()) == pytest.approx(1, abs=1e-5)
    counted = sum(int((row.ids[row.ordinary] == 5).sum()) for row in rows)
    assert float(frequencies[5]) == pytest.approx((counted + 1) / (sum(map(len, rows)) + 40), rel=1e-5)
    assert float(frequencies[39]) > 0


def test_a_saved_head_comes_back_and_names_what_it_was_fitted_on(encoder, rows, held_out, head, tmp_path) -> None:
    path = head.save(tmp_path / "head.safetensors")
    again = MLMHead.load(path, encoder)
    states = torch.randn(5, 32)
    assert torch.equal(again(states), head(states))
    assert again.info == head.info
    assert head.info["model"] == "tiny"
    assert head.info["rows"] == 300
    assert path.stat().st_size < 20_000  # without the decoder


def test_a_head_of_other_weights_is_refused(encoder, head, tmp_path) -> None:
    path = head.save(tmp_path / "head.safetensors")
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        changed.encoder.layer[0].output.dense.weight.mul_(2)
    with pytest.raises(MaskedLMHeadError, match="fitted on other weights than these"):
        MLMHead.load(path, changed)
    with pytest.raises(MaskedLMHeadError, match="other embeddings"):
        MLMHead.load(path, masked_lm(seed=3, hidden=32).bert)
    with pytest.raises(MaskedLMHeadError, match="cannot be read"):
        MLMHead.load(tmp_path / "none.safetensors", encoder)
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(MaskedLMHeadError, match="no masked-LM head"):
        MLMHead.load(tmp_path / "other.safetensors", encoder)


def test_a_refitted_head_finds_what_was_only_rotated(encoder, rows, held_out, head) -> None:
    """Rotated states lose nothing, but the old head cannot read them; constant ones are lost for good."""
    model = MaskedLM.from_parts(encoder, head, tokenizer())
    loss = masked_loss(model, held_out).mean
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    losses = {}
    for name, factor in {"rotated": rotation, "erased": torch.zeros(32, 32)}.items():
        frozen = model.with_encoder(_Changed(encoder, factor))
        refitted = refit(frozen, rows, FIT)
        assert refitted.head is not head
        losses[name] = masked_loss(frozen, held_out).mean, masked_loss(refitted, held_out).mean
    assert losses["rotated"][0] > loss + 0.3
    assert losses["rotated"][1] < loss + 0.15
    assert losses["erased"][1] > loss + 0.3
    assert masked_loss(model, held_out).mean == loss  # the head itself was not trained


class _Changed(torch.nn.Module):
    """An encoder with its last states multiplied by a matrix."""

    def __init__(self, encoder: torch.nn.Module, factor: torch.Tensor) -> None:
        super().__init__()
        self.encoder, self.factor, self.config = encoder, factor, encoder.config

    def forward(self, **inputs):
        output = self.encoder(**inputs)
        output.last_hidden_state = output.last_hidden_state @ self.factor
        return output


def test_refitting_a_native_head_leaves_its_decoder(rows) -> None:
    model = masked_lm()
    lm = MaskedLM.of(model, tokenizer())
    before = {name: weight.clone() for name, weight in lm.head.named_parameters()}
    refitted = refit(lm, rows[:32], HeadFit(epochs=1))
    changed = {name for name, weight in refitted.head.named_parameters() if not torch.equal(weight, before[name])}
    assert any("transform.dense.weight" in name for name in changed)
    assert not any("decoder.weight" in name for name in changed)
    assert all(torch.equal(weight, before[name]) for name, weight in lm.head.named_parameters())
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_whole_encoder_can_be_trained_further(base, rows, held_out) -> None:
    encoder, head = base
    assert weights_fingerprint(encoder) != weights_fingerprint(untrained())
    frozen = fit_mlm_head(untrained(), tokenizer(), rows, FIT)
    losses = [
        masked_loss(MaskedLM.from_parts(each, fitted, tokenizer()), held_out).mean
        for each, fitted in ((encoder, head), (untrained(), frozen))
    ]
    assert losses[0] < losses[1] - 0.3
    assert head.info["train_encoder"] is True


def test_wrong_input_is_refused(encoder) -> None:
    with pytest.raises(RetentionTextError, match="no text"):
        fit_mlm_head(encoder, tokenizer(), [])
    with pytest.raises(ConfigurationError, match="epochs"):
        HeadFit(epochs=0)
    with pytest.raises(ConfigurationError, match="lr"):
        HeadFit(lr=math.nan)
