"""The on-disk cache of tokenised splits: Arrow files, written whole or not at all, and checked when they are read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lr_dist.errors import ConfigurationError

CACHE_VARIABLE = "LR_DIST_CACHE"
_META = "lr-dist.json"
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True, eq=False)
class FlatRows:
    """Rows of unequal length, one after the other.

    Attributes:
        features: Flat values by name: `input_ids` (int32) and perhaps `token_type_ids` (int8).
        offsets: int64 [rows + 1]; row i is `values[offsets[i]:offsets[i + 1]]`.
    """

    features: dict[str, NDArray[Any]]
    offsets: NDArray[Any]

    def checksum(self) -> int:
        """CRC-32 of all data: a full disk or a power loss can leave zeros in files of the right size."""
        value = zlib.crc32(self.offsets.tobytes())
        for name in sorted(self.features):
            value = zlib.crc32(name.encode(), value)
            value = zlib.crc32(self.features[name].tobytes(), value)
        return value


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The cache's folder: as given, or the environment variable LR_DIST_CACHE, or ~/.cache/lr-dist.

    Raises:
        ConfigurationError: this user has no home folder.
    """
    folder = Path(cache_dir or os.environ.get(CACHE_VARIABLE) or "~/.cache/lr-dist")
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise ConfigurationError(
            f"the cache folder {folder} cannot be used, because this user has no home folder; set {CACHE_VARIABLE} "
            "to a folder"
        ) from error


def load_entry(entry: Path, rows: Mapping[str, int]) -> dict[str, FlatRows] | None:
    """Maps an entry into memory, which processes then share; None if it is missing or incomplete.

    Args:
        entry: The entry's folder.
        rows: The number of rows of each split.
    """
    try:
        checksums = json.loads((entry / _META).read_text())
        splits = {split: FlatRows(**_read(entry, split)) for split in rows}
    except Exception:  # a damaged entry is made again, whatever is wrong with it
        return None
    for split, flat in splits.items():
        if len(flat.offsets) != rows[split] + 1 or flat.checksum() != checksums.get(split):
            return None
    return splits


def save_entry(entry: Path, splits: Mapping[str, FlatRows]) -> None:
    """Writes an entry to a temporary folder and renames it, so that no process sees an incomplete entry.

    A full disk is only a warning: the run continues without the cache.

    Raises:
        ConfigurationError: The cache's folder cannot be written.
    """
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{entry.name}.tmp-", dir=entry.parent))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"the cache folder {entry.parent} cannot be written ({error}); set {CACHE_VARIABLE} to one that can"
        ) from error
    try:
        for split, flat in splits.items():
            _write(temporary, split, flat)
        (temporary / _META).write_text(json.dumps({split: flat.checksum() for split, flat in splits.items()}))
        _publish(temporary, entry)
    except OSError as error:
        warnings.warn(f"the cache entry {entry} could not be written: {error}", stacklevel=2)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(entry: Path, split: str) -> dict[str, Any]:
    import pyarrow as pa

    tables = []
    for part in ("tokens", "offsets"):
        with pa.memory_map(str(entry / f"{split}.{part}.arrow")) as source:
            tables.append(pa.ipc.open_file(source).read_all())
    # One record batch a file, so nothing is copied; the arrays keep the mapping alive.
    tokens, offsets = (
        {name: table.column(name).chunk(0).to_numpy() for name in table.column_names} for table in tables
    )
    return {"features": tokens, "offsets": offsets["offsets"]}


def _write(folder: Path, split: str, flat: FlatRows) -> None:
    import pyarrow as pa

    for part, columns in (("tokens", flat.features), ("offsets", {"offsets": flat.offsets})):
        batch = pa.record_batch({name: pa.array(values) for name, values in columns.items()})
        with pa.ipc.new_file(str(folder / f"{split}.{part}.arrow"), batch.schema) as writer:
            writer.write_batch(batch)


def _publish(temporary: Path, entry: Path) -> None:
    """Renames a finished folder to its place; if another process was faster, its entry is kept."""
    if entry.exists():  # damaged, or it would have been loaded
        aside = Path(tempfile.mkdtemp(prefix=f"{entry.name}.tmp-", dir=entry.parent))
        try:
            entry.rename(aside / "damaged")
        except FileNotFoundError:  # another process has moved it already
            pass
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    try:
        temporary.rename(entry)
    except OSError:
        if not entry.is_dir():  # not a race that another process has won
            raise
    for leftover in entry.parent.glob("tokens-*.tmp-*"):  # of processes that were killed
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
        except FileNotFoundError:
            continue
