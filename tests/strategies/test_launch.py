"""The harness itself: a hang fails in time, says what the processes wrote, and leaves none behind."""

from __future__ import annotations

import os

import pytest
from strategies.launch import Processes
from strategies.runs import Case


def test_processes_that_wait_for_each_other_in_vain_are_ended_and_what_they_wrote_is_shown() -> None:
    with Processes(2, timeout=4) as processes:
        # The second process does not get as far as the Trainer, for which the first one waits.
        with pytest.raises(RuntimeError, match=r"no answer from process \[0\] in 4 s") as raised:
            # 1e-300 can be a rate, 1e-310 cannot.
            processes.run(Case("one-sided", "ddp", distribution="flat:lr=1e-3RANK0"))
        assert "[process 1] --- one-sided" in str(raised.value)
    assert len(processes.ids) == 2
    for process in processes.ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_process_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "none of that")
    with Processes(2) as processes, pytest.raises(RuntimeError, match=r"process \[.*\] ended[\s\S]*PYTHONHASHSEED"):
        processes.run(Case("never"))
