"""Read files that a user names: a limited number of bytes, without waiting forever for a pipe."""

from __future__ import annotations

import os
import re
import select
import stat
import time
from pathlib import Path
from typing import BinaryIO

from lr_dist.errors import PATH, UnreadableFileError, shown

# For a pipe, as of `<(command)` in a shell, to be written and closed.
PIPE_SECONDS = 10


def expanded(path: str | Path) -> Path:
    """The path with `~` as the home folder.

    Raises:
        UnreadableFileError: there is no such user, or this one has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UnreadableFileError(
            f"{shown(str(path), PATH)}: there is no home folder for the ~ in it. Write the path out."
        ) from error


def lines_of(text: str) -> list[str]:
    """The lines of a text file. `str.splitlines` also ends them at characters that texts hold, such as U+2028."""
    return re.split(r"\r\n|\n|\r", text)


def is_file(path: Path) -> bool:
    """Whether there is a regular file; False where the name is too long, or the place may not be looked at."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder; False where the name is too long, or the place may not be looked at."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_bytes(path: str | Path, most: int) -> bytes:
    """The first `most` bytes of a file or of a pipe.

    Raises:
        OSError: no such file, a folder, or no permission.
        UnreadableFileError: a pipe that is not written or not closed.
        ValueError: a NUL byte in the path.
    """
    # Not waiting for a writer, where it is a pipe.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOCTTY", 0))
    with open(number, "rb") as file:
        mode = os.fstat(number).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return _read(file, most)
        return _read_pipe(number, path, most)


def is_pipe_or_device(path: str | Path) -> bool:
    """Whether `path` is there and neither a file nor a folder; a link is followed."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _read(file: BinaryIO, most: int) -> bytes:
    parts = []
    while most > 0 and (part := file.read(min(most, 2**20))):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def _read_pipe(number: int, path: str | Path, most: int) -> bytes:
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(number, select.POLLIN)
    end = time.monotonic() + PIPE_SECONDS
    while most > 0:
        if not poll.poll(max(0.0, 1000 * (end - time.monotonic()))):
            raise UnreadableFileError(
                f"{shown(str(path), PATH)} cannot be read: it is a pipe or a device, and it was not closed within "
                f"{PIPE_SECONDS} seconds. Give a file."
            )
        part = os.read(number, min(most, 2**16))
        if not part:
            break
        parts.append(part)
        most -= len(part)
    return b"".join(parts)
