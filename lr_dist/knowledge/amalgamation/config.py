"""`AmalgamationConfig`: teachers, texts, student and training of an amalgamation; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lr_dist._distribution.schedule import SCHEDULES
from lr_dist.checks import check_finite, check_whole, is_number
from lr_dist.errors import ConfigurationError, DropoutOffError
from lr_dist.names import one_of
from lr_dist.runs.precision import PRECISIONS

TARGETS: Mapping[str, str] = {
    "soft": "MUKA: the teachers weighted by their certainty",
    "hard": "MUKA: the most certain teacher",
    "vkd": "softmax of the concatenated logits",
    "uhc": "each teacher within its own labels",
}


@dataclass(frozen=True)
class StudentSettings:
    """How a student is trained.

    Raises:
        ConfigurationError: a value out of range.
    """

    rates: str = "flat:lr=5e-5"
    """Learning rates of the student: a preset, a YAML file, or a text such as flat:lr=5e-5, decay:lr=1e-4,factor=0.8
    or 'flat:lr=1e-4 @ 20% > flat:lr=1e-5'."""

    epochs: int = 3
    """Passes over the texts."""

    batch_size: int = 32
    """Texts per optimizer step."""

    max_length: int = 128
    """Maximum number of tokens of a text, for teachers and student; longer ones are cut."""

    lr: float = 5e-5
    """The optimizer's learning rate; only relative distributions use it, which multiply it."""

    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""

    warmup: float = 0.1
    """Share of the steps in which the rate rises linearly."""

    schedule: str = "cosine"
    """Rate after the warm-up: cosine, linear or constant."""

    precision: str = "auto"
    """Precision of the student's training: 32-true, bf16-mixed, or auto (the faster one on the machine). Teachers
    compute in 32 bits."""

    held_out: float = 0.1
    """Share of the texts that is held out; the epoch with the lowest loss on them is kept. No label is used."""

    seed: int = 0
    """Seed of the new head, of the order of the texts and of dropout."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("max_length", 8), ("seed", 0)):
            check_whole(name, getattr(self, name), least, error=ConfigurationError)
        check_finite("lr", self.lr, positive=True, error=ConfigurationError)
        check_finite("weight_decay", self.weight_decay, error=ConfigurationError)
        if not is_number(self.warmup) or not 0 <= self.warmup < 1:
            raise ConfigurationError(f"warmup is a share of the steps from 0 to below 1, not {self.warmup}.")
        if not is_number(self.held_out) or not 0 < self.held_out < 1:
            raise ConfigurationError(f"held_out is a share of the texts between 0 and 1, not {self.held_out}.")
        for name, allowed in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(f"{name} must be {one_of(allowed, getattr(self, name))}")


@dataclass(frozen=True)
class AmalgamationConfig:
    """The settings of `lr-dist amalgamate`.

    Raises:
        ConfigurationError: fewer than two teachers, no texts, or a value out of range.
        DropoutOffError: one pass.
    """

    teachers: tuple[str, ...] = ()
    """Two or more teachers: folders that save_pretrained wrote (with the tokenizer), hub names, or stages of a task
    sequence (stage-2.safetensors, or TASK=stage-2.safetensors)."""

    text: str = ""
    """Unlabelled texts: a file with one text a line (in *.tsv, a tab separates the texts of a pair), or the name of a
    task, whose labels are not read. Several tasks are joined by a plus sign: sst2+mrpc."""

    student: str = "minilm"
    """Pre-trained model that becomes the student: minilm (packaged, works offline), a name on the Hugging Face hub, or
    a path."""

    teacher_model: str = "minilm"
    """For teachers that are stages, the pre-trained model of their sequence."""

    target: str = "soft"
    """What the student learns: soft (MUKA: teachers weighted by their certainty), hard (MUKA: the most certain
    teacher), vkd (softmax of the concatenated logits), or uhc (each teacher within its own labels)."""

    tau: float = 0.2
    """For soft: the lower, the more of the weight the most certain teacher has."""

    temperature: float = 1.0
    """Temperature of the softmax of teachers and student; the loss is multiplied by its square."""

    passes: int = 16
    """For soft and hard: passes of each teacher with dropout on, from which its certainty follows; 0 takes the
    certainty of one pass without dropout."""

    top_layers: int | None = None
    """Number of the teachers' top layers that have dropout, which is faster and a little less exact; by default all
    layers have it."""

    scoring_batch: int = 16
    """Texts that a teacher scores at a time; all passes of them are computed together."""

    limit: int | None = None
    """Maximum number of texts, drawn at random; all by default."""

    data_dir: str | None = None
    """Folder with GLUE as parquet files. By default the environment variable LR_DIST_DATA, or else the hub."""

    settings: StudentSettings = field(default_factory=StudentSettings)

    def __post_init__(self) -> None:
        if len(self.teachers) < 2:
            raise ConfigurationError(
                f"Amalgamation needs at least two teachers, not {len(self.teachers)}: --teachers FOLDER FOLDER."
            )
        if len(set(self.teachers)) < len(self.teachers):
            raise ConfigurationError("A teacher is named twice; every teacher counts once.")
        if not self.text:
            raise ConfigurationError("There is nothing to learn from: give --text FILE, or the name of a task.")
        if self.target not in TARGETS:
            raise ConfigurationError(f"target must be {one_of(TARGETS, self.target)}")
        for name in ("tau", "temperature"):
            check_finite(name, getattr(self, name), positive=True, error=ConfigurationError)
        hint = "0 takes the certainty of one pass without dropout."
        check_whole("passes", self.passes, 0, error=ConfigurationError, hint=hint)
        if self.passes == 1:
            raise DropoutOffError(f"passes must be at least 2 with dropout on, not 1. {hint}")
        check_whole("scoring_batch", self.scoring_batch, 1, error=ConfigurationError)
        for name, least in (("top_layers", 1), ("limit", 2)):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least, error=ConfigurationError)

    @property
    def passes_needed(self) -> int:
        """Number of passes with dropout: none for targets without a certainty."""
        return self.passes if self.target in ("soft", "hard") else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a result file."""
        values = asdict(self)
        return {**values, "teachers": list(self.teachers), "settings": asdict(self.settings)}
