"""`RetentionMeasure`: what a run loses of the pre-training, as a measure of comparisons."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any, get_type_hints

from torch import nn

from lr_dist._lightning import isolate_rng
from lr_dist.errors import PATH, ConfigurationError, MaskedLMHeadError, shown
from lr_dist.methods import Needs
from lr_dist.models import load_tokenizer
from lr_dist.names import did_you_mean
from lr_dist.reading import expanded
from lr_dist.retention.prepare import Report, TextRows, draw_rows, head_quality, load_before, probe_of
from lr_dist.retention.probe import FROZEN, REFITTED, Retention, RetentionProbe
from lr_dist.retention.text_config import RetentionConfig
from lr_dist.runs.machine import training_device
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.measures import Measure
from lr_dist.sequence.observers import SequenceState
from lr_dist.sequence.stage import Stage


class RetentionMeasure(Measure):
    """Log marginal likelihood that a run has lost of a text after its last stage, in nats a token.

    Metrics: `retention_lost`, with a refitted head (what is lost for good), or with the head before, where none could
    be refitted; `retention_lost_frozen`, with the head before.

    Args:
        setup: text and head, shared by all runs of a comparison.
    """

    name = "retention"
    # The text has other words than the tasks.
    needs = Needs(full_vocabulary=True)

    def __init__(self, setup: RetentionSetup) -> None:
        self._setup = setup
        self._retention: Retention | None = None

    def identity(self) -> Any:
        return self._setup.identity

    def sequence_started(self, run: SequenceState) -> None:
        # Before the first run: a head that cannot be had is known before anything is trained.
        self._setup.prepare(run.bench)

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        if stage.index == len(run.stages) - 1:
            self._retention = self._setup.measure(run)

    def result(self) -> Any:
        """What `Retention.to_dict` has, and the quality of the head before."""
        assert self._retention is not None, "the last stage has not ended"
        return {**self._retention.to_dict(), "head": self._setup.quality}

    def metrics(self) -> dict[str, float]:
        if self._retention is None:
            return {}
        lost = self._retention.lost
        return {
            "retention_lost": lost[REFITTED if REFITTED in lost else FROZEN].mean,
            "retention_lost_frozen": lost[FROZEN].mean,
        }


class RetentionSetup:
    """What all runs of a comparison share: the texts, the head before, and the scores before.

    Args:
        model: name of the pre-trained model (or of the start, against which is then measured).
        config: the text, and how it is scored.
        folder: where a fitted head is kept; None: nowhere.
        report: receives what is done.

    Attributes:
        rows: the texts.
        quality: of the head before, see `head_quality`; empty before the first run.

    Raises:
        RetentionTextError: a text that cannot be used.
    """

    def __init__(
        self,
        model: str,
        config: RetentionConfig,
        folder: Path | None,
        *,
        report: Report = lambda doing, done, total: None,
    ) -> None:
        self.rows: TextRows = draw_rows(config, load_tokenizer(model))
        self.quality: dict[str, Any] = {}
        self._model = model
        self._config = config
        self._folder = folder
        self._report = report
        self._probe: RetentionProbe | None = None
        self._encoder: nn.Module | None = None

    def __call__(self) -> RetentionMeasure:
        """A measure for one run."""
        return RetentionMeasure(self)

    @property
    def identity(self) -> dict[str, Any]:
        """The texts and settings, as plain data; where the files are is no part of it."""
        settings = {key: value for key, value in self._config.to_dict().items() if key not in _PLACES}
        return {**settings, "head": self._head_digest(), "text": self.rows.to_dict()}

    def _head_digest(self) -> str | None:
        head = self._config.head
        if head is None:
            return None
        try:
            return hashlib.sha256(expanded(head).read_bytes()).hexdigest()
        except OSError as error:
            raise MaskedLMHeadError(
                f"The masked-LM head {shown(head, PATH)} cannot be read: {error.strerror or error}. Give a "
                "head.safetensors that lr-dist retention wrote, or leave `head` out."
            ) from error

    def prepare(self, bench: Bench) -> RetentionProbe:
        """Find or fit the head and score the encoder before; once."""
        if self._probe is None:
            with isolate_rng():
                encoder = copy.deepcopy(bench.backbone)
                model = load_before(
                    self._model,
                    encoder,
                    bench.tokenizer,
                    self.rows,
                    self._config,
                    precision=bench.settings.precision,
                    folder=self._folder,
                    report=self._report,
                )
                self.quality = head_quality(model, self.rows, seed=self._config.seed)
                self._probe = probe_of(model, self.rows, self._config, report=self._report)
                self._probe.before()
                self._encoder = encoder
        return self._probe

    def measure(self, run: SequenceState) -> Retention:
        """Measure the run's weights as they are now."""
        probe = self.prepare(run.bench)
        assert self._encoder is not None
        with isolate_rng():
            self._encoder.load_state_dict(run.module.backbone.state_dict())
            return probe.measure(self._encoder.to(training_device()))


def retention_of(
    text: str | None,
    model: str,
    folder: Path | None,
    *,
    report: Report = lambda doing, done, total: None,
) -> tuple[RetentionSetup, ...]:
    """The measure for a text form, or none for None.

    Args:
        text: see `parse_retention`.
        model: name of the pre-trained model, or of the start.
        folder: for a fitted head; None: it is not kept.
        report: receives what is done, steps done and steps in all.

    Raises:
        ConfigurationError: an invalid text form.
        RetentionTextError: a text that cannot be used.
    """
    return () if not text else (RetentionSetup(model, parse_retention(text), folder, report=report),)


# Of a configuration: where something is, or a bound of the memory.
_PLACES = ("text", "fit_text", "head", "batch_size")


def parse_retention(text: str) -> RetentionConfig:
    """The text form of a measurement: `FILE`, or `FILE,texts=50,fit_texts=1000`.

    Raises:
        ConfigurationError: an unknown key or an invalid value.
    """
    path, *items = text.split(",")
    hints = get_type_hints(RetentionConfig)
    keys = [name for name in RetentionConfig.__dataclass_fields__ if name != "text"]
    values: dict[str, Any] = {}
    for item in items:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key not in keys:
            raise ConfigurationError(
                f"{shown(item)} in {shown(text)} must read key=value, with a key of {', '.join(keys)}."
                f"{did_you_mean(key, keys)}"
            )
        try:
            values[key] = hints[key](value) if hints[key] in (int, float) else value
        except ValueError as error:
            raise ConfigurationError(f"{key} in {shown(text)} must be a number, not {shown(value)}.") from error
    return RetentionConfig(text=path.strip(), **values)
