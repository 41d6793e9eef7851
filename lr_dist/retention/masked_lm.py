"""A masked language model in two parts: an encoder, and a head that is computed where tokens are hidden."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.errors import NoMaskedLMHeadError
from lr_dist.methods.evaluating import evaluating
from lr_dist.retention.marginal_likelihood import ConditionalLogProb
from lr_dist.retention.texts import TokenRow, padded
from lr_dist.runs.precision import MIXED

# Tokens whose logits are computed at once, and of these, tokens whose softmax is: float32 logits of 32 tokens over
# 30,000 words take 4 MB, which stay in a processor's cache. With 256 at once the head took 1.4 times as long.
POSITIONS, _IN_CACHE = 256, 32


@dataclass(frozen=True, eq=False)
class MaskedLM:
    """An encoder and a head.

    Attributes:
        encoder: returns `last_hidden_state` [rows, tokens, hidden].
        head: states [positions, hidden] -> logits [positions, vocabulary].
        mask_id: the token that hides another one.
        pad_id: the token that fills a batch.
        precision: `32-true`, or `bf16-mixed` for autocast.
    """

    encoder: nn.Module
    head: nn.Module
    mask_id: int
    pad_id: int
    precision: str = "32-true"

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, *, precision: str = "32-true") -> MaskedLM:
        """Take a masked LM of transformers apart (`AutoModelForMaskedLM`); the parts share its weights.

        Raises:
            NoMaskedLMHeadError: it has no such head, or the tokenizer no mask token.
        """
        encoder, head = split(model)
        return cls.from_parts(encoder, head, tokenizer, precision=precision)

    @classmethod
    def from_parts(cls, encoder: nn.Module, head: nn.Module, tokenizer: Any, *, precision: str = "32-true") -> MaskedLM:
        """Join an encoder with a head, such as `lr_dist.retention.mlm_head.MLMHead`.

        Raises:
            NoMaskedLMHeadError: the tokenizer has no mask token.
        """
        return cls(encoder, head, mask_token(tokenizer), int(tokenizer.pad_token_id), precision)

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return next(self.encoder.parameters()).device

    def with_head(self, head: nn.Module) -> MaskedLM:
        """The same encoder with another head."""
        return replace(self, head=head)

    def with_encoder(self, encoder: nn.Module) -> MaskedLM:
        """Another encoder with the same head."""
        return replace(self, encoder=encoder)

    def conditional_log_prob(self, row: TokenRow) -> ConditionalLogProb:
        """The conditionals of one text, for `marginal_likelihood` and `order_spread`."""

        def conditional(masks: Tensor) -> Tensor:
            values = masks.new_zeros(masks.shape, dtype=torch.float32)
            values[masks] = self.log_probs([row] * len(masks), list(masks))
            return values

        return conditional

    def log_probs(self, rows: Sequence[TokenRow], masks: Sequence[Tensor]) -> Tensor:
        """log p of the hidden tokens, given the others of their row.

        The encoder sees all rows at once, the head only the hidden places, `POSITIONS` at a time.

        Args:
            rows: the texts; one may come several times.
            masks: for each, bool [D], which of its ordinary tokens are hidden.

        Returns:
            float32 [hidden tokens], row by row, from left to right; on the CPU.
        """
        with torch.no_grad(), evaluating(self.encoder, self.head), autocast(self.device, self.precision):
            states, targets = self.hidden_states(rows, masks)
            return head_log_probs(self.head, states, targets).cpu()

    def hidden_states(self, rows: Sequence[TokenRow], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The encoder's states at the hidden places, [hidden tokens, hidden], and the tokens there.

        Args:
            rows, masks: as for `log_probs`.
        """
        places = [row.ordinary[mask] for row, mask in zip(rows, masks, strict=True)]
        ids, attention = padded([row.ids for row in rows], self.pad_id)
        lines = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(each) for each in places]))
        columns = torch.cat(places)
        targets = ids[lines, columns]
        ids[lines, columns] = self.mask_id
        device = self.device
        output = self.encoder(input_ids=ids.to(device), attention_mask=attention.to(device))
        return output.last_hidden_state[lines.to(device), columns.to(device)], targets.to(device)


def head_log_probs(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    """log p of the targets, float32 [positions]; the logits of at most `POSITIONS` of them are in memory at a time."""
    parts = []
    for some, wanted in zip(states.split(POSITIONS), targets.split(POSITIONS), strict=True):
        for logits, tokens in zip(head(some).split(_IN_CACHE), wanted.split(_IN_CACHE), strict=True):
            parts.append(torch.log_softmax(logits.float(), dim=-1).gather(1, tokens[:, None]).squeeze(1))
    return torch.cat(parts) if parts else states.new_zeros(0, dtype=torch.float32)


def mask_token(tokenizer: Any) -> int:
    """The id of the token that hides another one.

    Raises:
        NoMaskedLMHeadError: the tokenizer has none: it belongs to a decoder.
    """
    if tokenizer.mask_token_id is None:
        raise NoMaskedLMHeadError(
            f"{type(tokenizer).__name__} has no mask token, so its model does not predict masked tokens. Retention by "
            "masked prediction needs an encoder such as BERT, RoBERTa or MiniLM."
        )
    return int(tokenizer.mask_token_id)


def split(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Encoder and head of a masked LM of transformers; both share its weights, and it is not changed.

    Raises:
        NoMaskedLMHeadError: what follows the encoder gives no logits over the vocabulary, or needs more than the last
            hidden states.
    """
    name = getattr(model, "base_model_prefix", "")
    encoder = getattr(model, name, None) if name else None
    if not isinstance(encoder, nn.Module):
        raise NoMaskedLMHeadError(f"{type(model).__name__} is no masked LM of transformers with a head.")
    head = Head(model)
    device = next(encoder.parameters()).device
    ids = torch.arange(1, 7, device=device)[None]
    with torch.no_grad(), evaluating(model, encoder, head):
        whole = getattr(model(input_ids=ids), "logits", None)
        states = encoder(input_ids=ids).last_hidden_state[0]
        vocabulary = int(getattr(model.config, "vocab_size", 0))  # type: ignore[union-attr, arg-type]
        parts = head(states) if whole is not None and whole.shape[-1] == vocabulary else None
    if parts is None or whole is None or not torch.allclose(parts, whole[0], rtol=1e-3, atol=1e-3):
        raise NoMaskedLMHeadError(
            f"{type(model).__name__} does not predict the tokens of its vocabulary from the last hidden states alone. "
            "Load it with AutoModelForMaskedLM."
        )
    return encoder, head


class Head(nn.Module):
    """What follows the encoder in a masked LM of transformers, as a module of its own that shares the weights.

    Args:
        model: the masked LM.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        shell = copy.copy(model)
        # The copy has the same dictionary of submodules as the model, which must stay as it is.
        shell._modules = {**model._modules, str(model.base_model_prefix): _GivenStates()}
        self.shell = shell

    def forward(self, states: Tensor) -> Tensor:
        """Logits [positions, vocabulary] of states [positions, hidden]."""
        return self.shell(inputs_embeds=states[None]).logits[0]  # type: ignore[no-any-return]


class _GivenStates(nn.Module):
    """In place of an encoder: what it is given are its last hidden states."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=inputs_embeds)  # type: ignore[arg-type]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast where the precision is `bf16-mixed`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == MIXED)
