"""The probe: what it compares, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from tiny_mlm import masked_lm, sentences, tokenizer

from lr_dist.errors import ModelMismatchError, NoMaskedLMHeadError, RetentionTextError
from lr_dist.models import load_masked_lm
from lr_dist.retention.fit_head import HeadFit
from lr_dist.retention.masked_lm import MaskedLM
from lr_dist.retention.probe import RetentionProbe
from lr_dist.retention.score_rows import score_rows
from lr_dist.retention.texts import token_rows

FIT = HeadFit(epochs=1, lr=1e-2)


@pytest.fixture(scope="module")
def rows():
    return token_rows(dict.fromkeys(sentences(120)), tokenizer())


def test_before_stays_what_it_was_while_the_model_is_trained(rows) -> None:
    model = masked_lm()
    lm = MaskedLM.of(model, tokenizer())
    expected = [score.total for score in score_rows(lm, rows[:8])["head"]]
    probe = RetentionProbe(lm, rows[:8])
    with torch.no_grad():  # as a training that goes on with the same object
        model.bert.encoder.layer[0].output.dense.weight.mul_(0.5)
    retention = probe.measure(model.bert)
    assert sum(expected) / sum(map(len, rows[:8])) == pytest.approx(retention.before["frozen"].mean, abs=1e-5)
    assert retention.lost["frozen"].mean != 0
    assert retention.measure is retention.lost["frozen"]  # nothing to refit a head on


def test_both_sides_are_refitted_in_the_same_way(rows) -> None:
    """A refitted head knows the text better than the old one; an unchanged encoder has lost nothing all the same."""
    model = masked_lm()
    probe = RetentionProbe(MaskedLM.of(model, tokenizer()), rows[:12], rows[12:], fit=FIT)
    retention = probe.measure(model.bert)
    assert retention.before["refitted"].mean > retention.before["frozen"].mean + 0.1
    assert retention.measure is retention.lost["refitted"]
    assert retention.measure.mean == 0
    assert retention.to_dict()["lost"]["refitted"]["mean"] == 0


def test_a_text_that_is_scored_and_fitted_on_is_refused(rows) -> None:
    lm = MaskedLM.of(masked_lm(), tokenizer())
    with pytest.raises(RetentionTextError, match="12 of the 12 texts to score are also fitted on"):
        RetentionProbe(lm, rows[:12], rows)
    with pytest.raises(RetentionTextError, match="no text to score"):
        RetentionProbe(lm, [])


def test_another_architecture_is_refused(rows) -> None:
    probe = RetentionProbe(MaskedLM.of(masked_lm(), tokenizer()), rows[:4])
    with pytest.raises(ModelMismatchError, match="another architecture"):
        probe.measure(masked_lm(layers=1).bert)


def test_a_model_without_a_head_is_named(tmp_path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    masked_lm().bert.save_pretrained(tmp_path / "encoder")
    with pytest.raises(NoMaskedLMHeadError, match="its file lacks cls"):
        load_masked_lm(str(tmp_path / "encoder"))
    GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path / "decoder")
    with pytest.raises(NoMaskedLMHeadError, match="GPT2Model is no encoder"):
        load_masked_lm(str(tmp_path / "decoder"))
    masked_lm().save_pretrained(tmp_path / "whole")
    assert not load_masked_lm(str(tmp_path / "whole")).training
