"""Optuna's journal in a file, safe from lines that were only half written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from lr_dist.errors import StorageError

# A lock that a killed worker left is broken after this time without a new line in the file. It works on NFS, too.
LOCK_GRACE_S = 30


class WholeLines(JournalFileBackend):
    """A journal that ends with a whole line, whatever happened to the disk or the process while it was written.

    Optuna appends to whatever is there. A line cut by a full disk then becomes one with its successor, and from then on
    the whole journal cannot be read. Here a line that could not be written whole is taken back, so a record is either
    there or was never promised.

    Raises:
        StorageError: the file is no journal, or cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.shown = f"journal:{path}"
        self._path = path
        _check(path)
        super().__init__(str(path), JournalFileSymlinkLock(str(path), grace_period=LOCK_GRACE_S))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        try:
            with self._alone(), open(self._path, "r+b", buffering=0) as file:
                end = _end_of_whole_lines(file)
                if end < file.seek(0, os.SEEK_END):
                    file.truncate(end)
                file.seek(end)
                try:
                    _write(file, text.encode())
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(end)
                    raise
        except OSError as error:
            raise StorageError(
                f"The journal {self._path} cannot be written: {error.strerror or error}. Every trial that finished is "
                "in it; make room or mend it, and start the same command again."
            ) from error

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        try:
            yield from super().read_logs(log_number_from)
        except OSError as error:
            raise StorageError(f"The journal {self._path} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise StorageError(
                f"The journal {self._path} has a line that is no record: {error}. It was changed by something else; "
                "restore it from a copy, or give another file."
            ) from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            # Somebody who took this process for dead has broken the lock: then there is nothing left to release.
            with contextlib.suppress(RuntimeError):
                self._lock.release()


def _check(path: Path) -> None:
    try:
        with open(path, "a+b") as file:
            file.seek(0)
            first = file.readline()
        if first.endswith(b"\n") and "op_code" not in json.loads(first):
            raise ValueError("its first line is no record")
        # A journal whose very first line was cut has nothing but that.
        if first and not first.endswith(b"\n") and not first.startswith(b'{"op_code"'[: len(first)]):
            raise ValueError("its first line is no record")
    except OSError as error:
        raise StorageError(f"The journal {path} cannot be opened: {error.strerror or error}.") from error
    except (ValueError, TypeError) as error:
        raise StorageError(f"{path} is no journal of Optuna: {error}. Give another file.") from error


def _end_of_whole_lines(file: Any) -> int:
    """Where the last line feed ends; nearly always the end of the file."""
    end = file.seek(0, os.SEEK_END)
    step = 1
    while end:
        start = max(0, end - step)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return int(start + found + 1)
        end, step = start, 2**16
    return 0


def _write(file: Any, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]
