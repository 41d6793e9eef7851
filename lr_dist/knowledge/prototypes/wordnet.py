"""Facts from WordNet's own data files (wndb(5WN): data.POS and index.POS; e.g. Debian's package wordnet-base)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lr_dist.errors import PATH, KnowledgeError, UnreadableFileError, shown

# A noun's synset to that of its hypernym; a part's to that of the whole.
_POINTERS = {"@": "hypernym", "#p": "part-of"}


def wordnet_triples(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Hypernyms, parts, synonyms and antonyms among nouns, and antonyms among other adjectives.

    A word stands for its first (most frequent) sense, so that a chain of hypernyms never changes the sense on its way.
    Names, and words that are not letters only, are left out. The texts of WordNet are not shipped with lr-dist.

    Args:
        folder: with data.noun, index.noun, data.adj and index.adj.

    Raises:
        UnreadableFileError: one of the files is missing.
        KnowledgeError: a line that does not follow the format.
    """
    nouns: set[str] = set()
    for pos in ("noun", "adj"):
        first = _first_senses(folder / f"index.{pos}")
        synsets = {offset: words for offset, words, _ in _synsets(folder / f"data.{pos}")}
        kept = {
            offset: [word if first.get(word) == offset and word not in nouns else "" for word in words]
            for offset, words in synsets.items()
        }
        name = {offset: next(filter(None, words), "") for offset, words in kept.items()}
        for offset, _, pointers in _synsets(folder / f"data.{pos}"):
            if pos == "noun" and name[offset]:
                yield from ((name[offset], "synonym", word) for word in kept[offset] if word not in ("", name[offset]))
            for symbol, target, target_pos, source_word, target_word in pointers:
                # The letter of the file that the pointer leads to.
                if target_pos != pos[0] or target not in kept:
                    continue
                if symbol == "!":
                    a, b = kept[offset][source_word - 1], kept[target][target_word - 1]
                    if a and b and a < b:  # each pair once
                        yield a, "antonym", b
                elif symbol in _POINTERS and pos == "noun" and name[offset] and name[target]:
                    yield name[offset], _POINTERS[symbol], name[target]
        if pos == "noun":
            nouns = {word for words in kept.values() for word in words if word}


def _first_senses(path: Path) -> dict[str, str]:
    """Word -> offset of its first synset."""
    senses = {}
    for number, line in _lines(path):
        parts = line.split()
        try:
            senses[parts[0]] = parts[-int(parts[2])]
        except (IndexError, ValueError) as error:
            raise _malformed(path, number, line) from error
    return senses


def _synsets(path: Path) -> Iterator[tuple[str, list[str], list[tuple[str, str, str, int, int]]]]:
    """Offset, words ("" for those that are left out), and pointers (symbol, offset, POS, word, word; 0 for all)."""
    for number, line in _lines(path):
        parts = line.partition("|")[0].split()
        try:
            count = int(parts[3], 16)
            # Adjectives may carry a marker of syntax, as in "galore(ip)".
            words = [word.partition("(")[0] for word in parts[4 : 4 + 2 * count : 2]]
            rest = parts[4 + 2 * count :]
            columns = (rest[1 + i :: 4][: int(rest[0])] for i in range(4))
            pointers = [
                (symbol, offset, pos, int(places[:2], 16), int(places[2:], 16))
                for symbol, offset, pos, places in zip(*columns, strict=True)
            ]
            yield parts[0], [word if word.isalpha() and word.islower() else "" for word in words], pointers
        except (IndexError, ValueError) as error:
            raise _malformed(path, number, line) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                # The licence at the top is indented.
                if not line.startswith("  ") and line.strip():
                    yield number, line
    except OSError as error:
        raise UnreadableFileError(
            f"{shown(str(path), PATH)} cannot be read: {error.strerror}. Give the folder with WordNet's data.noun, "
            "index.noun, data.adj and index.adj (Debian: package wordnet-base, /usr/share/wordnet)."
        ) from error
    except UnicodeDecodeError as error:
        raise KnowledgeError(f"{path} is not a data file of WordNet: it is not text ({error}).") from error


def _malformed(path: Path, number: int, line: str) -> KnowledgeError:
    return KnowledgeError(f"{path}, line {number}, is not a line of WordNet's format (wndb): {shown(line)}.")
