"""From a model's name and a text file to a `RetentionProbe`: load, find or fit the head, draw the texts."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lr_dist._models.checkpoint import is_checkpoint, load_weights
from lr_dist.errors import (
    PATH,
    MaskedLMHeadError,
    NoMaskedLMHeadError,
    RetentionTextError,
    TokenizerMismatchError,
    shown,
)
from lr_dist.models import load_backbone, load_masked_lm, load_tokenizer, resolve_model
from lr_dist.retention.fit_head import fit_mlm_head, masked_loss, unigram
from lr_dist.retention.masked_lm import MaskedLM, mask_token, split
from lr_dist.retention.mlm_head import MLMHead, encoder_fingerprint
from lr_dist.retention.probe import RetentionProbe, check_same_architecture
from lr_dist.retention.text_config import RetentionConfig
from lr_dist.retention.texts import TokenRow, read_texts, rows_fingerprint, token_rows
from lr_dist.runs.machine import training_device

Report = Callable[[str, int, int], None]
"""What is done, steps done, steps in all."""

# The least text that a head can be fitted on.
_LEAST_ROWS = 64


@dataclass(frozen=True, eq=False)
class TextRows:
    """The rows that are scored, and others to fit heads on.

    Attributes:
        scored, fitted: rows of tokens.
    """

    scored: list[TokenRow]
    fitted: list[TokenRow]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a result file."""
        parts = {"scored": self.scored, "fitted": self.fitted}
        return {
            name: {"texts": len(rows), "tokens": sum(map(len, rows)), "fingerprint": rows_fingerprint(rows)}
            for name, rows in parts.items()
        }


def draw_rows(config: RetentionConfig, tokenizer: Any) -> TextRows:
    """Draw the texts that are scored, and others to fit heads on; a text that occurs in both only counts as scored.

    Raises:
        RetentionTextError: a file that cannot be used, see `read_texts` and `token_rows`, or too few texts in
            `fit_text`.
    """
    length = {"max_length": config.max_length, "least": config.least}
    rows = token_rows(read_texts(config.text), tokenizer, **length)
    order = random.Random(config.seed).sample(range(len(rows)), len(rows))
    chosen = set(order[: config.texts])
    scored = [row for i, row in enumerate(rows) if i in chosen]
    if not config.fit_texts:
        return TextRows(scored, [])
    known = {_content(row) for row in scored}
    if config.fit_text is None:
        rest = [rows[i] for i in sorted(order[config.texts :])]
    else:
        rest = token_rows(read_texts(config.fit_text), tokenizer, **length)
    others = [row for row in rest if _content(row) not in known]
    if len(others) > config.fit_texts:
        drawn = random.Random(config.seed + 1).sample(range(len(others)), config.fit_texts)
        others = [others[i] for i in sorted(drawn)]
    if len(others) >= _LEAST_ROWS:
        return TextRows(scored, others)
    if config.fit_text is not None:
        raise RetentionTextError(
            f"{shown(config.fit_text, PATH)} has {len(others)} texts that are not scored, and a head needs at least "
            f"{_LEAST_ROWS} to be fitted on. Give a longer file."
        )
    # A few texts cannot fit a head; then only the frozen one is measured.
    return TextRows(scored, [])


def _content(row: TokenRow) -> bytes:
    return row.ids.numpy().tobytes()


def load_before(
    name: str,
    encoder: nn.Module,
    tokenizer: Any,
    rows: TextRows,
    config: RetentionConfig,
    *,
    precision: str = "32-true",
    folder: Path | None = None,
    train_encoder: bool = False,
    report: Report = lambda doing, done, total: None,
) -> MaskedLM:
    """An encoder with its own masked-LM head, a given one, or one that is fitted here.

    Args:
        name: of the model, where its own head is looked for.
        encoder: its weights, without a head.
        tokenizer: its tokenizer.
        rows: of the text.
        config: the head's file, and how to fit one.
        precision: to compute in.
        folder: where a fitted head is written (`head.safetensors`), and taken from if it was fitted in the same way.
        train_encoder: continue the masked training of the encoder, with a new head: its weights ARE changed, and are
            another base then.
        report: receives the progress.

    Raises:
        NoMaskedLMHeadError: there is no head, and no text to fit one on.
        RetentionTextError: `train_encoder`, and no text to train on.
        MaskedLMHeadError: a given head that does not belong to the encoder.
    """
    mask_token(tokenizer)
    device = training_device()
    encoder = encoder.eval().to(device)
    if train_encoder:
        fitted = _fit(name, encoder, tokenizer, rows, config, precision, report, train_encoder=True)
        if folder is not None:
            fitted.save(folder / "head.safetensors")
        head: nn.Module = fitted
    elif config.head is not None:
        head = MLMHead.load(config.head, encoder)
    else:
        try:
            _, head = split(load_masked_lm(name))
        except NoMaskedLMHeadError as error:
            if not rows.fitted:
                raise NoMaskedLMHeadError(
                    f"{error} A head can be fitted on plain text (`fit_mlm_head`): give a text file with at least "
                    f"{_LEAST_ROWS} more texts than are scored, or another one to fit on (`fit_text`), or a head that "
                    "was fitted before (`head`)."
                ) from error
            head = _fitted(name, encoder, tokenizer, rows, config, precision, folder, report)
    return MaskedLM.from_parts(encoder, head.eval().to(device), tokenizer, precision=precision)


def _fitted(
    name: str,
    encoder: nn.Module,
    tokenizer: Any,
    rows: TextRows,
    config: RetentionConfig,
    precision: str,
    folder: Path | None,
    report: Report,
) -> MLMHead:
    path = None if folder is None else folder / "head.safetensors"
    wanted = {
        "encoder": encoder_fingerprint(encoder),
        "text": rows_fingerprint(rows.fitted),
        "fit": config.fitting.__dict__,
        "precision": precision,
    }
    if path is not None and path.exists():
        try:
            kept = MLMHead.load(path, encoder)
        except MaskedLMHeadError:
            kept = None
        if kept is not None and all(kept.info.get(key) == value for key, value in wanted.items()):
            return kept
    head = _fit(name, encoder, tokenizer, rows, config, precision, report)
    if path is not None:
        head.save(path)
    return head


def _fit(
    name: str,
    encoder: nn.Module,
    tokenizer: Any,
    rows: TextRows,
    config: RetentionConfig,
    precision: str,
    report: Report,
    *,
    train_encoder: bool = False,
) -> MLMHead:
    doing = "continuing the masked training" if train_encoder else "fitting a head"
    return fit_mlm_head(
        encoder,
        tokenizer,
        rows.fitted,
        config.fitting,
        train_encoder=train_encoder,
        precision=precision,
        name=name,
        progress=lambda done, steps, _: report(doing, done, steps),
    )


def head_quality(model: MaskedLM, rows: TextRows, *, seed: int = 0) -> dict[str, Any]:
    """The loss of a head where 15% of the tokens are hidden, beside a smoothed unigram of the text and chance.

    The unigram is what a head has to beat: it is counted on the text that heads are fitted on, or, without one, on the
    scored text itself, where it is at its best.
    """
    vocabulary = int(model.encoder.config.vocab_size)  # type: ignore[union-attr, arg-type]
    frequencies = unigram(rows.fitted or rows.scored, vocabulary)
    loss = masked_loss(model, rows.scored, beside=frequencies, seed=seed)
    assert loss.gain is not None
    return {
        "masked_loss": loss.mean,
        "standard_error": _finite(loss.error),
        "unigram_loss": loss.unigram,
        "gain": loss.gain[0],
        "gain_error": _finite(loss.gain[1]),
        "chance": math.log(vocabulary),
        "beats_unigram": loss.beats_unigram,
        "fitted": dict(model.head.info) if isinstance(model.head, MLMHead) else None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def probe_of(
    model: MaskedLM, rows: TextRows, config: RetentionConfig, *, report: Report = lambda doing, done, total: None
) -> RetentionProbe:
    """The probe that measures encoders against `model`."""
    return RetentionProbe(model, rows.scored, rows.fitted, config.scoring, config.refitting, progress=report)


def load_after(name: str, before: str, encoder: nn.Module, tokenizer: Any) -> nn.Module:
    """The encoder of a fine-tuned model, whatever its head.

    Args:
        name: a folder, a hub name, or a checkpoint file of Lightning, torch or safetensors.
        before: name of the model before, for the error.
        encoder: of the model before.
        tokenizer: of the model before.

    Raises:
        ModelMismatchError, ModelLoadError: another architecture.
        TokenizerMismatchError: another vocabulary.
    """
    if is_checkpoint(name):
        after = copy.deepcopy(encoder)
        load_weights(after, name)
        return after.eval()
    after = load_backbone(name).eval().to(training_device())
    check_same_architecture(encoder, after)
    path = Path(resolve_model(name))
    if not path.is_dir() or any((path / each).exists() for each in ("tokenizer.json", "vocab.txt", "vocab.json")):
        other = load_tokenizer(name)
        if other.get_vocab() != tokenizer.get_vocab():
            raise TokenizerMismatchError(
                f"The tokenizers of {shown(before, PATH)} and {shown(name, PATH)} have different vocabularies, so the "
                "models see different tokens in one text. Give two checkpoints of one model."
            )
    return after
