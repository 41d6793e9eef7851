"""`RetentionConfig`: the text, and how the log marginal likelihood is estimated on it and heads are fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lr_dist.checks import check_finite, check_whole
from lr_dist.errors import ConfigurationError

if TYPE_CHECKING:
    from lr_dist.retention.fit_head import HeadFit
    from lr_dist.retention.score_rows import ScoreSettings


@dataclass(frozen=True)
class RetentionConfig:
    """The settings of a measurement; also the options of `lr-dist retention`.

    Raises:
        ConfigurationError: no text, or a value out of range.
    """

    text: str = ""
    """Plain text to score, such as a part of the pre-training text: a file with one text a line. What is not scored
    fits heads."""

    fit_text: str | None = None
    """Another text file to fit heads on, in place of the rest of --text."""

    head: str | None = None
    """Masked-LM head of the model before, as an earlier run wrote it (head.safetensors); for models without a head."""

    texts: int = 100
    """How many texts to score, drawn at random."""

    max_length: int = 64
    """Maximum number of tokens of a text; a longer one is cut into several."""

    least: int = 8
    """Texts with fewer tokens that can be masked, such as headings, are left out."""

    masks: int = 2
    """Masks of each size, 2 or more."""

    sizes: int = 8
    """Mask sizes of each text, drawn from strata of all sizes."""

    batch_size: int = 32
    """Texts with masks that are computed at once; fewer need less memory."""

    fit_texts: int = 2000
    """How many texts to fit heads on, at most; 0 fits none, so that only the frozen head is measured."""

    fit_epochs: int = 2
    """Passes over these texts to fit a new head; a fitted one is refitted in half as many."""

    fit_lr: float = 2e-3
    """Peak learning rate to fit heads with."""

    seed: int = 0
    """Seed of the texts, the masks and the order in which heads are fitted."""

    def __post_init__(self) -> None:
        if not self.text:
            raise ConfigurationError("Nothing to score: give a file of plain text, one text a line (--text FILE).")
        for name, least in {"texts": 1, "masks": 2, "sizes": 2, "batch_size": 1, "fit_epochs": 1, "least": 1}.items():
            hint = "One has no standard error." if least == 2 else ""
            check_whole(name, getattr(self, name), least, error=ConfigurationError, hint=hint)
        for name in ("fit_texts", "seed"):
            check_whole(name, getattr(self, name), 0, error=ConfigurationError)
        check_finite("fit_lr", self.fit_lr, error=ConfigurationError, positive=True)

    @property
    def scoring(self) -> ScoreSettings:
        """How texts are scored."""
        from lr_dist.retention.score_rows import ScoreSettings

        return ScoreSettings(self.masks, self.sizes, self.batch_size, self.seed)

    @property
    def fitting(self) -> HeadFit:
        """How a new head is fitted."""
        from lr_dist.retention.fit_head import HeadFit

        return HeadFit(epochs=self.fit_epochs, lr=self.fit_lr, batch_size=self.batch_size, seed=self.seed)

    @property
    def refitting(self) -> HeadFit:
        """How a head is fitted again: in half as many passes, at half the rate."""
        from lr_dist.retention.fit_head import HeadFit

        epochs = -(-self.fit_epochs // 2)
        return HeadFit(epochs=epochs, lr=self.fit_lr / 2, batch_size=self.batch_size, seed=self.seed + 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}
