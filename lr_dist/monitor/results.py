"""What can be asked of a monitor after a fit, and during it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lr_dist.monitor.files import save_weights
from lr_dist.monitor.measurement import Measurement
from lr_dist.monitor.watch import Watch


class Results:
    """The measurements and the kept weights of the last fit."""

    _watch: Watch

    @property
    def history(self) -> tuple[Measurement, ...]:
        """All measurements of the last fit, the first from before its first step."""
        return tuple(self._watch.history)

    @property
    def best_step(self) -> int | None:
        """The step whose weights are kept; None if no measurement was within the bounds."""
        return None if self._watch.best is None else self._watch.best.step

    @property
    def best_weights(self) -> dict[str, Tensor] | None:
        """The kept parameters and buffers, whole, on the CPU: `module.load_state_dict(best_weights, strict=False)`.

        Under FSDP2 every process has to ask for them.
        """
        return self._watch.best_weights()

    def save_best(self, path: str | Path) -> Path:
        """Write the kept weights as a safetensors file.

        Raises:
            ConfigurationError: nothing was kept.
            UnwritableFileError: see `lr_dist.runs.atomic`.
        """
        return save_weights(path, self.best_weights, self.best_step)

    def plot(self, path: str | Path) -> Path:
        """Draw scores and movement over steps, as SVG or as another format of matplotlib (by the file's suffix).

        Raises:
            ConfigurationError: nothing was measured, or an unknown suffix.
            MissingExtraError: matplotlib is not installed (extra `report`).
        """
        from lr_dist.monitor.figure import plot

        return plot(path, self.history, self.best_step)
