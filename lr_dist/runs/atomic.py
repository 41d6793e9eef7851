"""Atomic file writing: a file is written whole or not at all, and only regular files are replaced.

A regular file is written to a temporary file in the same folder, which is then renamed, so that readers see the old or
the new file, even after a crash or on a full disk. A device, a pipe, or a name of an open file (/dev/stdout) is opened
and written: renaming over /dev/null as root would remove it for the whole machine.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lr_dist.errors import PATH, UnwritableFileError, shown
from lr_dist.reading import expanded

# How long to wait for a reader of a pipe.
PIPE_SECONDS = 10
_PREFIX, _SUFFIX = ".lr-dist-", ".tmp"
_OPEN_FILES = ("/dev/fd/", "/dev/std", "/proc/")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_text(path: str | Path, text: str, *, make_folders: bool = True, instead: str = "") -> Path:
    """Write text in UTF-8 without changing line ends; a lone surrogate is written as its escape.

    Args:
        path: `~` is the home folder; a link is followed and stays.
        text: the whole content.
        make_folders: whether to make missing folders.
        instead: the advice at the end of an error, e.g. "Give another --output."

    Returns:
        The path with `~` expanded.

    Raises:
        UnwritableFileError: it cannot be written, or the disk is full; an existing file is unchanged.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"), make_folders=make_folders, instead=instead)


def write_bytes(path: str | Path, data: bytes, *, make_folders: bool = True, instead: str = "") -> Path:
    """Write bytes; see `write_text`."""
    try:
        place = expanded(path)
        if is_file_or_new(place):
            real = Path(os.path.realpath(place))
            if real.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            if make_folders:
                real.parent.mkdir(parents=True, exist_ok=True)
            _replace(real, data)
        else:
            _write_straight(place, data)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, UnwritableFileError):
            raise
        # ValueError: a NUL byte in the path; TypeError: no path.
        raise UnwritableFileError(
            f"{_name(path)} cannot be written: {_why(error)}. {instead or _cure(error)}"
        ) from error
    return place


def write_json(path: str | Path, data: Any, *, instead: str = "") -> Path:
    """Write JSON; see `write_text`.

    Raises:
        ValueError: NaN, an infinite number, or a value that JSON cannot represent.
    """
    return write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n", instead=instead)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left of a file that it was writing; only where no other process writes."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        path.unlink(missing_ok=True)


def is_file_or_new(path: Path) -> bool:
    """Whether `path` is a regular file or a folder, or does not exist; a rename then replaces it or fails."""
    place = os.path.abspath(path)
    if place.startswith(_OPEN_FILES):
        return False
    try:
        mode = os.stat(place).st_mode
    except FileNotFoundError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _replace(path: Path, data: bytes) -> None:
    # A short name, because one derived from a long name could be too long.
    number, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=path.parent)
    try:
        with open(number, "wb") as file:
            os.fchmod(number, _mode(path))
            file.write(data)
            file.flush()
            os.fsync(number)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _mode(path: Path) -> int:
    """The permissions of the existing file, or those of a new one."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _write_straight(path: Path, data: bytes) -> None:
    # Text printed earlier must come first.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    end = time.monotonic() + PIPE_SECONDS
    while True:
        try:
            # Non-blocking, because a pipe without a reader would block for ever. Appending, because standard output may
            # be a file whose content must stay.
            number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | getattr(os, "O_NOCTTY", 0))
            break
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > end:
                raise
            time.sleep(0.05)
    try:
        os.set_blocking(number, True)
        with open(number, "wb", closefd=False) as file:
            file.write(data)
    finally:
        os.close(number)


def _why(error: BaseException) -> str:
    number = getattr(error, "errno", None)
    if number in _FULL:
        return "the disk is full, or the quota is used up"
    if number == errno.ENXIO:
        return "it is a pipe without a reader"
    if number == errno.ENAMETOOLONG:
        return "the name is too long"
    return getattr(error, "strerror", None) or str(error)


def _cure(error: BaseException) -> str:
    return "Make room." if getattr(error, "errno", None) in _FULL else "Check the path."


def _name(path: object) -> str:
    """A path for an error: as it was written, if that is printable and short."""
    text = str(path) if isinstance(path, (str, Path)) else ""
    return text if text and text.isprintable() and len(text) <= PATH else shown(text or path, PATH)
