"""A small comparison that several tests run: a trained and a frozen encoder on two generated tasks."""

from __future__ import annotations

from lr_dist.sequence.compare_config import CompareConfig
from lr_dist.sequence.settings import SequenceSettings

TASKS = ("demo-sentiment", "demo-entailment")
FLAT, FROZEN = "flat:lr=1e-3", "flat:lr=0.1,freeze=embeddings..layers.-1"


class Listener:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []
        self.steps = 0
        self.announced: tuple[int, int, int] | None = None
        self.notes: list[str] = []

    def note(self, text):
        self.notes.append(text)

    def started(self, runs, runs_before, steps):
        self.announced = (runs, runs_before, steps)

    def run_started(self, label, seed, steps):
        self.ran.append((label, seed))

    def progressed(self, progress):
        self.steps += progress.steps

    def run_ended(self, run):
        pass


def config_of(model: str, **changes) -> CompareConfig:
    # Scores are the same on every machine.
    settings = SequenceSettings(
        epochs=changes.pop("epochs", 2),
        batch_size=16,
        evaluate_on="validation",
        precision=changes.pop("precision", "32-true"),
    )
    values = {"model": model, "tasks": TASKS, "distributions": (FLAT, FROZEN), "seeds": (0, 1), "limit": 96}
    return CompareConfig(**{**values, "settings": settings, **changes})
