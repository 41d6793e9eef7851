"""Two encoders layer by layer: how far the weights went, and how alike the hidden states of a text still are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lr_dist.retention.cka import cka_by_layer
from lr_dist.retention.drift import drift
from lr_dist.retention.hidden_states import hidden_states
from lr_dist.retention.texts import TokenRow, padded

# Unbiased CKA needs four rows.
_LEAST_ROWS = 4


def by_layer(
    before: nn.Module, after: nn.Module, rows: Sequence[TokenRow], pad_id: int, *, batch_size: int = 32
) -> dict[str, dict[str, float | None]]:
    """Relative L2 distance of the weights, and unbiased linear CKA of the texts' mean hidden states.

    Args:
        before, after: of one architecture.
        rows: the texts.
        pad_id: the token that fills a batch.
        batch_size: texts at once.

    Returns:
        `embeddings`, `layers.0`, ... -> `drift` (None where there are no weights) and `cka` (None with fewer than four
        texts, and for layers without hidden states).

    Raises:
        LRDistError: layers that cannot be found, see `lr_dist.layers.assign_layers`.
    """
    distances = drift(before, after)
    alike: dict[str, float] = {}
    if len(rows) >= _LEAST_ROWS:
        batches = []
        for start in range(0, len(rows), batch_size):
            ids, attention = padded([row.ids for row in rows[start : start + batch_size]], pad_id)
            batches.append({"input_ids": ids, "attention_mask": attention})
        alike = cka_by_layer(hidden_states(before, batches), hidden_states(after, batches))
    names = [*distances, *(layer for layer in alike if layer not in distances)]
    return {layer: {"drift": distances.get(layer), "cka": alike.get(layer)} for layer in names}
