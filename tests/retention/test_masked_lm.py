"""Masked LMs of transformers as the conditionals of the estimate."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tiny_mlm import masked_lm, sentences, tokenizer
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from lr_dist.errors import NoMaskedLMHeadError
from lr_dist.retention.marginal_likelihood import marginal_likelihood, order_spread, pseudo_log_likelihood
from lr_dist.retention.masked_lm import MaskedLM, split
from lr_dist.retention.texts import TokenRow, token_rows

SIZES = {
    "vocab_size": 25,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "initializer_range": 0.4,
}


def by_hand(model, ids: list[int], mask_id: int, hidden: tuple[int, ...], place: int) -> float:
    """log p of one token, from one plain call of the model."""
    shown = torch.tensor([[mask_id if i in hidden else token for i, token in enumerate(ids)]])
    with torch.no_grad():
        logits = model(input_ids=shown, attention_mask=torch.ones_like(shown)).logits[0, place]
    return float(torch.log_softmax(logits.double(), 0)[ids[place]])


def test_all_masks_have_the_mean_over_all_orders_of_the_chain_rule() -> None:
    """Vocabulary of 5 words, 4 tokens: 15 masks and 24 orders, each probability from a plain call."""
    words = ["red", "green", "blue", "black", "white"]
    model, mask_id = masked_lm(words), 4
    ids, places = [2, 5, 8, 6, 9, 3], [1, 2, 3, 4]
    orders = []
    for order in itertools.permutations(places):
        total = 0.0
        for step, place in enumerate(order):
            total += by_hand(model, ids, mask_id, order[step:], place)
        orders.append(total)
    row = token_rows(["red black green white"], tokenizer(words), least=4, max_length=8)[0]
    assert row.ids.tolist() == ids
    conditional = MaskedLM.of(model, tokenizer(words)).conditional_log_prob(row)
    outcome = marginal_likelihood(conditional, 4, masks=None)
    assert outcome.total == pytest.approx(sum(orders) / 24, abs=1e-5)
    spread = order_spread(conditional, 4, orders=None)
    assert sorted(spread.values) == pytest.approx(sorted(orders), abs=1e-5)
    assert spread.sd > 0.01  # a random network contradicts itself
    singles = sum(by_hand(model, ids, mask_id, (place,), place) for place in places)
    assert pseudo_log_likelihood(conditional, 4) == pytest.approx(singles, abs=1e-5)
    assert 4 * outcome.curve[0].mean == pytest.approx(singles, abs=1e-5)


def rows_of(count: int, seed: int = 0) -> list[TokenRow]:
    return token_rows(sentences(count, seed=seed), tokenizer())


def test_padding_changes_nothing() -> None:
    short, long = token_rows(["the old river finds ."], tokenizer(), least=4)[0], rows_of(1)[0]
    assert len(short.ids) < len(long.ids)
    for position in ("absolute", "relative"):
        model = masked_lm() if position == "absolute" else DebertaV2ForMaskedLM(DebertaV2Config(**SIZES)).eval()
        lm = MaskedLM.of(model, tokenizer())
        mask = torch.tensor([True, False, True, False, True])
        other = torch.arange(len(long)) % 2 == 0
        alone = lm.log_probs([short], [mask])
        together = lm.log_probs([long, short], [other, mask])
        torch.testing.assert_close(together[-3:], alone, rtol=1e-5, atol=1e-6)


def test_special_and_unknown_tokens_are_never_masked() -> None:
    row = token_rows(["the zebra holds a zebra near the stone ."], tokenizer(), least=4)[0]
    assert row.ids[0] == 2
    assert row.ids[-1] == 3
    assert row.ids[row.ordinary].min() >= 5
    assert len(row) == 7  # nine words, two of them unknown


@pytest.mark.parametrize(
    "model",
    [
        RobertaForMaskedLM(RobertaConfig(**{**SIZES, "pad_token_id": 0})),
        DistilBertForMaskedLM(
            DistilBertConfig(
                vocab_size=25, dim=16, hidden_dim=32, n_layers=2, n_heads=2, initializer_range=0.4,
                max_position_embeddings=24,
            )
        ),
        ElectraForMaskedLM(ElectraConfig(**SIZES, embedding_size=8)),
        ModernBertForMaskedLM(
            ModernBertConfig(**{**SIZES, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2,
                                "eos_token_id": 3})
        ),
        DebertaV2ForMaskedLM(DebertaV2Config(**SIZES)),
    ],
    ids=lambda model: type(model).__name__,
)  # fmt: skip
def test_the_head_alone_computes_what_the_whole_model_computes(model) -> None:
    model.eval()
    before = dict(model.named_modules())
    row = rows_of(1)[0]
    mask = torch.arange(len(row)) % 3 == 0
    lm = MaskedLM.of(model, tokenizer())
    places = row.ordinary[mask]
    ids = row.ids.clone()
    ids[places] = 4
    with torch.no_grad():
        logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0, places]
    expected = torch.log_softmax(logits, -1).gather(1, row.ids[places][:, None]).squeeze(1)
    torch.testing.assert_close(lm.log_probs([row], [mask]), expected, rtol=1e-4, atol=1e-5)
    assert dict(model.named_modules()) == before


def test_logits_are_computed_at_hidden_places_only_and_few_at_once(monkeypatch) -> None:
    monkeypatch.setattr("lr_dist.retention.masked_lm.POSITIONS", 8)
    lm = MaskedLM.of(masked_lm(), tokenizer())
    rows, seen = rows_of(3), []
    handle = lm.head.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    masks = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    masks[0][2:] = False
    values = lm.log_probs(rows, masks)
    handle.remove()
    hidden = 2 + len(rows[1]) + len(rows[2])
    assert len(values) == hidden
    assert sum(positions for positions, _ in seen) == hidden
    assert max(positions for positions, _ in seen) <= 8
    assert math.isclose(float(lm.log_probs(rows[1:], masks[1:]).sum()), float(values[2:].sum()), rel_tol=1e-5)


def test_the_mode_of_the_model_comes_back() -> None:
    model = masked_lm()
    model.train()
    model.bert.embeddings.eval()
    lm = MaskedLM.of(model, tokenizer())
    row = rows_of(1)[0]
    mask = torch.ones(len(row), dtype=torch.bool)
    torch.testing.assert_close(lm.log_probs([row], [mask]), lm.log_probs([row], [mask]))  # no dropout
    assert model.training
    assert model.bert.encoder.training
    assert not model.bert.embeddings.training


def test_a_model_without_a_head_is_refused() -> None:
    encoder = BertModel(BertConfig(**SIZES))
    with pytest.raises(NoMaskedLMHeadError, match="BertModel is no masked LM"):
        split(encoder)
    plain = tokenizer()
    plain.mask_token = None
    with pytest.raises(NoMaskedLMHeadError, match="has no mask token"):
        MaskedLM.of(masked_lm(), plain)


def test_a_classifier_is_refused() -> None:
    from transformers import BertForSequenceClassification

    with pytest.raises(NoMaskedLMHeadError, match="AutoModelForMaskedLM"):
        split(BertForSequenceClassification(BertConfig(**SIZES)))
