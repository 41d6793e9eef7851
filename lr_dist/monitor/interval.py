"""`Interval`: every so many steps or epochs, the times at which a monitor measures."""

from __future__ import annotations

from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError, shown


class Interval:
    """Every n steps of the optimizer, or every n epochs.

    Steps count from the beginning of the training, also where it is resumed. A multiple of n is not missed if the
    step counter passes over it, as it does where one batch makes several steps.

    Args:
        every_n_steps: n, at least 1; or
        every_n_epochs: n, at least 1; 1 if neither is given.

    Raises:
        ConfigurationError: both, or not a whole number of at least 1.
    """

    def __init__(self, every_n_steps: int | None, every_n_epochs: int | None) -> None:
        if every_n_steps is not None and every_n_epochs is not None:
            raise ConfigurationError(
                f"Give every_n_steps={shown(every_n_steps)} or every_n_epochs={shown(every_n_epochs)}, not both."
            )
        for name, value in (("every_n_steps", every_n_steps), ("every_n_epochs", every_n_epochs)):
            if value is not None:
                check_whole(name, value, 1, error=ConfigurationError)
        self._steps = every_n_steps
        self._epochs = every_n_epochs or 1
        self._seen = 0

    def start(self, step: int) -> None:
        """A fit begins or is resumed after so many steps."""
        self._seen = step

    def after_step(self, step: int) -> bool:
        """Whether to measure, after so many steps of the optimizer; to be called after every batch."""
        before, self._seen = self._seen, step
        return self._steps is not None and step // self._steps > before // self._steps

    def after_epoch(self, epochs: int) -> bool:
        """Whether to measure, after so many whole epochs."""
        return self._steps is None and epochs % self._epochs == 0

    def missed(self, step: int, epochs: int, *, last_step: int, last_epoch: int) -> bool:
        """Whether a fit that is resumed lacks a measurement: its checkpoint was written just before that was made.

        Args:
            step: steps of the optimizer so far.
            epochs: whole epochs so far.
            last_step: steps at the last measurement.
            last_epoch: whole epochs at the last measurement.
        """
        if self._steps is not None:
            return step % self._steps == 0 and step > last_step
        return last_epoch < epochs - epochs % self._epochs
