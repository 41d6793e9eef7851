"""When the monitors measure: counted in one place, for both of them and both Trainers."""

from __future__ import annotations

import pytest

from lr_dist.errors import ConfigurationError
from lr_dist.monitor.interval import Interval


def test_every_third_step_is_measured_also_if_a_batch_makes_several_steps_or_none() -> None:
    interval = Interval(3, None)
    interval.start(0)
    # Accumulation: some batches make no step; two optimizers: a batch makes two.
    assert [step for step in (0, 1, 1, 2, 3, 3, 5, 7, 8, 9) if interval.after_step(step)] == [3, 7, 9]
    assert not any(map(interval.after_epoch, range(1, 7)))


def test_a_resumed_fit_goes_on_counting() -> None:
    interval = Interval(3, None)
    interval.start(4)
    assert [step for step in range(5, 11) if interval.after_step(step)] == [6, 9]


@pytest.mark.parametrize(("every", "measured"), [(None, [1, 2, 3, 4]), (2, [2, 4])])
def test_epochs_are_measured_where_steps_are_not_given(every: int | None, measured: list[int]) -> None:
    interval = Interval(None, every)
    interval.start(0)
    assert [epoch for epoch in range(1, 5) if interval.after_epoch(epoch)] == measured
    assert not any(map(interval.after_step, range(1, 9)))


@pytest.mark.parametrize(
    ("interval", "step", "epochs", "last_step", "last_epoch", "missed"),
    [
        (Interval(3, None), 6, 0, 3, 0, True),  # saved in step 6, before it was measured
        (Interval(3, None), 6, 0, 6, 0, False),
        (Interval(3, None), 7, 5, 6, 0, False),  # epochs do not count
        (Interval(None, 2), 9, 4, 5, 2, True),
        (Interval(None, 2), 9, 4, 9, 4, False),
        (Interval(None, 2), 9, 3, 5, 2, False),
    ],
)
def test_a_checkpoint_that_was_written_before_its_measurement_lacks_it(
    interval: Interval, step: int, epochs: int, last_step: int, last_epoch: int, missed: bool
) -> None:
    assert interval.missed(step, epochs, last_step=last_step, last_epoch=last_epoch) is missed


@pytest.mark.parametrize("given", [(2, 1), (0, None), (None, 0), (True, None), (1.5, None)])
def test_what_is_not_one_whole_number_is_refused(given: tuple[int | None, int | None]) -> None:
    with pytest.raises(ConfigurationError, match="every_n_"):
        Interval(*given)
