"""Fit a masked-LM head to an encoder from plain text, or fit one again after the encoder was fine-tuned."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.checks import check_finite, check_whole
from lr_dist.errors import ConfigurationError, DivergedError, RetentionTextError
from lr_dist.methods.evaluating import evaluating
from lr_dist.retention.masked_lm import MaskedLM, autocast
from lr_dist.retention.mlm_head import MLMHead, embeddings_of, encoder_fingerprint, hidden_size
from lr_dist.retention.texts import TokenRow, rows_fingerprint


@dataclass(frozen=True)
class HeadFit:
    """How a head is fitted.

    In every epoch and row, a number of tokens is hidden that is drawn uniformly from 1 ... D, so that the loss is minus
    the log marginal likelihood per token: see `lr_dist.retention.marginal_likelihood`.
    """

    epochs: int = 2
    """Passes over the text, each with other masks."""

    lr: float = 1e-3
    """Peak learning rate of the head (AdamW, warm-up over 5% of the steps, then linearly to 0)."""

    encoder_lr: float = 1e-4
    """The same of the encoder, where it is trained, too."""

    batch_size: int = 32
    """Rows a step."""

    most_positions: int = 16
    """Most hidden tokens of a row that the head learns from, drawn at random: the head costs more than the encoder."""

    seed: int = 0
    """Of the order and the masks."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "most_positions"):
            check_whole(name, getattr(self, name), 1, error=ConfigurationError)
        check_whole("seed", self.seed, 0, error=ConfigurationError)
        for name in ("lr", "encoder_lr"):
            check_finite(name, getattr(self, name), error=ConfigurationError, positive=True)


Progress = Callable[[int, int, float], None]
"""Steps done, steps in all, loss in nats a hidden token."""


def fit_mlm_head(
    encoder: nn.Module,
    tokenizer: Any,
    rows: Sequence[TokenRow],
    fit: HeadFit = HeadFit(),
    *,
    train_encoder: bool = False,
    precision: str = "32-true",
    name: str = "",
    progress: Progress = lambda done, steps, loss: None,
) -> MLMHead:
    """Train a head for an encoder without one; the encoder's weights are not changed.

    The decoder is a frozen copy of the encoder's embeddings, and the bias begins with the logarithms of the tokens'
    smoothed frequencies in the text: an untrained head predicts about the unigram.

    Args:
        encoder: pre-trained, without a head.
        tokenizer: its tokenizer.
        rows: of the text, see `token_rows`.
        fit: how.
        train_encoder: continue the masked training of the whole encoder: its weights ARE changed, and are then another
            pre-trained model, the base from which to fine-tune.
        precision: `32-true`, or `bf16-mixed`.
        name: of the model, for the file.
        progress: called after every step.

    Returns:
        The head, in evaluation mode; `info` names encoder and text by their fingerprints.

    Raises:
        RetentionTextError: no rows.
        DivergedError: the loss became NaN or infinite.
    """
    embeddings = embeddings_of(encoder)
    head = MLMHead(embeddings, hidden_size(encoder), unigram(rows, len(embeddings)).log().to(embeddings.device))
    model = MaskedLM.from_parts(encoder, head.to(embeddings.device), tokenizer, precision=precision)
    _train(model, rows, fit, train_encoder=train_encoder, progress=progress)
    head.info = {
        "model": name,
        "encoder": encoder_fingerprint(encoder),
        "text": rows_fingerprint(rows),
        "rows": len(rows),
        "tokens": sum(map(len, rows)),
        "fit": asdict(fit),
        "train_encoder": train_encoder,
        "precision": precision,
    }
    return head.eval()


def refit(
    model: MaskedLM,
    rows: Sequence[TokenRow],
    fit: HeadFit = HeadFit(),
    *,
    progress: Progress = lambda done, steps, loss: None,
) -> MaskedLM:
    """Train a copy of a model's head further, on the encoder as it is now.

    What a refitted head cannot get back is lost; the rest had only moved to where the old head does not look.

    Args:
        model: encoder and head. A matrix [vocabulary, width] in the head (the decoder) stays as it is.
        rows, fit, progress: as for `fit_mlm_head`.

    Returns:
        The same encoder with the new head.
    """
    head = copy.deepcopy(model.head)
    vocabulary = model.encoder.config.vocab_size  # type: ignore[union-attr]
    for weight in head.parameters():
        weight.requires_grad_(not (weight.dim() == 2 and weight.shape[0] == vocabulary))
    refitted = model.with_head(head)
    _train(refitted, rows, fit, train_encoder=False, progress=progress)
    head.eval()
    return refitted


def unigram(rows: Sequence[TokenRow], vocabulary: int, *, smoothing: float = 1.0) -> Tensor:
    """The smoothed frequencies of a text's ordinary tokens, float32 [vocabulary]: (count + a) / (total + a V)."""
    if not rows:
        raise RetentionTextError("There is no text to count: give at least one row.")
    counts = torch.bincount(torch.cat([row.ids[row.ordinary] for row in rows]), minlength=vocabulary).double()
    return ((counts + smoothing) / (counts.sum() + smoothing * vocabulary)).float()


def unigram_loss(rows: Sequence[TokenRow], probabilities: Tensor) -> float:
    """Minus the mean log-probability of a text's ordinary tokens under a unigram, in nats a token."""
    targets = torch.cat([row.ids[row.ordinary] for row in rows])
    return -float(probabilities.double().log()[targets].mean())


@dataclass(frozen=True)
class MaskedLoss:
    """The loss where a share of each text is hidden, in nats a token.

    Attributes:
        mean: of the model.
        error: its standard error, over texts.
        unigram: the loss of a unigram on the same hidden tokens; None without one.
        gain: `unigram` minus `mean`, and its standard error, which is that of the paired difference.
    """

    mean: float
    error: float
    unigram: float | None = None
    gain: tuple[float, float] | None = None

    @property
    def beats_unigram(self) -> bool | None:
        """Whether the gain is more than two standard errors."""
        return None if self.gain is None else self.gain[0] > 2 * self.gain[1]


def masked_loss(
    model: MaskedLM,
    rows: Sequence[TokenRow],
    *,
    rate: float = 0.15,
    beside: Tensor | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> MaskedLoss:
    """The loss where a share of each row's tokens is hidden.

    Args:
        model: what predicts.
        rows: the text.
        rate: share of the ordinary tokens, at least one; BERT was trained with 0.15.
        beside: the probabilities of a unigram, to compare with.
        batch_size: rows at once.
        seed: of the masks.
    """
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    floors: list[float] = []
    counts: list[int] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        masks = [_mask(len(row), max(1, round(rate * len(row))), generator) for row in batch]
        sizes = [int(mask.sum()) for mask in masks]
        losses += [-float(each.sum()) for each in model.log_probs(batch, masks).split(sizes)]
        counts += sizes
        if beside is not None:
            hidden = [row.ids[row.ordinary[mask]] for row, mask in zip(batch, masks, strict=True)]
            floors += [-float(beside.double().log()[each].sum()) for each in hidden]
    mean, error = _mean_and_error(losses, counts)
    if beside is None:
        return MaskedLoss(mean, error)
    gains = [floor - loss for floor, loss in zip(floors, losses, strict=True)]
    return MaskedLoss(mean, error, sum(floors) / sum(counts), _mean_and_error(gains, counts))


def _mean_and_error(values: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """The mean a token, and its standard error over rows (of a ratio); nan for a single row."""
    total = sum(counts)
    mean = math.fsum(values) / total
    residuals = [value - mean * count for value, count in zip(values, counts, strict=True)]
    return mean, statistics.stdev(residuals) * math.sqrt(len(residuals)) / total if len(residuals) > 1 else math.nan


def _train(model: MaskedLM, rows: Sequence[TokenRow], fit: HeadFit, *, train_encoder: bool, progress: Progress) -> None:
    if not rows:
        raise RetentionTextError("There is no text to fit a head on: give at least one row.")
    head = [weight for weight in model.head.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [{"params": head, "lr": fit.lr}]
    if train_encoder:
        body = [weight for weight in model.encoder.parameters() if weight.requires_grad]
        groups.append({"params": body, "lr": fit.encoder_lr, "weight_decay": 0.01})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    steps = fit.epochs * math.ceil(len(rows) / fit.batch_size)
    warmup = max(1, round(0.05 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    generator = torch.Generator().manual_seed(fit.seed)
    # Without dropout: the head reads the encoder as it will be measured.
    with evaluating(model.encoder, model.head), torch.enable_grad():
        for step, batch in enumerate(_batches(rows, fit, generator)):
            loss = _loss(model, batch, fit.most_positions, generator, train_encoder)
            if not math.isfinite(loss.item()):
                raise DivergedError(f"The loss of the masked-LM head became {loss.item()} at step {step}: lower lr.")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([weight for group in groups for weight in group["params"]], 1.0)
            optimizer.step()
            schedule.step()
            progress(step + 1, steps, loss.item())
    optimizer.zero_grad()


def _batches(rows: Sequence[TokenRow], fit: HeadFit, generator: torch.Generator) -> Iterator[list[TokenRow]]:
    """Batches of rows of about the same length, in another order in every epoch."""
    for _ in range(fit.epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        order.sort(key=lambda i: len(rows[i].ids))
        parts = [order[i : i + fit.batch_size] for i in range(0, len(order), fit.batch_size)]
        for part in torch.randperm(len(parts), generator=generator).tolist():
            yield [rows[i] for i in parts[part]]


def _loss(
    model: MaskedLM, rows: Sequence[TokenRow], most: int, generator: torch.Generator, train_encoder: bool
) -> Tensor:
    """Mean over rows of the mean loss over hidden tokens, of at most `most` a row."""
    sizes = [int(torch.randint(1, len(row) + 1, (), generator=generator)) for row in rows]
    masks = [_mask(len(row), size, generator) for row, size in zip(rows, sizes, strict=True)]
    with autocast(model.device, model.precision):
        with torch.set_grad_enabled(train_encoder):
            states, targets = model.hidden_states(rows, masks)
        # Of each row, the first in a random order.
        chosen, start = [], 0
        for size in sizes:
            chosen.append(start + torch.randperm(size, generator=generator)[:most])
            start += size
        weights = torch.cat([torch.full((len(each),), 1 / len(each)) for each in chosen]).to(states.device) / len(rows)
        index = torch.cat(chosen).to(states.device)
        logits = model.head(states[index]).float()
    return (nn.functional.cross_entropy(logits, targets[index], reduction="none") * weights).sum()


def _mask(length: int, size: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[torch.randperm(length, generator=generator)[:size]] = True
    return mask
