"""Reading knowledge: a shipped graph by its name, TSV or JSON of triples, WordNet's files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from lr_dist.errors import PATH, KnowledgeError, UnreadableFileError, shown
from lr_dist.knowledge.prototypes.graph import KnowledgeGraph
from lr_dist.knowledge.prototypes.wordnet import wordnet_triples
from lr_dist.names import did_you_mean
from lr_dist.reading import expanded, lines_of, read_bytes

SHIPPED = ("everyday", "polarity")
WORDNET = "wordnet:"
MAX_BYTES = 100_000_000


def read_graph(spec: str, own_relations: Iterable[str] = ()) -> KnowledgeGraph:
    """Read a graph.

    Args:
        spec: `everyday` or `polarity` (shipped), `wordnet:FOLDER` (with WordNet's data.noun, index.noun, ...), or a
            file: .json, a list of [subject, relation, object]; otherwise lines of three texts between tabs, in which
            empty lines and lines that begin with # are skipped.
        own_relations: see `KnowledgeGraph`.

    Raises:
        UnreadableFileError: no such file, or it cannot be read.
        KnowledgeError: malformed content (with the line), or what `KnowledgeGraph` refuses.
    """
    if spec in SHIPPED:
        text = (files("lr_dist.knowledge.prototypes") / "data" / f"{spec}.tsv").read_text(encoding="utf-8")
        return KnowledgeGraph.from_triples(_tsv(text, spec), own_relations)
    if spec.startswith(WORDNET):
        return KnowledgeGraph.from_triples(wordnet_triples(expanded(spec.removeprefix(WORDNET))), own_relations)
    path = expanded(spec)
    text = read_text(path)
    triples = _json(text, path) if path.suffix == ".json" else _tsv(text, str(path))
    return KnowledgeGraph.from_triples(triples, own_relations)


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        UnreadableFileError: no such file, or it cannot be read.
        KnowledgeError: too large, or not UTF-8.
    """
    try:
        data = read_bytes(path, MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, UnreadableFileError):
            raise
        raise UnreadableFileError(
            f"The knowledge {shown(str(path), PATH)} cannot be read: {getattr(error, 'strerror', None) or error}. Give "
            f"a file, {' or '.join(SHIPPED)} (shipped), or {WORDNET}FOLDER.{did_you_mean(str(path), SHIPPED)}"
        ) from error
    if len(data) > MAX_BYTES:
        raise KnowledgeError(f"{path} is larger than {MAX_BYTES:,} bytes. Give a smaller file.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KnowledgeError(f"{path} is not UTF-8 text ({error}). Convert it.") from error


def _tsv(text: str, source: str) -> Iterator[list[str]]:
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split("\t")
        if len(parts) != 3:
            raise KnowledgeError(
                f"{source}, line {number}: {shown(line)} has {len(parts)} part(s); a fact is subject, relation and "
                "object, with a tab between them."
            )
        yield parts


def _json(text: str, path: Path) -> list[list[str]]:
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KnowledgeError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, list) or not all(isinstance(each, list) for each in data):
        raise KnowledgeError(f"{path} must hold a list of [subject, relation, object], not {shown(data)}.")
    return data
