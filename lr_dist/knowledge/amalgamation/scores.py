"""Scores of teachers, computed in batches and kept on disk by the texts' ids."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError, TeacherError, UnusableScoresWarning
from lr_dist.knowledge.amalgamation.teacher import Teacher, check_number_of_passes
from lr_dist.knowledge.amalgamation.texts import ID_LENGTH, Texts
from lr_dist.runs.atomic import write_bytes
from lr_dist.runs.seeds import seed_of

_FORMAT = "lr-dist scores 1"
# Texts in one file, and between two moments at which the work can be stopped without loss.
_CHUNK = 256


@dataclass(frozen=True)
class TeacherScores:
    """The scores of one teacher.

    Attributes:
        ids: of the texts, see `Texts.ids`.
        logits: without dropout, [texts, labels], float32.
        passes: mean softmax over passes with dropout on, [texts, labels]; None if none were asked for.
        seconds: that this call spent on texts that were not kept already.
        computed: how many texts those were.
    """

    ids: tuple[str, ...]
    logits: Tensor
    passes: Tensor | None
    seconds: float = 0.0
    computed: int = 0

    def of(self, texts: Texts) -> TeacherScores:
        """The scores of these texts, in their order, whatever the order in which they were computed.

        Raises:
            TeacherError: a text without scores.
        """
        row_of = {text_id: row for row, text_id in enumerate(self.ids)}
        missing = [row for row, text_id in enumerate(texts.ids) if text_id not in row_of]
        if missing:
            raise TeacherError(f"{len(missing)} texts have no scores; the first is text {missing[0]} (from 0).")
        rows = [row_of[text_id] for text_id in texts.ids]
        passes = None if self.passes is None else self.passes[rows]
        return TeacherScores(texts.ids, self.logits[rows], passes, self.seconds, self.computed)


def score_texts(
    teacher: Teacher,
    texts: Texts,
    *,
    passes: int = 16,
    top_layers: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    folder: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> TeacherScores:
    """The scores of a teacher for every text.

    Equal texts are scored once. Texts are scored in an order of their own (by length, then id), so that neither their
    given order nor an interruption changes the result.

    Args:
        teacher: it computes in float32.
        texts: unlabelled.
        passes: with dropout on, at least 2; 0 for none, as for methods that need no certainty.
        top_layers: dropout in so many layers only; None for all.
        seed: of dropout.
        batch_size: texts of one batch; its passes are computed together.
        folder: where scores are kept, in chunks of 256 texts; a further call goes on where an earlier one was stopped.
        progress: called with the number of texts that were scored or read.

    Raises:
        DropoutOffError: one pass, or passes that do not differ.
        EmptyTextError: a text of which the teacher's tokenizer leaves nothing.
        NonFiniteScoresError: NaN or infinite logits.

    Warns:
        UnusableScoresWarning: a file in the folder is damaged; its texts are scored again.
    """
    check_number_of_passes(passes)
    check_whole("batch_size", batch_size, 1, error=ConfigurationError)
    began = time.perf_counter()
    distinct = texts.rows_at(_in_scoring_order(texts))
    store = None if folder is None else _Store(Path(folder), _key(teacher, passes, top_layers, seed), teacher, passes)
    kept = {} if store is None else store.read(set(distinct.ids))
    if progress is not None and kept:
        progress(len(kept))
    missing = [row for row, text_id in enumerate(distinct.ids) if text_id not in kept]
    if missing:
        prepared = teacher.prepare(distinct)
        if passes:
            with _random_numbers(seed, "check"):
                teacher.check_passes(prepared, top_layers)
    for start in range(0, len(missing), _CHUNK):
        rows = missing[start : start + _CHUNK]
        ids = [distinct.ids[row] for row in rows]
        parts: list[tuple[Tensor, Tensor | None]] = []
        # Seeded by what the chunk holds, so that a run that was stopped draws as one that was not.
        with _random_numbers(seed, *ids):
            for position in range(0, len(rows), batch_size):
                batch = rows[position : position + batch_size]
                parts.append(teacher.score(prepared, batch, passes, top_layers))
                if progress is not None:
                    progress(len(batch))
        logits = torch.cat([part for part, _ in parts])
        means = torch.cat([part for _, part in parts if part is not None]) if passes else None
        if store is not None:
            store.write(ids, logits, means)
        for index, text_id in enumerate(ids):
            kept[text_id] = (logits[index], None if means is None else means[index])
    ids_in_order = distinct.ids
    scores = TeacherScores(
        ids_in_order,
        torch.stack([kept[each][0] for each in ids_in_order]),
        torch.stack([_given(kept[each][1]) for each in ids_in_order]) if passes else None,
        time.perf_counter() - began if missing else 0.0,
        len(missing),
    )
    return scores.of(texts)


def _in_scoring_order(texts: Texts) -> list[int]:
    """One row for each different text, from the shortest to the longest."""
    first = {text_id: row for row, text_id in reversed(list(enumerate(texts.ids)))}
    return sorted(first.values(), key=lambda row: (sum(len(part or "") for part in texts.pairs[row]), texts.ids[row]))


def _key(teacher: Teacher, passes: int, top_layers: int | None, seed: int) -> str:
    content = [_FORMAT, teacher.fingerprint, passes, *([top_layers, seed] if passes else [])]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


@contextmanager
def _random_numbers(*parts: object) -> Iterator[None]:
    """Within, torch's random numbers follow from the arguments; afterwards they are as before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(repr(parts), 63))
        yield


class _Store:
    """Files `KEY/PART.safetensors` of a folder, each with the scores and ids of up to 256 texts."""

    def __init__(self, folder: Path, key: str, teacher: Teacher, passes: int) -> None:
        self.folder = folder / key
        self._key = key
        self._labels = list(teacher.labels)
        self._passes = passes

    def read(self, wanted: set[str]) -> dict[str, tuple[Tensor, Tensor | None]]:
        """id -> logits and mean softmax of the passes, of the texts that are wanted."""
        kept: dict[str, tuple[Tensor, Tensor | None]] = {}
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else ():
            try:
                kept.update({each: (logits, mean) for each, logits, mean in self._rows(path) if each in wanted})
            # What safetensors and the system raise for a file that is cut, altered or not readable.
            except Exception as error:
                warnings.warn(
                    f"{path} cannot be used ({type(error).__name__}: {error}); its texts are scored again.",
                    UnusableScoresWarning,
                    stacklevel=3,
                )
        return kept

    def _rows(self, path: Path) -> list[tuple[str, Tensor, Tensor | None]]:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        checksum = about.pop("checksum", "")
        if about != self._about() or checksum != _checksum(tensors):
            raise ValueError("it does not hold what its name says")
        ids = [bytes(row.tolist()).hex() for row in tensors["ids"]]
        passes: Sequence[Tensor | None] = list(tensors["passes"]) if "passes" in tensors else [None] * len(ids)
        return list(zip(ids, tensors["logits"], passes, strict=True))

    def write(self, ids: Sequence[str], logits: Tensor, passes: Tensor | None) -> None:
        from safetensors.torch import save

        tensors = {
            "ids": torch.tensor([list(bytes.fromhex(each)) for each in ids], dtype=torch.uint8),
            "logits": logits.contiguous(),
        }
        if passes is not None:
            tensors["passes"] = passes.contiguous()
        assert tensors["ids"].shape[1] == ID_LENGTH // 2
        name = hashlib.sha256(",".join(ids).encode()).hexdigest()[:16]
        about = {**self._about(), "checksum": _checksum(tensors)}
        write_bytes(self.folder / f"{name}.safetensors", save(tensors, about))

    def _about(self) -> dict[str, str]:
        return {
            "format": _FORMAT,
            "key": self._key,
            "labels": json.dumps(self._labels),
            "passes": str(self._passes),
        }


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _given(value: Tensor | None) -> Tensor:
    if value is None:
        raise TeacherError("A teacher returned no passes although they were asked for.")
    return value
