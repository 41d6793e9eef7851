"""Finds presets by name: those shipped with lr-dist, in a user's folders, from other packages, and registered ones.

The preset NAME in a folder is the file NAME.yaml (or NAME.yml). Only that file is opened, so a broken file does not
block other presets. If two sources offer the same name, it is an error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from lr_dist.distribution import LRDistribution
from lr_dist.errors import (
    PATH,
    DuplicatePresetError,
    InvalidPresetError,
    LRDistError,
    UnknownPresetError,
    UnreadableFileError,
    shown,
)
from lr_dist.names import close_names
from lr_dist.presets.schema import NAME, Preset, read_preset
from lr_dist.reading import is_pipe_or_device

ENV_FOLDERS = "LR_DIST_PRESETS"
ENTRY_POINT_GROUP = "lr_dist.presets"
SHIPPED = Path(__file__).parent
_SUFFIXES = (".yaml", ".yml")

_registered: dict[str, tuple[Preset, str]] = {}


@dataclass(frozen=True)
class PresetEntry:
    """An entry of `list_presets`.

    Attributes:
        name: the preset's name; for a source that cannot be read, the source.
        source: `shipped`, the path of a user's file, the entry point, or the line of code that registered it.
        preset: None if it is broken.
        problem: why it is broken, or None.
    """

    name: str
    source: str
    preset: Preset | None
    problem: str | None = None


def load_preset(name: str) -> LRDistribution:
    """The distribution of the preset `name`, as in `load_preset("kenneweg2022")`.

    Of a plan with several stages or phases, these are the highest rates of the first stage; `get_preset(name).plan` is
    the plan itself.

    Raises:
        UnknownPresetError: no source has the name; close names are suggested.
        DuplicatePresetError: two sources have it; both are named.
        InvalidPresetError, InvalidYAMLError, UnreadableFileError: its file is invalid or cannot be read.
    """
    return get_preset(name).distribution


def get_preset(name: str) -> Preset:
    """The preset `name`: its plan, methods, schedule, purpose and provenance; raises as `load_preset` does."""
    candidates, problems = _scan()
    matches = [candidate for candidate in candidates if isinstance(name, str) and candidate.name == name]
    if not matches:
        raise UnknownPresetError(_unknown(name, candidates, problems))
    if len(matches) > 1:
        raise DuplicatePresetError(_duplicate(name, matches))
    return matches[0].read()


def list_presets() -> list[PresetEntry]:
    """All presets of all sources, sorted by name; broken and duplicate ones are listed with the problem."""
    candidates, problems = _scan()
    entries = []
    for candidate in candidates:
        same = [other for other in candidates if other.name == candidate.name]
        try:
            if len(same) > 1:
                raise DuplicatePresetError(_duplicate(candidate.name, same))
            entries.append(PresetEntry(candidate.name, candidate.source, candidate.read()))
        except LRDistError as error:
            entries.append(PresetEntry(candidate.name, candidate.source, None, str(error)))
    entries += [PresetEntry(source, source, None, problem) for source, problem in problems]
    return sorted(entries, key=lambda entry: (entry.name, entry.source))


def register_preset(preset: Preset) -> None:
    """Make `preset` available by its name for the rest of the process.

    Raises:
        DuplicatePresetError: another preset already has this name.
    """
    if not isinstance(preset, Preset):
        raise InvalidPresetError(f"register_preset takes a Preset, not {shown(preset)}.")
    caller = sys._getframe(1)
    new = _Candidate(preset.name, f"registered at {caller.f_code.co_filename}:{caller.f_lineno}", preset=preset)
    existing = [candidate for candidate in _scan()[0] if candidate.name == preset.name]
    if existing:
        raise DuplicatePresetError(_duplicate(preset.name, [*existing, new]))
    _registered[preset.name] = (preset, new.source)


def unregister_preset(name: str) -> None:
    """Remove a preset that `register_preset` added.

    Raises:
        UnknownPresetError: no preset of that name was registered.
    """
    if not isinstance(name, str) or name not in _registered:
        raise UnknownPresetError(
            f"No preset {shown(name)} was registered; registered: {', '.join(_registered) or 'none'}."
        )
    del _registered[name]


@dataclass(frozen=True)
class _Candidate:
    """A preset in a source; its file is opened only by `read`."""

    name: str
    source: str
    preset: Preset | None = None
    path: Path | None = None

    def read(self) -> Preset:
        if self.preset is not None:
            return self.preset
        assert self.path is not None
        where = _plain(str(self.path))
        if not NAME.fullmatch(self.path.stem):
            raise InvalidPresetError(f"{where}: a preset's file is called NAME.yaml, and NAME matches {NAME.pattern}.")
        # A pipe would delay every listing of the presets.
        if is_pipe_or_device(self.path):
            raise UnreadableFileError(f"{where} cannot be read: it is not a file. Move it out of the presets' folder.")
        preset = read_preset(self.path)
        if preset.name != self.path.stem:
            raise InvalidPresetError(
                f"{where}: name is {preset.name!r}, but the file's name says {self.path.stem!r}; make them equal."
            )
        return preset


def _scan() -> tuple[list[_Candidate], list[tuple[str, str]]]:
    """All candidates, and (source, problem) for every source that cannot be read."""
    candidates = [_Candidate(name, source, preset=preset) for name, (preset, source) in _registered.items()]
    problems: list[tuple[str, str]] = []
    for source, place in _sources(problems):
        if isinstance(place, Path):
            try:
                files = _files(place)
            # ValueError: a NUL byte in an entry point's path.
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                problems.append((source, f"{_plain(str(place))} cannot be read as a folder: {reason}."))
                continue
            shipped = source == "shipped"
            candidates += [
                _Candidate(_plain(path.stem), source if shipped else _plain(str(path)), path=path) for path in files
            ]
        else:
            candidates += [_Candidate(preset.name, source, preset=preset) for preset in place]
    # A file that is reached in two ways (a folder named twice, a link) is not a duplicate.
    unique: dict[str | int, _Candidate] = {}
    for candidate in candidates:
        unique.setdefault(os.path.realpath(candidate.path) if candidate.path else id(candidate.preset), candidate)
    return list(unique.values()), problems


def _sources(problems: list[tuple[str, str]]) -> Iterator[tuple[str, Path | list[Preset]]]:
    yield "shipped", SHIPPED
    for folder in filter(None, os.environ.get(ENV_FOLDERS, "").split(os.pathsep)):
        yield f"{ENV_FOLDERS} {folder}", Path(os.path.expanduser(folder))
    for point in entry_points(group=ENTRY_POINT_GROUP):
        source = f"entry point {point.name} = {point.value}"
        try:
            place = _entry_point_presets(point)
        # Code of other packages may raise anything, even SystemExit, and must not make the other presets unavailable.
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            problems.append((source, f"{type(error).__name__}: {shown(str(error), PATH)[1:-1]}"))
        else:
            yield source, place


def _files(folder: Path) -> list[Path]:
    # Hidden files are editors' backups and locks.
    return sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith("."))


def _plain(name: str) -> str:
    """A printable form of a file's name: bytes that are not UTF-8 and control characters become escapes."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def _entry_point_presets(point: EntryPoint) -> Path | list[Preset]:
    value: Any = point.load()
    if isinstance(value, (str, Path)):
        return Path(value)
    if isinstance(value, (list, tuple)) and all(isinstance(preset, Preset) for preset in value):
        return list(value)
    raise InvalidPresetError(
        f"an entry point of {ENTRY_POINT_GROUP} is a folder's path or a list of Preset, not {shown(value)}."
    )


def _duplicate(name: str, candidates: list[_Candidate]) -> str:
    places = " and by ".join(
        f"lr-dist itself ({candidate.path})" if candidate.source == "shipped" else candidate.source
        for candidate in candidates
    )
    return f"The preset {name!r} is offered by {places}. Rename one of them."


def _unknown(name: str, candidates: list[_Candidate], problems: list[tuple[str, str]]) -> str:
    names = sorted({candidate.name for candidate in candidates})
    close = close_names(name, names, most=3)
    parts = [f"There is no preset {shown(name)}."]
    if close:
        parts.append(f"Close names: {', '.join(close)}.")
    else:
        parts.append(f"The presets are {', '.join(names)}.")
    parts += [f"Not searched, because it is broken: {source} ({problem})" for source, problem in problems]
    return " ".join(parts)
