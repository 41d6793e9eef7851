"""`StageStore`: trained stages, kept in a folder so that several runs can go on from the same weights."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lr_dist.errors import KeptStageWarning, UnwritableFileError
from lr_dist.methods import Needs
from lr_dist.runs.atomic import remove_leftovers, write_bytes
from lr_dist.sequence.output import NEEDED_MB

MAX_BYTES = 10 * 2**30
_SUFFIX = ".safetensors"
_FORMAT = "lr-dist stage 1"
_WEIGHT, _STATES = "weights/", "states"

Scores = dict[str, float]


@dataclass(frozen=True)
class KeptStage:
    """A stage's training.

    Attributes:
        weights: name -> tensor, of the whole module; before methods act on them at the border.
        states: name -> state of each method that trained in the stage.
        seconds: how long the training took.
    """

    weights: Mapping[str, Tensor]
    states: Mapping[str, Mapping[str, Any]]
    seconds: float


class StageStore:
    """Files `KEY.safetensors` in a folder, of stages that other runs can use; see `lr_dist.sequence.stage_key`.

    A file is written whole or not at all, and holds a checksum: one that is damaged, or not what its name says, is
    not used. If the files together would exceed `max_bytes`, those that were used longest ago are deleted. Scores of
    weights that several runs reach are kept in memory.

    Args:
        folder: made when the first stage is kept.
        needs: parts of the model that every run with this store computes with, beside its own needs. Runs with other
            words in the embeddings share no stage, so give the needs of all runs together.
        max_bytes: upper bound of all files together.

    Attributes:
        scores: (key of the weights, what was tested) -> every metric.
    """

    def __init__(self, folder: str | Path, *, needs: Needs = Needs(), max_bytes: int = MAX_BYTES) -> None:  # noqa: B008
        self.folder = Path(folder)
        self.needs = needs
        self.max_bytes = max_bytes
        self.scores: dict[tuple[str, Hashable], Scores] = {}
        self._wanted: set[str] | None = None

    def want_only(self, keys: Iterable[str], to_read: Iterable[str] = ()) -> None:
        """From now on keep only the stages of these keys. Without a call, every stage is kept.

        No other process may use the folder.

        Args:
            keys: of stages to be kept; other files are deleted, except those of
            to_read: keys of stages that are still to be taken over, and need not be kept if they are trained.
        """
        self._wanted = set(keys)
        remaining = self._wanted | set(to_read)
        for path in self._files():
            if path.stem not in remaining:
                path.unlink(missing_ok=True)
        remove_leftovers(self.folder)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def keep_only(self, keys: Iterable[str]) -> None:
        """From now on keep only the stages of these keys. Unlike `want_only`, it deletes nothing.

        Several processes that share a folder can each call it.
        """
        self._wanted = set(keys)

    def wants(self, key: str) -> bool:
        """Whether `keep` would keep it."""
        return self._wanted is None or key in self._wanted

    def load(self, key: str, like: Mapping[str, Tensor]) -> KeptStage | None:
        """The stage that was kept; None if there is none, or none that can be used.

        Args:
            key: of the stage's training.
            like: name -> tensor, whose names, shapes and dtypes the weights must have.

        Warns:
            KeptStageWarning: the file is damaged, or is not what its name says.
        """
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            stage = _read(path, key)
            _check_like(stage.weights, like)
            os.utime(path)
        except FileNotFoundError:  # another process has just deleted it
            return None
        # What safetensors, torch and the system raise for a file that is cut, altered or not readable.
        except Exception as error:
            warnings.warn(
                f"{path} is not the trained stage that its name says ({_reason(error)}); the stage is trained again.",
                KeptStageWarning,
                stacklevel=2,
            )
            return None
        return stage

    def keep(self, key: str, stage: KeptStage) -> None:
        """Write a stage if it is wanted and there is space for it.

        Warns:
            KeptStageWarning: it cannot be written, so runs that could have used it train the stage themselves.
        """
        if not self.wants(key):
            return
        data = _packed(key, stage)
        try:
            self._make_room(len(data))
            write_bytes(self._path(key), data)
        except (OSError, UnwritableFileError) as error:
            warnings.warn(
                f"A trained stage of {len(data) / 2**20:,.0f} MiB cannot be kept in {self.folder} ({error}). Runs that "
                "could have used it train it themselves; the results stay the same.",
                KeptStageWarning,
                stacklevel=2,
            )

    def size(self) -> tuple[int, int]:
        """Number of files and bytes."""
        sizes = [path.stat().st_size for path in self._files()]
        return len(sizes), sum(sizes)

    def _make_room(self, needed: int) -> None:
        if needed > self.max_bytes:
            raise OSError(f"at most {self.max_bytes / 2**20:,.0f} MiB may be kept")
        self.folder.mkdir(parents=True, exist_ok=True)
        oldest_first = sorted(self._files(), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in oldest_first)
        while total + needed > self.max_bytes:
            path = oldest_first.pop(0)
            total -= path.stat().st_size
            path.unlink(missing_ok=True)
        if shutil.disk_usage(self.folder).free < needed + NEEDED_MB * 2**20:
            raise OSError("the disk is nearly full")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob(f"*{_SUFFIX}") if path.is_file()]


def stage_bytes(weights: Mapping[str, Tensor]) -> int:
    """About how large the file of a stage with these weights is, without what methods keep."""
    return sum(weight.numel() * weight.element_size() for weight in weights.values())


def _packed(key: str, stage: KeptStage) -> bytes:
    from safetensors.torch import save

    buffer = io.BytesIO()
    torch.save(dict(stage.states), buffer)
    states = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    # A clone each: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {f"{_WEIGHT}{name}": _copied(weight) for name, weight in stage.weights.items()}
    tensors[_STATES] = states
    about = {"format": _FORMAT, "key": key, "seconds": repr(stage.seconds)}
    return save(tensors, {**about, "checksum": _checksum(about, tensors)})


def _copied(weight: Tensor) -> Tensor:
    return weight.detach().cpu().clone(memory_format=torch.contiguous_format)


def _read(path: Path, key: str) -> KeptStage:
    """Read and check a file.

    Raises:
        ValueError: it is something else than the stage of this key, or it was altered.
        Exception: whatever safetensors and torch raise for a damaged file.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    checksum = about.pop("checksum", "")
    if about.get("format") != _FORMAT or about.get("key") != key:
        raise ValueError(f"it holds {about.get('format', 'no stage')!r} of the key {about.get('key')!r}")
    if checksum != _checksum(about, tensors):
        raise ValueError("its checksum does not fit its content")
    states = torch.load(io.BytesIO(tensors.pop(_STATES).numpy().tobytes()), weights_only=True)
    weights = {name.removeprefix(_WEIGHT): tensor for name, tensor in tensors.items()}
    return KeptStage(weights, states, float(about["seconds"]))


def _checksum(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(repr(sorted(about.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_like(weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    ours, theirs = ({n: (tuple(w.shape), w.dtype) for n, w in each.items()} for each in (weights, like))
    if ours != theirs:
        raise ValueError("its weights are those of another model")


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
