"""Optuna's journal in an append-only file that tolerates partly written records."""

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

# The lock of a killed worker is broken if the file has not changed for this long. This also works on NFS.
LOCK_GRACE_S = 30
# Every record starts like this, also those of Optuna's own journal backend.
BEGINNING = b'{"op_code":'
# The longest JSON literal (-Infinity): for a truncated literal, JSON's error points to its start, not to the end.
LONGEST_WORD = 9


class AppendOnlyJournal(BaseJournalBackend):
    """A journal backend in which every acknowledged record survives crashes, restarts and full disks.

    The file is append-only: each record is written with a single call (O_APPEND), so a writer that was paused while
    another one took over the lock still appends after the other's records. If a killed writer or a full disk leaves a
    partial record, the next writer ends it with a line feed and all readers skip it; its writer never received a
    success. The format is that of Optuna's `JournalFileBackend`.

    Args:
        path: the file; it is created if it does not exist.

    Raises:
        StorageError: the file is not a journal, or cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        # Absolute: the working directory may change, and one file can be given by different paths.
        self._path = path.resolve()
        self.shown = f"journal:{self._path}"
        _check(self._path)
        self._lock = LinkLock(self._path, LOCK_GRACE_S)
        # The offset of every record read so far, and of the next one.
        self._offsets = array("Q", [0])
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
                f"The journal {self._path} cannot be written: {error.strerror or error}. All finished "
                "trials are in it; free disk space or repair it, and run the same command again."
            ) from error

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        number = min(log_number_from, len(self._offsets) - 1)
        offset = self._offsets[number]
        try:
            with open(self._path, "rb") as file:
                file.seek(offset)
                for line in file:
                    # This line is still being written; the next call reads it.
                    if not line.endswith(b"\n"):
                        return
                    record = self._record(line, offset)
                    offset += len(line)
                    if record is None:
                        continue
                    number += 1
                    if number == len(self._offsets):
                        self._offsets.append(offset)
                    if number > log_number_from:
                        yield record
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"The journal {self._path} cannot be read: {error.strerror or error}.") from error

    def _record(self, line: bytes, offset: int) -> dict[str, Any] | None:
        """The record in the line that starts at `offset`; None for a partial one."""
        try:
            return _parsed(line)
        except ValueError as error:
            if not _is_torn(line):
                raise StorageError(
                    f"Line {self._line_number(offset)} of the journal {self._path} is not a valid Optuna record "
                    f"({error}): {shown(line)}. The file was changed by another program; skipping the line would "
                    "renumber the trials after it. Restore the file from a backup, or use another one."
                ) from error
        if offset not in self._warned and line.strip():
            self._warned.add(offset)
            warnings.warn(
                f"Line {self._line_number(offset)} of the journal {self._path} is a partial record, left by a killed "
                "worker or a full disk. It is skipped; no record that was reported as written is lost.",
                TornRecordWarning,
                stacklevel=2,
            )
        return None

    def _line_number(self, offset: int) -> int:
        with open(self._path, "rb") as file:
            return file.read(offset).count(b"\n") + 1


class LinkLock:
    """An inter-process lock on a file, for all machines that share its folder: a symbolic link next to the file.

    The link's target is the file's bare name, so it is valid wherever the folder is mounted. The lock counts as stale
    and is broken if neither link nor file has changed for `grace_s`, measured by this process's own clock.

    Args:
        path: the file to lock.
        grace_s: time until a lock is stale, in seconds.
    """

    def __init__(self, path: Path, grace_s: float) -> None:
        self._path = path
        self._link = path.with_name(f"{path.name}.lock")
        self._grace_s = grace_s
        self._mine: tuple[int, ...] | None = None

    def acquire(self) -> bool:
        """Wait until the lock is acquired.

        Raises:
            OSError: the link cannot be created.
        """
        pause, last_state, since = 0.001, None, time.monotonic()
        while True:
            try:
                os.symlink(self._path.name, self._link)
                self._mine = _file_state(self._link)
                return True
            except FileExistsError:
                pass
            state = (_file_state(self._link), _file_state(self._path))
            if state != last_state:
                last_state, since = state, time.monotonic()
            elif time.monotonic() - since > self._grace_s:
                self._remove(state[0])
                last_state, pause = None, 0.001
                continue
            # The pause stays short, so that a process that has waited long is not overtaken by the last owner.
            time.sleep(random.uniform(0.5, 1) * pause)
            pause = min(2 * pause, 0.05)

    def release(self) -> None:
        """Release the lock, unless another process considered it stale and has broken it."""
        if self._mine is not None:
            self._remove(self._mine)
            self._mine = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock inside a `with` block."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _remove(self, expected: tuple[int, ...] | None) -> None:
        """Remove the expected link, not a later one of another process.

        A later link that appears between check and removal is removed too; this affects the order of records only.
        """
        if expected is None or _file_state(self._link) != expected:
            return
        aside = self._link.with_name(f"{self._link.name}.{uuid.uuid4()}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._link, aside)
            os.unlink(aside)


def _file_state(path: Path) -> tuple[int, ...] | None:
    """Inode, modification time and size, which change when a link or file is replaced or written; None if missing."""
    try:
        stat = os.lstat(path)
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _append(file: int, lines: Sequence[bytes]) -> None:
    """Append whole lines with one call; lines that were truncated, or joined to a partial line, are appended again.

    Raises:
        OSError: the file cannot be written.
    """
    close = _ends_partial(file)
    for _ in range(3):
        data = (b"\n" if close else b"") + b"".join(lines)
        written = os.write(file, data)
        begin = os.lseek(file, 0, os.SEEK_CUR) - written
        # Another writer may have left a partial line between our check and our write: our first line then joins it.
        joined = not close and begin > 0 and os.pread(file, 1, begin - 1) != b"\n"
        whole = max(0, data[:written].count(b"\n") - close)
        lines = [*lines[: min(whole, joined)], *lines[whole:]]
        if not lines:
            return
        close = not data[:written].endswith(b"\n")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _ends_partial(file: int) -> bool:
    """Whether the file's last line is not terminated."""
    size = os.lseek(file, 0, os.SEEK_END)
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    """Parse an Optuna record.

    Raises:
        ValueError: the line is not a valid record.
    """
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict) or not isinstance(record.get("op_code"), int) or "worker_id" not in record:
        raise ValueError("it has no op_code or worker_id")
    return record


def _is_torn(line: bytes) -> bool:
    """Whether an invalid line is a partial record: truncated, possibly with another record appended to it."""
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
        # If the first record was truncated, the file holds nothing else.
        if first and not first.endswith(b"\n") and not first.startswith(BEGINNING[: len(first)]):
            raise ValueError("its first line is not a record")
    except OSError as error:
        raise StorageError(f"The journal {path} cannot be opened: {error.strerror or error}.") from error
    except (ValueError, TypeError) as error:
        raise StorageError(f"{path} is not an Optuna journal: {error}. Give another file.") from error
