"""Optuna's journal in a file that is only ever appended to, safe from lines that were half written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import time
import uuid
import warnings
from array import array
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from lr_dist.errors import StorageError, TornRecordWarning, shown

# A lock that a killed worker left is broken after this time without a new line in the file. It works on NFS, too.
LOCK_GRACE_S = 30
# How every record begins; what Optuna's own journal writes, too.
BEGINNING = b'{"op_code":'
# JSON's error points to the beginning of a word (-Infinity) that was cut, else to the end.
LONGEST_WORD = 9


class WholeLines(BaseJournalBackend):
    """A journal in which a record is either there or was never promised, whatever happened to disk or processes.

    Nothing that was written is ever changed: a record is appended with one call (O_APPEND), so that a writer that was
    stopped before it, while another one took over the lock, still writes behind the other's records. A piece of a
    record that a killed writer or a full disk left is closed by the next writer with a line feed, and skipped by all
    readers: its writer was never told that it is there. The format is that of Optuna's `JournalFileBackend`.

    Args:
        path: of the file; it is made where there is none.

    Raises:
        StorageError: the file is no journal, or cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        # Absolute, because a command may change its folder, or be told the same file in another way.
        self._path = path.resolve()
        self.shown = f"journal:{self._path}"
        _check(self._path)
        self._lock = LinkLock(self._path, LOCK_GRACE_S)
        # Where each record begins that was read so far, and where the one after them will.
        self._places = array("Q", [0])
        self._warned: set[int] = set()

    def append_logs(self, logs: Sequence[Mapping[str, Any]]) -> None:
        lines = [json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs]
        try:
            with self._lock.held():
                file = os.open(self._path, os.O_RDWR | os.O_APPEND)
                try:
                    _append(file, lines)
                    os.fsync(file)
                finally:
                    os.close(file)
        except OSError as error:
            raise StorageError(
                f"The journal {self._path} cannot be written: {error.strerror or error}. Every trial that finished is "
                "in it; make room or mend it, and start the same command again."
            ) from error

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        number = min(log_number_from, len(self._places) - 1)
        place = self._places[number]
        try:
            with open(self._path, "rb") as file:
                file.seek(place)
                for line in file:
                    # What is being written at this moment is read the next time.
                    if not line.endswith(b"\n"):
                        return
                    record = self._record(line, place)
                    place += len(line)
                    if record is None:
                        continue
                    number += 1
                    if number == len(self._places):
                        self._places.append(place)
                    if number > log_number_from:
                        yield record
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"The journal {self._path} cannot be read: {error.strerror or error}.") from error

    def _record(self, line: bytes, place: int) -> dict[str, Any] | None:
        """The record in the line that begins at `place`; None for what was never one."""
        try:
            return _parsed(line)
        except ValueError as error:
            if not _is_torn(line):
                raise StorageError(
                    f"Line {self._line_number(place)} of the journal {self._path} is no record of Optuna ({error}): "
                    f"{shown(line)}. Something else changed it, and leaving it out would give the trials after it "
                    "other numbers. Restore the file from a copy, or give another one."
                ) from error
        if place not in self._warned and line.strip():
            self._warned.add(place)
            warnings.warn(
                f"Line {self._line_number(place)} of the journal {self._path} is a piece of a record that a killed "
                "worker or a full disk left. It is skipped; nothing that was reported as written is lost.",
                TornRecordWarning,
                stacklevel=2,
            )
        return None

    def _line_number(self, place: int) -> int:
        with open(self._path, "rb") as file:
            return file.read(place).count(b"\n") + 1


class LinkLock:
    """Alone with a file among the processes of all machines that share its folder: a symbolic link beside it.

    The link leads to the file by its bare name, wherever the folder is mounted. A lock whose owner shows no sign of
    life is broken: neither link nor file has changed for `grace_s`, by this process's own clock.

    Args:
        path: of the file.
        grace_s: seconds.
    """

    def __init__(self, path: Path, grace_s: float) -> None:
        self._path = path
        self._link = path.with_name(f"{path.name}.lock")
        self._grace_s = grace_s
        self._mine: tuple[int, ...] | None = None

    def acquire(self) -> bool:
        """Wait until the lock is taken.

        Raises:
            OSError: the link cannot be made.
        """
        pause, seen, since = 0.001, None, time.monotonic()
        while True:
            try:
                os.symlink(self._path.name, self._link)
                self._mine = _mark(self._link)
                return True
            except FileExistsError:
                pass
            now = (_mark(self._link), _mark(self._path))
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > self._grace_s:
                self._remove(now[0])
                seen, pause = None, 0.001
                continue
            # Whoever waits long must not lose to those who have just released it.
            time.sleep(random.uniform(0.5, 1) * pause)
            pause = min(2 * pause, 0.05)

    def release(self) -> None:
        """Give the lock back, unless somebody who took this process for dead has broken it."""
        if self._mine is not None:
            self._remove(self._mine)
            self._mine = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The lock for the length of a `with`."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _remove(self, expected: tuple[int, ...] | None) -> None:
        """Remove the link that was seen; somebody else's later one stays (between the two looks it may go, too,
        which costs order, not records)."""
        if expected is None or _mark(self._link) != expected:
            return
        aside = self._link.with_name(f"{self._link.name}.{uuid.uuid4()}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._link, aside)
            os.unlink(aside)


def _mark(path: Path) -> tuple[int, ...] | None:
    """What changes with a link or file; None where there is none."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _append(file: int, lines: Sequence[bytes]) -> None:
    """Append whole lines with one call; what came out cut, or behind another's cut line, is appended once more.

    Raises:
        OSError: it cannot be written.
    """
    close = _ends_cut(file)
    for _ in range(3):
        data = (b"\n" if close else b"") + b"".join(lines)
        written = os.write(file, data)
        begin = os.lseek(file, 0, os.SEEK_CUR) - written
        # Somebody may have left a cut line between the look and the write: the first line is then a part of that.
        joined = not close and begin > 0 and os.pread(file, 1, begin - 1) != b"\n"
        whole = max(0, data[:written].count(b"\n") - close)
        lines = [*lines[: min(whole, joined)], *lines[whole:]]
        if not lines:
            return
        close = not data[:written].endswith(b"\n")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _ends_cut(file: int) -> bool:
    """Whether the file's last line has no end."""
    size = os.lseek(file, 0, os.SEEK_END)
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    """A record of Optuna.

    Raises:
        ValueError: it is none.
    """
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict) or not isinstance(record.get("op_code"), int) or "worker_id" not in record:
        raise ValueError("it has no op_code or worker_id")
    return record


def _is_torn(line: bytes) -> bool:
    """Whether a line without a record is a piece of one: cut at its end, alone or with another one run into it."""
    text = line.rstrip(b"\r\n")
    if not text.strip():
        return True
    if not text.startswith(BEGINNING[: len(text)]):
        return False
    last = text.rfind(BEGINNING)
    if last > 0:
        return True
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        left = len(error.doc) - error.pos
        return left == 0 or error.msg.startswith("Unterminated string") or (left <= LONGEST_WORD and text[-1:] != b"}")
    except (ValueError, RecursionError):
        pass
    return False


def _check(path: Path) -> None:
    try:
        with open(path, "a+b") as file:
            file.seek(0)
            first = file.readline()
        if first.endswith(b"\n") and not _is_torn(first):
            _parsed(first)
        # A journal whose very first line was cut has nothing but that.
        if first and not first.endswith(b"\n") and not first.startswith(BEGINNING[: len(first)]):
            raise ValueError("its first line is no record")
    except OSError as error:
        raise StorageError(f"The journal {path} cannot be opened: {error.strerror or error}.") from error
    except (ValueError, TypeError) as error:
        raise StorageError(f"{path} is no journal of Optuna: {error}. Give another file.") from error
