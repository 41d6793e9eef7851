"""The output folder of a long command: checked at the start, and used by one process at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lr_dist.errors import PATH, ConfigurationError, OutputInUseError, shown
from lr_dist.reading import expanded, is_pipe_or_device

NEEDED_MB = 50


def checked_folder(output: str | Path) -> Path:
    """Check that the folder can be written to and has space for results; create it if needed.

    Raises:
        ConfigurationError: not a folder, not writable, or nearly full.
    """
    try:
        folder = expanded(output)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test-"):
            pass
    # ValueError: a NUL byte in the path.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            f"Cannot write to the output folder {shown(str(output), PATH)}: {reason}. Give another --output."
        ) from error
    free = shutil.disk_usage(folder).free / 2**20
    if free < NEEDED_MB:
        raise ConfigurationError(
            f"Only {free:.0f} MiB are free on the disk of {folder}; at least {NEEDED_MB} are needed. "
            "Free some, or give another --output."
        )
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the operating system releases it when the process ends, in any way.

    Raises:
        OutputInUseError: another process holds it.
        ConfigurationError: the lock's path is something else, such as a folder.
    """
    if is_pipe_or_device(folder / ".lock"):
        raise ConfigurationError(f"{folder / '.lock'} is not a file. Remove it, or give another --output.")
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except OSError as error:
        if isinstance(error, Timeout):
            raise OutputInUseError(_in_use(folder)) from None
        raise ConfigurationError(
            f"{folder / '.lock'} cannot be locked: {error.strerror or error}. Give another --output."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _in_use(folder: Path) -> str:
    return f"Another process writes to {folder}. Wait for it, or give another --output."
