"""log p(x) of many texts under one encoder and one or more heads: batches over masks and texts, a JSON line a text."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.checks import check_whole, is_number
from lr_dist.errors import InvalidMasksError, InvalidResultError
from lr_dist.methods.evaluating import evaluating
from lr_dist.models import weights_fingerprint
from lr_dist.retention.marginal_likelihood import MarginalLikelihood, SizePoint, estimate
from lr_dist.retention.masked_lm import MaskedLM, autocast, head_log_probs
from lr_dist.retention.masks import MaskPlan, draw_masks
from lr_dist.retention.texts import TokenRow, rows_fingerprint
from lr_dist.runs.atomic import write_text

_KIND, _VERSION = "lr-dist marginal likelihood of texts", 1
# Texts whose masks are drawn, sorted by length and evaluated together; then their lines are written.
_GROUP = 16


@dataclass(frozen=True)
class ScoreSettings:
    """How the log marginal likelihood of each text is estimated.

    Raises:
        InvalidMasksError: a value out of range.
    """

    masks: int = 2
    """Masks of each size, 2 or more."""

    sizes: int = 8
    """Mask sizes of each text, drawn from strata; a text with fewer tokens has all of its sizes."""

    batch_size: int = 32
    """Texts with masks that the encoder computes at once; the bound of the memory."""

    seed: int = 0
    """Of masks and sizes; the same for every model, so that models are compared on the same masks."""

    def __post_init__(self) -> None:
        hint = "One mask a size has no standard error."
        check_whole("masks", self.masks, 2, error=InvalidMasksError, hint=hint)
        check_whole("sizes", self.sizes, 2, error=InvalidMasksError, hint="One size has no standard error.")
        check_whole("batch_size", self.batch_size, 1, error=InvalidMasksError)
        check_whole("seed", self.seed, 0, error=InvalidMasksError)


def score_rows(
    model: MaskedLM,
    rows: Sequence[TokenRow],
    settings: ScoreSettings = ScoreSettings(),
    *,
    heads: Mapping[str, nn.Module] | None = None,
    store: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[MarginalLikelihood]]:
    """Estimate log p(x) of every row; several heads share the encoder's work and the masks.

    Args:
        model: encoder and head.
        rows: the texts.
        settings: of the estimate.
        heads: name -> head, in place of the model's, which alone is called `head`.
        store: a JSONL file with a line a text. One that was begun with the same weights, texts and settings is
            continued, also after a kill.
        progress: called with the number of texts done and of all.

    Returns:
        Name of the head -> one estimate a row.

    Raises:
        InvalidResultError: `store` holds another measurement, or was altered.
        UnwritableFileError: `store` cannot be written.
    """
    heads = {"head": model.head} if heads is None else heads
    outcome: dict[str, list[MarginalLikelihood]] = {name: [] for name in heads}
    lines = _Lines(store, _about(model, rows, settings, heads)) if store is not None else None
    for entry in lines.read(tuple(heads)) if lines is not None else ():
        for name, value in entry.items():
            outcome[name].append(value)
    done = len(next(iter(outcome.values()), []))
    progress(done, len(rows))
    for start in range(done, len(rows), _GROUP):
        group = list(enumerate(rows[start : start + _GROUP], start))
        plans = [
            draw_masks(
                len(row),
                masks=settings.masks,
                sizes=settings.sizes if settings.sizes < len(row) else None,
                seed=settings.seed * 1_000_003 + index,
            )
            for index, row in group
        ]
        means = _means(model, [row for _, row in group], plans, heads, settings.batch_size)
        entries = [{name: estimate(plan, means[name][i]) for name in heads} for i, plan in enumerate(plans)]
        for entry in entries:
            for name, value in entry.items():
                outcome[name].append(value)
        if lines is not None:
            lines.add(start, entries)
        progress(start + len(group), len(rows))
    return outcome


def _means(
    model: MaskedLM, rows: Sequence[TokenRow], plans: Sequence[MaskPlan], heads: Mapping[str, nn.Module], size: int
) -> dict[str, list[Tensor]]:
    """Name of the head -> for each row, the mean log p of each mask of its plan."""
    queries = [(i, j) for i, plan in enumerate(plans) for j in range(len(plan))]
    queries.sort(key=lambda query: len(rows[query[0]].ids))
    means = {name: [torch.zeros(len(plan)) for plan in plans] for name in heads}
    with torch.no_grad(), evaluating(model.encoder, *heads.values()), autocast(model.device, model.precision):
        for start in range(0, len(queries), size):
            batch = queries[start : start + size]
            masks = [plans[i].masks[j] for i, j in batch]
            states, targets = model.hidden_states([rows[i] for i, _ in batch], masks)
            counts = [int(plans[i].sizes[j]) for i, j in batch]
            for name, head in heads.items():
                values = head_log_probs(head, states, targets).cpu()
                for (i, j), part in zip(batch, values.split(counts), strict=True):
                    means[name][i][j] = part.double().mean()
    return means


def _about(
    model: MaskedLM, rows: Sequence[TokenRow], settings: ScoreSettings, heads: Mapping[str, nn.Module]
) -> dict[str, Any]:
    content = {
        "encoder": weights_fingerprint(model.encoder),
        "heads": {name: weights_fingerprint(head) for name, head in heads.items()},
        "text": rows_fingerprint(rows),
        # The batch size only moves the last digits.
        "settings": {key: value for key, value in asdict(settings).items() if key != "batch_size"},
        "precision": model.precision,
    }
    text = json.dumps(content, sort_keys=True)
    return {
        "kind": _KIND,
        "schema_version": _VERSION,
        "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
        **content,
    }


class _Lines:
    """The JSONL file of a measurement: a line about it, then one a text."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path = path
        self._about = about

    def read(self, heads: tuple[str, ...]) -> Iterator[dict[str, MarginalLikelihood]]:
        """What is there already; a last line without an end, of a killed process, is cut off."""
        if not self._path.exists():
            write_text(self._path, json.dumps(self._about) + "\n")
            return
        whole, _, torn = self._path.read_bytes().rpartition(b"\n")
        if torn:
            write_text(self._path, whole.decode("utf-8", "replace") + "\n" if whole else "")
        first, *rest = whole.decode("utf-8", "replace").split("\n")
        if not whole:
            write_text(self._path, json.dumps(self._about) + "\n")
            return
        about = self._parsed(first, 1)
        if about.get("fingerprint") != self._about["fingerprint"]:
            changed = [key for key in self._about if about.get(key) != self._about[key] and key != "fingerprint"]
            raise InvalidResultError(
                f"{self._path} holds another measurement (other {', '.join(changed) or 'content'}). Give another "
                "--output, or delete the file."
            )
        for number, line in enumerate(rest, 2):
            entry = self._parsed(line, number)
            try:
                yield {name: _restored(entry["scores"][name]) for name in heads}
            except (KeyError, TypeError, ValueError) as error:
                raise InvalidResultError(f"{self._path}, line {number}, was altered; delete the file.") from error

    def add(self, start: int, entries: Sequence[Mapping[str, MarginalLikelihood]]) -> None:
        """Append the lines of texts from number `start` on."""
        text = "".join(
            json.dumps({"text": index, "scores": {name: value.to_dict() for name, value in entry.items()}}) + "\n"
            for index, entry in enumerate(entries, start)
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)

    def _parsed(self, line: str, number: int) -> dict[str, Any]:
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise InvalidResultError(f"{self._path}, line {number}, is no JSON object; delete the file.")
        return data


def _restored(data: Mapping[str, Any]) -> MarginalLikelihood:
    curve = tuple(SizePoint(int(m), float(mean), float(error), int(n)) for m, mean, error, n in data["curve"])
    total, error = data["log_likelihood"], data["standard_error"]
    if not is_number(total) or not is_number(error):
        raise ValueError("no numbers")
    return MarginalLikelihood(int(data["tokens"]), float(total), float(error), curve)


@dataclass(frozen=True)
class PerToken:
    """A mean over the tokens of many texts, in nats a token.

    Attributes:
        mean: sum over the texts divided by the number of tokens.
        error: its standard error, over texts, masks and the choice of sizes.
        texts: number of texts.
        tokens: number of tokens that can be masked.
    """

    mean: float
    error: float
    texts: int
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data; an error that is not defined is None."""
        return {**asdict(self), "error": None if math.isnan(self.error) else self.error}


def per_token(scores: Sequence[MarginalLikelihood]) -> PerToken:
    """The log marginal likelihood per token of a collection of texts."""
    return _ratio([score.total for score in scores], [score.tokens for score in scores])


def lost_per_token(before: Sequence[MarginalLikelihood], after: Sequence[MarginalLikelihood]) -> PerToken:
    """What `after` has lost of the log marginal likelihood, per token; the error is that of the paired difference.

    Args:
        before, after: the same texts under the same masks.
    """
    differences = [old.total - new.total for old, new in zip(before, after, strict=True)]
    return _ratio(differences, [score.tokens for score in before])


def curve_by_share(scores: Sequence[MarginalLikelihood], bins: int = 10) -> list[float | None]:
    """The mean of S_m over texts, by the share m / D of hidden tokens: bin i is above i and up to i + 1 tenths."""
    parts: list[list[float]] = [[] for _ in range(bins)]
    for score in scores:
        for point in score.curve:
            parts[-(-point.size * bins // score.tokens) - 1].append(point.mean)
    return [statistics.fmean(part) if part else None for part in parts]


def _ratio(values: Sequence[float], sizes: Sequence[int]) -> PerToken:
    # The texts are the sampling units, so that the error contains that of every text's estimate.
    tokens = sum(sizes)
    mean = math.fsum(values) / tokens
    residuals = [value - mean * size for value, size in zip(values, sizes, strict=True)]
    count = len(residuals)
    error = math.nan
    if count > 1:
        error = math.sqrt(count / (count - 1) * math.fsum(each**2 for each in residuals)) / tokens
    return PerToken(mean, error, count, tokens)
