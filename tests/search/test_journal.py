"""The journal is only appended to: whoever is stopped or killed, no other record is lost, and a cut one is named."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lr_dist.errors import StorageError, TornRecordWarning
from lr_dist.search.engine import journal
from lr_dist.search.engine.journal import AppendOnlyJournal, LinkLock
from lr_dist.search.engine.storage import open_storage

# A writer that stops itself at a moment of the real `append_logs`: between its look at the file and its write.
STOPPED_WRITER = """
import os, signal, sys
from pathlib import Path
from lr_dist.search.engine.journal import AppendOnlyJournal
backend = AppendOnlyJournal(Path(sys.argv[1]))
write = os.write
def stopping(file, data):
    os.write = write
    os.kill(os.getpid(), signal.SIGSTOP)
    return write(file, data)
os.write = stopping
backend.append_logs([{"op_code": 2, "worker_id": "stopped", "study_id": 0, "user_attr": {"a": i}} for i in range(2)])
print("written")
"""


def record(worker: str, number: int) -> dict[str, Any]:
    return {"op_code": 2, "worker_id": worker, "study_id": 0, "user_attr": {"number": number, "text": "ü[" * 9}}


def numbers(path: Path) -> list[tuple[str, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TornRecordWarning)
        return [(r["worker_id"], r["user_attr"].get("number", -1)) for r in AppendOnlyJournal(path).read_logs(0)]


@pytest.mark.parametrize("torn", [b"", b'{"op_code":2,"worker_id":"killed","study_'])
def test_a_writer_stopped_just_before_it_writes_loses_and_hides_nothing(torn, tmp_path, monkeypatch):
    """While it is stopped another one takes its lock over, writes, and may be killed in the middle of a record."""
    monkeypatch.setattr(journal, "LOCK_GRACE_S", 1)
    path = tmp_path / "study.log"
    AppendOnlyJournal(path).append_logs([record("first", 0)])
    stopped = subprocess.Popen([sys.executable, "-c", STOPPED_WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        _wait_until(lambda: _state(stopped.pid) == "T")
        assert os.readlink(f"{path}.lock") == "study.log"
        AppendOnlyJournal(path).append_logs([record("second", number) for number in range(3)])
        with path.open("ab") as file:
            file.write(torn)
        before = path.read_bytes()
        stopped.send_signal(signal.SIGCONT)
        said, _ = stopped.communicate(timeout=60)
        assert said == "written\n"
    finally:
        stopped.kill()
        stopped.wait()
    assert path.read_bytes().startswith(before)
    AppendOnlyJournal(path).append_logs([record("last", 0)])
    found = numbers(path)
    assert [name for name, _ in found if name != "stopped"] == ["first", "second", "second", "second", "last"]
    assert [name for name, _ in found].count("stopped") >= 2
    assert not os.path.lexists(f"{path}.lock")


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(cut=st.floats(0, 1, exclude_max=True), more=st.integers(0, 2), value=st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda x: st.lists(x, max_size=2), max_leaves=4
))  # fmt: skip
def test_a_record_that_was_cut_anywhere_is_skipped_and_the_others_stay(tmp_path_factory, cut, more, value):
    path = tmp_path_factory.mktemp("cut") / "study.log"
    backend = AppendOnlyJournal(path)
    backend.append_logs([record("whole", 0)])
    line = json.dumps({**record("cut", 1), "value": value}, separators=(",", ":")).encode()
    piece = line[: max(1, int(cut * len(line)))]
    with path.open("ab") as file:
        file.write(piece)
    assert numbers(path) == [("whole", 0)]
    for number in range(more):
        backend.append_logs([record("after", number)])
    assert numbers(path) == [("whole", 0), *(("after", number) for number in range(more))]
    # What Optuna's own journal reads is the same, where nothing was cut.
    assert path.read_bytes().count(b"\n") == 1 + more + (more > 0)


def test_a_cut_line_is_named_once_with_its_number(tmp_path):
    path = tmp_path / "study.log"
    backend = AppendOnlyJournal(path)
    backend.append_logs([record("a", 0), record("a", 1)])
    with path.open("ab") as file:
        file.write(b'{"op_code":2,"wor')
    backend.append_logs([record("a", 2)])
    with pytest.warns(TornRecordWarning, match=r"Line 3 of the journal .*study\.log is a partial record") as told:
        read = [len(list(backend.read_logs(start))) for start in (0, 1)]
    assert read == [3, 2]
    assert len(told) == 1


@pytest.mark.parametrize(
    "damage",
    [b"damage\n", b"[1]\n", b'{"op_code":"2","worker_id":"a"}\n', b'{"op_code":2,,"worker_id":"a"}\n', b"\xff\n"],
)
def test_a_line_that_was_a_record_once_is_named_and_nothing_after_it_is_read_under_other_numbers(damage, tmp_path):
    path = tmp_path / "study.log"
    AppendOnlyJournal(path).append_logs([record("a", number) for number in range(4)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
    with pytest.raises(StorageError, match=r"^Line 3 of the journal .* is not a valid Optuna record .*renumber"):
        list(AppendOnlyJournal(path).read_logs(0))


def test_optuna_s_own_journal_reads_and_writes_the_same_file(tmp_path):
    path = tmp_path / "study.log"
    ours = optuna.create_study(storage=open_storage(f"journal:{path}"), study_name="study")
    ours.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    theirs = optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(backend))
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert [t.value for t in ours.trials] == [t.value for t in theirs.trials]
    assert len(ours.trials) == 4


def test_a_short_write_is_written_again_whole_and_a_full_disk_is_named(tmp_path, monkeypatch):
    path = tmp_path / "study.log"
    backend = AppendOnlyJournal(path)
    backend.append_logs([record("a", 0)])
    write, left = os.write, [30, 30, 10**9]
    monkeypatch.setattr("os.write", lambda file, data: write(file, data[: left.pop(0)]))
    backend.append_logs([record("a", 1), record("a", 2)])
    assert numbers(path) == [("a", 0), ("a", 1), ("a", 2)]

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(StorageError, match="cannot be written: No space left"):
        backend.append_logs([record("a", 3)])
    monkeypatch.setattr("os.write", write)
    backend.append_logs([record("a", 4)])
    assert numbers(path)[-1] == ("a", 4)


def test_a_relative_path_and_a_killed_writer_do_not_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LOCK_GRACE_S", 1)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    backend = AppendOnlyJournal(Path("runs/study.log"))
    # The writer is killed while it has the lock.
    assert backend._lock.acquire()
    monkeypatch.chdir("runs")
    began = time.monotonic()
    AppendOnlyJournal(Path("study.log")).append_logs([record("b", 0)])
    backend.append_logs([record("a", 0)])
    assert 1 <= time.monotonic() - began < 30
    assert numbers(tmp_path / "runs" / "study.log") == [("b", 0), ("a", 0)]


@pytest.mark.parametrize("target", ["runs/study.log", "/nowhere/study.log", "study.log"])
def test_a_lock_that_leads_nowhere_is_broken_too(target, tmp_path, monkeypatch):
    """As Optuna's own lock leaves it for a relative path, or one that another machine knows under another folder."""
    monkeypatch.setattr(journal, "LOCK_GRACE_S", 1)
    path = tmp_path / "study.log"
    backend = AppendOnlyJournal(path)
    os.symlink(target, f"{path}.lock")
    backend.append_logs([record("a", 0)])
    assert numbers(path) == [("a", 0)]


def test_a_lock_that_somebody_else_has_taken_over_is_left_to_them(tmp_path):
    path = tmp_path / "study.log"
    path.touch()
    slow, quick = LinkLock(path, 0.2), LinkLock(path, 0.2)
    slow.acquire()
    quick.acquire()
    slow.release()
    assert os.path.lexists(f"{path}.lock")
    quick.release()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["study.log"]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this took too long"
        time.sleep(0.02)
