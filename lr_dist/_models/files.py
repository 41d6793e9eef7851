"""Checks of a model's files before transformers opens them; they need little memory and run no code.

An untrusted config.json can demand more memory than the machine has, or a module that takes hours to build; a pipe in
place of a file would block for ever.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lr_dist.checks import is_number
from lr_dist.errors import PATH, ModelLoadError, shown

# The deepest published transformers have about a thousand layers; ImageNet-21k has 21,843 classes.
MAX_COUNT, MAX_LABELS, MAX_SIZE = 2_000, 1_000_000, 2**40
_COUNTS = re.compile(r"layer|depth|head|expert|block|stage")
_WEIGHTS = (".safetensors", ".bin")
_POINTER = b"version https://git-lfs"


def check_folder(path: str) -> None:
    """Check the files of a local model folder; a name on the hub is accepted unchecked.

    Raises:
        ModelLoadError: `path` is a file, or a folder that does not exist; the folder has no config.json; an entry is a
            pipe or a device, or only git-lfs's pointer to the file.
    """
    folder = Path(path)
    try:
        if not folder.exists():
            # A name on the hub is NAME or OWNER/NAME.
            if folder.is_absolute() or path.startswith(".") or len(folder.parts) > 2:
                raise ModelLoadError("there is no such folder.")
            return
        if not folder.is_dir():
            raise ModelLoadError(f"{shown(path, PATH)} is a file, not a folder; give the folder that holds it.")
        names = sorted(os.listdir(folder))
        for name in names:
            mode = os.stat(folder / name).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ModelLoadError(f"{shown(name)} in the folder is not a file (a pipe, a socket or a device).")
            if stat.S_ISREG(mode) and name.endswith((*_WEIGHTS, ".json", ".txt", ".model")):
                _refuse_pointer(folder / name)
    except (OSError, ValueError) as error:
        if isinstance(error, ModelLoadError):
            raise
        raise ModelLoadError(f"the folder cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if "config.json" not in names:
        raise ModelLoadError("the folder has no config.json.")


def check_sizes(config: Mapping[str, Any]) -> None:
    """Check the numbers of a config.json, nested ones included.

    Raises:
        ModelLoadError: more layers, heads or labels, or larger sizes, than any model has.
    """
    for key, value in _numbers(config, ""):
        name = key.rpartition(".")[2]
        most = MAX_COUNT if _COUNTS.search(name) else MAX_LABELS if "label" in name else MAX_SIZE
        if "dim" in name or "size" in name:
            most = MAX_SIZE
        if value > most:
            raise ModelLoadError(f"config.json has {shown(key)} = {shown(value)}; values above {most:,} are refused.")


def check_memory(path: str, parameters: int) -> None:
    """Compare the number of parameters that a config.json describes with the files and the machine.

    Raises:
        ModelLoadError: the files cannot hold so many, or float32 copies of them exceed the machine's memory.
    """
    folder = Path(path)
    if folder.is_dir():
        held = sum(p.stat().st_size for p in folder.iterdir() if p.suffix in _WEIGHTS)
        # The densest formats in use hold two numbers a byte.
        if held and parameters > 4 * held:
            raise ModelLoadError(
                f"config.json describes {parameters:,} parameters, but the weights' files have only {held:,} bytes; "
                "they belong to different models, or a file is truncated."
            )
    needed, memory = 4 * parameters, _memory()
    if memory and needed > memory:
        raise ModelLoadError(
            f"its {parameters:,} parameters take {needed / 2**30:,.0f} GiB in float32, and this machine has "
            f"{memory / 2**30:,.0f} GiB."
        )


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ModelLoadError(
                f"{shown(path.name)} is git-lfs's pointer to the file, not the file: run `git lfs pull` in the folder."
            )


def _numbers(data: Any, key: str) -> Iterator[tuple[str, float]]:
    """All numbers with their keys; a nested mapping's keys are joined by dots."""
    pending: list[tuple[str, Any]] = [(key, data)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
        elif isinstance(value, (list, tuple)):
            pending += [(key, item) for item in value]
        elif is_number(value):
            yield key, value


def _memory() -> int:
    """The memory, in bytes, of the machine or of this process's container; 0 if it is not known."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return total
