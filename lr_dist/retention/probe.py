"""`RetentionProbe`: what a fine-tuned encoder still knows of a text, measured against the encoder before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lr_dist.errors import ModelMismatchError, RetentionTextError, listed
from lr_dist.retention.fit_head import HeadFit, refit
from lr_dist.retention.marginal_likelihood import MarginalLikelihood
from lr_dist.retention.masked_lm import MaskedLM
from lr_dist.retention.score_rows import PerToken, ScoreSettings, curve_by_share, lost_per_token, per_token, score_rows
from lr_dist.retention.texts import TokenRow

FROZEN, REFITTED = "frozen", "refitted"

Scores = dict[str, list[MarginalLikelihood]]
"""`frozen` and `refitted` -> one estimate a text."""


@dataclass(frozen=True)
class Retention:
    """Log marginal likelihood before and after, and what is lost, with the frozen head and with a refitted one.

    Attributes:
        before, after: head -> nats a token.
        lost: head -> before minus after; the errors are those of the paired differences.
    """

    before: dict[str, PerToken]
    after: dict[str, PerToken]
    lost: dict[str, PerToken]
    curves: dict[str, dict[str, list[float | None]]] = field(repr=False)

    @property
    def measure(self) -> PerToken:
        """What is lost for good: with the refitted head, or, where none was refitted, with the frozen one."""
        return self.lost.get(REFITTED, self.lost[FROZEN])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a result file."""
        parts = {"before": self.before, "after": self.after, "lost": self.lost}
        plain: dict[str, Any] = {
            name: {head: value.to_dict() for head, value in part.items()} for name, part in parts.items()
        }
        return {**plain, "curves": self.curves}


class RetentionProbe:
    """Measures encoders against the one before the training.

    The head is that of the model before. It predicts with the encoder after (`frozen`), and again after it was trained
    further on the encoder after (`refitted`); for a fair comparison it is trained further on the encoder before, too.

    Args:
        before: encoder and head before. The encoder is copied, so later changes to it do not count.
        rows: the text that is scored.
        fit_rows: another text, to fit heads again; none: nothing is refitted.
        settings: of the estimate.
        fit: how heads are fitted again.
        progress: receives what is done, e.g. `scoring before`, steps done and steps in all.

    Raises:
        RetentionTextError: no text, or texts that are scored and fitted on.
    """

    def __init__(
        self,
        before: MaskedLM,
        rows: Sequence[TokenRow],
        fit_rows: Sequence[TokenRow] = (),
        settings: ScoreSettings = ScoreSettings(),  # noqa: B008  (frozen)
        fit: HeadFit = HeadFit(epochs=1),  # noqa: B008
        *,
        progress: Callable[[str, int, int], None] = lambda doing, done, total: None,
    ) -> None:
        if not rows:
            raise RetentionTextError("There is no text to score: give at least one row.")
        _check_apart(rows, fit_rows)
        self.model = before.with_encoder(copy.deepcopy(before.encoder))
        self.rows = list(rows)
        self.fit_rows = list(fit_rows)
        self.settings = settings
        self.fit = fit
        self._progress = progress
        self._before: Scores | None = None

    def before(self, store: Path | None = None) -> Scores:
        """The scores before; computed once."""
        if self._before is None:
            self._before = self._scores(self.model, "before", store)
        return self._before

    def measure(self, encoder: nn.Module, *, store: Path | None = None, store_before: Path | None = None) -> Retention:
        """Measure an encoder.

        Args:
            encoder: of the same architecture as the one before; it is not changed.
            store: JSONL file of the scores after, see `score_rows`.
            store_before: the same of the scores before.

        Raises:
            ModelMismatchError: another architecture.
        """
        check_same_architecture(self.model.encoder, encoder)
        before = self.before(store_before)
        after = self._scores(self.model.with_encoder(encoder), "after", store)
        return Retention(
            {head: per_token(before[head]) for head in after},
            {head: per_token(after[head]) for head in after},
            {head: lost_per_token(before[head], after[head]) for head in after},
            {
                "before": {head: curve_by_share(before[head]) for head in after},
                "after": {head: curve_by_share(after[head]) for head in after},
            },
        )

    def _scores(self, model: MaskedLM, name: str, store: Path | None) -> Scores:
        heads = {FROZEN: model.head}
        if self.fit_rows:
            doing = f"refitting the head, {name}"
            refitted = refit(model, self.fit_rows, self.fit, progress=lambda d, n, _: self._progress(doing, d, n))
            heads[REFITTED] = refitted.head
        return score_rows(
            model,
            self.rows,
            self.settings,
            heads=heads,
            store=store,
            progress=lambda done, total: self._progress(f"scoring the text, {name}", done, total),
        )


def check_same_architecture(before: nn.Module, after: nn.Module) -> None:
    """Check that two encoders have the same weights, up to a pooler.

    Raises:
        ModelMismatchError: names or shapes differ.
    """
    old, new = (
        {name: tuple(w.shape) for name, w in model.state_dict().items() if not name.startswith("pooler.")}
        for model in (before, after)
    )
    if old == new:
        return
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    raise ModelMismatchError(
        f"The model after has another architecture than the one before ({type(after).__name__} and "
        f"{type(before).__name__}): {len(differing)} weights differ in name or shape, such as "
        f"{listed(differing[:3])}. Give the model that was fine-tuned from --model."
    )


def _check_apart(rows: Sequence[TokenRow], fit_rows: Sequence[TokenRow]) -> None:
    """A head that was fitted on the text that is scored knows it by heart."""
    fitted = {row.ids.numpy().tobytes() for row in fit_rows}
    same = sum(row.ids.numpy().tobytes() in fitted for row in rows)
    if same > len(rows) // 2:
        raise RetentionTextError(
            f"{same} of the {len(rows)} texts to score are also fitted on: the head would know them by heart. Give "
            "another text to fit heads on."
        )
