"""`SequenceConfig`: what every command that learns task sequences must know."""

from __future__ import annotations

from dataclasses import dataclass, field

from lr_dist.sequence.settings import SequenceSettings

# Headings in a command's help.
DATA, TRAINING, MEASURES, KEPT = ({"group": name} for name in ("data", "training", "what is measured", "what is kept"))


@dataclass(frozen=True)
class SequenceConfig:
    """Model, data and training of a task sequence; the base of `CompareConfig` and of the search's `SearchConfig`."""

    model: str = "minilm"
    """Pre-trained model: minilm (packaged, works offline), a name on the Hugging Face hub, or a path."""

    start: str | None = field(default=None, kw_only=True)
    """Folder of a fine-tuned classifier with its head, in place of --model: it has learned the first task, and only the
    later ones are learned."""

    limit: int | None = field(default=None, kw_only=True, metadata=DATA)
    """Number of training examples per task, drawn at random; all by default."""

    dev_size: int | float | None = field(default=None, kw_only=True, metadata=DATA)
    """Training examples to set aside as the dev split: a number, or a share between 0 and 1. By default a tenth, at
    most 1,000."""

    eval_limit: int | None = field(default=None, kw_only=True, metadata=DATA)
    """Number of examples per task to score on, always the same ones: quicker, and less exact. All by default."""

    data_dir: str | None = field(default=None, kw_only=True, metadata=DATA)
    """Folder with GLUE as parquet files. By default the environment variable LR_DIST_DATA, or else the hub."""

    data_seed: int = field(default=0, kw_only=True, metadata=DATA)
    """Seed for drawing the examples of a limit; the same for every run."""

    settings: SequenceSettings = field(default_factory=SequenceSettings, kw_only=True, metadata=TRAINING)

    method: str = field(default="finetune", kw_only=True)
    """Methods against forgetting to add to every distribution, joined by a plus sign: finetune (none), or
    l2-sp:alpha=0.01."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The text form of each method."""
        if self.method == "finetune":
            return ()
        # Methods are Lightning callbacks, which the command line must not import only to show its help.
        from lr_dist.sequence.arm import methods_of

        return methods_of(self.method)
