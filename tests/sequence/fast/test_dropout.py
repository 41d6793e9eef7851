"""The cheap dropout drops and scales like torch's, in the model's attention too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from lr_dist.sequence.fast.attention import use_own_attention
from lr_dist.sequence.fast.dropout import BlockDropout, block_dropout, use_block_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_each_element_is_zeroed_with_probability_p_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(0)
    dropped = block_dropout(torch.ones(1000, 401), p)
    zeros = (dropped == 0).double()
    # Five standard errors of a proportion over 401,000 draws; the four lanes of a draw are four columns apart.
    assert zeros.mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / zeros.numel()) ** 0.5)
    for lane in range(4):
        share = zeros.flatten()[lane::4].mean().item()
        assert share == pytest.approx(p, abs=5 * (p * (1 - p) / 100_000) ** 0.5)
    kept = dropped[dropped != 0]
    assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-4)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    zeros = (block_dropout(torch.ones(400_000), 0.5) == 0).double().view(-1, 4)
    for a in range(4):
        for b in range(a + 1, 4):
            assert (zeros[:, a] * zeros[:, b]).mean().item() == pytest.approx(0.25, abs=0.007)


def test_the_gradient_passes_where_the_value_passed() -> None:
    values = torch.randn(64, 33, requires_grad=True)
    dropped = block_dropout(values, 0.3)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad == 0, dropped == 0)


@pytest.mark.parametrize(("p", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_ends_are_exact(p: float, expected: float) -> None:
    assert torch.equal(block_dropout(torch.ones(7), p), torch.full((7,), expected))


def test_the_same_seed_gives_the_same_mask_and_the_dtype_stays() -> None:
    values = torch.ones(50, dtype=torch.bfloat16)
    torch.manual_seed(3)
    first = block_dropout(values, 0.5)
    torch.manual_seed(3)
    assert torch.equal(block_dropout(values, 0.5), first)
    assert first.dtype == torch.bfloat16


def _bert(dropout: float) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, initializer_range=0.3,
    )  # fmt: skip
    return BertModel(config)


TOKENS = torch.arange(24).view(3, 8)
PADDED = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 7 + [0]])


@pytest.mark.parametrize("mask", [None, PADDED])
def test_a_model_in_evaluation_is_unchanged(mask: torch.Tensor | None) -> None:
    model = _bert(0.1).eval()
    before = model(TOKENS, attention_mask=mask).last_hidden_state
    use_block_dropout(model)
    use_own_attention(model)
    assert all(type(m) is BlockDropout for m in model.modules() if isinstance(m, nn.Dropout))
    assert torch.equal(model(TOKENS, attention_mask=mask).last_hidden_state, before)


@pytest.mark.parametrize("mask", [None, PADDED])
def test_the_spelled_out_attention_equals_torchs(mask: torch.Tensor | None) -> None:
    # A probability below 1/131072 rounds to no dropout, but takes the path that drops out.
    model = _bert(1e-6)
    valid = torch.ones(3, 8, dtype=torch.bool) if mask is None else mask.bool()
    before = model.eval()(TOKENS, attention_mask=mask).last_hidden_state
    use_block_dropout(model)
    use_own_attention(model)
    after = model.train()(TOKENS, attention_mask=mask).last_hidden_state
    assert torch.allclose(after[valid], before[valid], atol=1e-5)


def test_attention_weights_are_dropped_out_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    original = block_dropout

    def spy(values: torch.Tensor, p: float) -> torch.Tensor:
        shapes.append(tuple(values.shape))
        return original(values, p)

    for place in ("attention", "dropout"):
        monkeypatch.setattr(f"lr_dist.sequence.fast.{place}.block_dropout", spy)
    model = _bert(0.2)
    use_block_dropout(model)
    use_own_attention(model)
    model.train()(TOKENS, attention_mask=PADDED)
    assert shapes.count((3, 2, 8, 8)) == 2
    assert shapes.count((3, 8, 16)) == 5  # the embeddings', and two in each layer
