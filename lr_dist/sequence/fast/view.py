"""`View`: the model and the tokens without the parts that no method or observer of a run needs."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from lr_dist.layers import assign_layers
from lr_dist.methods import Needs
from lr_dist.models import weights_fingerprint
from lr_dist.sequence.fast.attention import use_own_attention
from lr_dist.sequence.fast.dropout import use_block_dropout
from lr_dist.sequence.fast.first_token import keep_first_token
from lr_dist.sequence.fast.packing import first_position
from lr_dist.sequence.fast.vocabulary import shrink_vocabulary
from lr_dist.tasks import TokenizedTask

# Of a model's configuration: where it was loaded from, and by what it was saved.
_NOT_COMPUTED = ("_name_or_path", "name_or_path", "transformers_version", "architectures")


@dataclass(frozen=True)
class View:
    """A model that computes the same as the real one for the tasks' texts, with less work.

    Attributes:
        backbone: a copy of the weights; every run copies it again.
        tokens: the tasks' tokens, with the ids of `backbone`, in the order of the tasks.
        pad_token_id: pads the shorter texts of a batch.
        reads_first_token: whether a text's vector is that of its first token; otherwise of its last.
        first_position: for batches without padding, see `lr_dist.sequence.fast.packing`; None if they are padded.
    """

    backbone: nn.Module
    tokens: tuple[TokenizedTask, ...]
    pad_token_id: int
    reads_first_token: bool
    first_position: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights, the model's configuration, and the tokens and labels that are trained on."""
        config: Any = self.backbone.config
        settings = {key: value for key, value in config.to_dict().items() if key not in _NOT_COMPUTED}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(repr((type(self.backbone).__name__, self.pad_token_id, self.reads_first_token)).encode())
        digest.update(repr((self.first_position, weights_fingerprint(self.backbone))).encode())
        for task in self.tokens:
            rows = task.train.rows
            arrays = {**rows.features, "offsets": rows.offsets, "labels": task.train.labels.numpy()}
            for name, values in sorted(arrays.items()):
                digest.update(f"{name}:{values.shape}:{values.dtype}".encode())
                digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def only(self, indices: Sequence[int]) -> View:
        """The same model with some of the tasks."""
        return replace(self, tokens=tuple(self.tokens[i] for i in indices))


def view_of(
    backbone: nn.Module, tokenizer: Any, tokens: Sequence[TokenizedTask], evaluate_on: str, needs: Needs
) -> View:
    """The cheapest view that satisfies `needs`; `backbone` is not changed.

    Args:
        backbone: the pre-trained model.
        tokenizer: its tokenizer.
        tokens: the tokens of all tasks.
        evaluate_on: the split that is read besides train.
        needs: the parts that must not be left out.
    """
    smaller, numbered, pad = backbone, list(tokens), tokens[0].pad_token_id
    if not needs.full_vocabulary:
        splits = dict.fromkeys(("train", evaluate_on, *(["dev"] if needs.held_out else [])))
        smaller, numbered, pad = shrink_vocabulary(backbone, tokens, tuple(splits))
    if smaller is backbone:
        smaller = copy.deepcopy(backbone)
    reads_first_token = tokenizer.cls_token_id is not None
    if needs.plain_modules:
        return View(smaller, tuple(numbered), pad, reads_first_token)
    use_block_dropout(smaller)
    use_own_attention(smaller)
    cut = reads_first_token and not needs.all_tokens and keep_first_token(smaller, assign_layers(smaller))
    first = first_position(smaller, pad) if cut else None
    return View(smaller, tuple(numbered), pad, reads_first_token, first)
