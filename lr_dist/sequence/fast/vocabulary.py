"""Train only the rows of the word embeddings that the tasks' tokens use; the others would not change anyway.

A row whose token never occurs gets no gradient, so Adam's moments and its update are 0 throughout. Leaving it out gives
the same scores, bit for bit, and saves its gradient and its part of the optimizer's step: half of MiniLM's weights are
word embeddings, and a few thousand texts use a fifth of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from lr_dist.errors import ModelLoadError
from lr_dist.tasks import TokenizedTask, TokenSplit
from lr_dist.tasks.token_cache import FlatRows

SPLITS = ("train", "dev", "validation")


def shrink_vocabulary(
    backbone: nn.Module, tokens: Sequence[TokenizedTask], splits: Sequence[str] = SPLITS
) -> tuple[nn.Module, list[TokenizedTask], int]:
    """The backbone with only the used rows, the tasks with the rows' new ids, and the new padding token.

    Only `splits` may be read afterwards. The given backbone is not changed. A model whose input embedding is not a
    plain `nn.Embedding` that is used once is returned unchanged.

    Raises:
        ModelLoadError: tokens that the model has no embedding for.
    """
    pad = tokens[0].pad_token_id
    embedding = _plain_embedding(backbone)
    if embedding is None:
        return backbone, list(tokens), pad
    ids = [getattr(task, split).rows.features["input_ids"] for task in tokens for split in splits]
    used = np.unique(np.concatenate([[pad], *(np.unique(part) for part in ids)]))
    if used[0] < 0 or used[-1] >= embedding.num_embeddings:
        raise ModelLoadError(
            f"The tokenizer gives tokens from {used[0]} to {used[-1]}, and the model has embeddings for 0 to "
            f"{embedding.num_embeddings - 1}: they do not belong together. Save both from one model."
        )
    number = np.full(embedding.num_embeddings, -1, dtype=np.int32)
    number[used] = np.arange(len(used), dtype=np.int32)

    # Everything except the large matrix is copied.
    smaller = copy.deepcopy(backbone, memo={id(embedding.weight): None})
    kept = nn.Embedding(len(used), embedding.embedding_dim, padding_idx=_renumbered(embedding.padding_idx, number))
    kept.weight = nn.Parameter(embedding.weight.detach()[used].clone(), requires_grad=embedding.weight.requires_grad)
    smaller.set_input_embeddings(kept)  # type: ignore[operator]
    return smaller, [_renumber(task, number, splits) for task in tokens], int(number[pad])


def _plain_embedding(backbone: Any) -> nn.Embedding | None:
    try:
        embedding = backbone.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None or embedding.scale_grad_by_freq:
        return None
    uses = [
        name for name, parameter in backbone.named_parameters(remove_duplicate=False) if parameter is embedding.weight
    ]
    return embedding if len(uses) == 1 and not getattr(backbone.config, "is_encoder_decoder", False) else None


def _renumbered(index: int | None, number: np.ndarray) -> int | None:
    return None if index is None or number[index] < 0 else int(number[index])


def _renumber(task: TokenizedTask, number: np.ndarray, splits: Sequence[str]) -> TokenizedTask:
    def renumbered(split: TokenSplit) -> TokenSplit:
        features = {**split.rows.features, "input_ids": number[split.rows.features["input_ids"]]}
        return TokenSplit(FlatRows(features, split.rows.offsets), split.labels)

    changed: dict[str, Any] = {name: renumbered(getattr(task, name)) for name in splits}
    return replace(task, pad_token_id=int(number[task.pad_token_id]), **changed)
