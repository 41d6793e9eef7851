"""`Templates`: the sentences into which facts are put, from a YAML file that a user edits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from lr_dist.errors import TemplateError, shown
from lr_dist.knowledge.prototypes.files import read_text
from lr_dist.knowledge.prototypes.graph import FORMS, RELATIONS, KnowledgeGraph
from lr_dist.reading import expanded
from lr_dist.yaml_io import parse_yaml

SECTIONS = ("pairs", "statements", "polarity")
PAIR_FORMS = ("noun", "adjective")
_SLOT = re.compile(r"\{(?:(a|A) )?([^{}]*)\}")
_WORD, _FACT = ("word",), ("subject", "object")
# Spelled with a vowel and spoken with a consonant, or the other way round.
_SPOKEN_A = re.compile(r"(?:uni(?!n|m)|use|usu|uti|eu|ewe|one\b|once)")
_SPOKEN_AN = re.compile(r"(?:hour|honest|honou?r|heir)")


@dataclass(frozen=True)
class Frame:
    """A sentence and its negation."""

    says: str
    denies: str


@dataclass(frozen=True)
class Templates:
    """Templates, checked when they are read.

    Attributes:
        pairs: form (noun, adjective) -> frames with {word}.
        statements: relation -> frames with {subject} and {object}. A relation that is not built in becomes known by
            its frames.
        polarity: form -> texts with {word}.

    Raises:
        TemplateError: a section, form or slot that does not exist, or a slot that is missing.
    """

    pairs: Mapping[str, tuple[Frame, ...]]
    statements: Mapping[str, tuple[Frame, ...]]
    polarity: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        for section, known in (("pairs", PAIR_FORMS), ("polarity", FORMS)):
            for form in getattr(self, section):
                if form not in known:
                    raise TemplateError(f"{section}: there is no form {shown(form)}; known: {', '.join(known)}.")
        for form, frames in self.pairs.items():
            for frame in frames:
                _check_slots(f"pairs, {form}", frame.says, _WORD)
                _check_slots(f"pairs, {form}", frame.denies, _WORD)
        for relation, frames in self.statements.items():
            for frame in frames:
                _check_slots(f"statements, {relation}", frame.says, _FACT)
                _check_slots(f"statements, {relation}", frame.denies, _FACT)
        for form, texts in self.polarity.items():
            for text in texts:
                _check_slots(f"polarity, {form}", text, _WORD)

    @classmethod
    def read(cls, path: str | None = None) -> Templates:
        """Read a YAML file; sections that it lacks are the shipped ones. None: all shipped ones.

        Raises:
            TemplateError: another shape, or what the class refuses.
            UnreadableFileError, InvalidYAMLError: the file cannot be read.
        """
        data = parse_yaml(shipped_templates(), source="templates.yaml")
        if path is not None:
            own = parse_yaml(read_text(expanded(path)), source=path)
            if not isinstance(own, dict) or not own or not set(own) <= set(SECTIONS):
                raise TemplateError(f"{path} must be a mapping with {', '.join(SECTIONS)}, not {shown(own)}.")
            data = {**data, **own}
        return cls(
            pairs=_section("pairs", data, _frame),
            statements=_section("statements", data, _frame),
            polarity=_section("polarity", data, _text),
        )

    @property
    def own_relations(self) -> frozenset[str]:
        """Relations that only these templates make known."""
        return frozenset(self.statements) - set(RELATIONS)


def shipped_templates() -> str:
    """The YAML text of the shipped templates."""
    return (files("lr_dist.knowledge.prototypes") / "data" / "templates.yaml").read_text(encoding="utf-8")


def fill(template: str, graph: KnowledgeGraph, default: str, **words: str) -> str:
    """The sentence with its words.

    Args:
        template: a checked template.
        graph: knows how a word is written.
        default: form of words of which the graph does not say it.
        words: slot -> word.
    """

    def written(match: re.Match[str]) -> str:
        article, name = match[1], match[2]
        word = words[name].replace("_", " ")
        if article is None:
            return word
        forms = graph.forms(words[name], default)
        text = word if "mass" in forms else f"the {word}" if "unique" in forms else f"{_article(word)} {word}"
        return text[0].upper() + text[1:] if article == "A" else text

    return _SLOT.sub(written, template)


def _article(word: str) -> str:
    lower = word.lower()
    vowel = lower[0] in "aeiou"
    return "an" if (vowel and not _SPOKEN_A.match(lower)) or _SPOKEN_AN.match(lower) else "a"


def _check_slots(where: str, template: str, wanted: tuple[str, ...]) -> None:
    slots = [match[2] for match in _SLOT.finditer(template)]
    unknown = [slot for slot in slots if slot not in wanted]
    listed = " and ".join(f"{{{name}}}" for name in wanted)
    rest = _SLOT.sub("", template)
    if unknown or "{" in rest or "}" in rest:
        wrong = f"the slot {{{unknown[0]}}}" if unknown else "a single brace"
        raise TemplateError(
            f"{where}: {shown(template)} has {wrong}; its slots are {listed}, also {{a ...}} and {{A ...}}."
        )
    missing = [name for name in wanted if name not in slots]
    if missing:
        raise TemplateError(f"{where}: {shown(template)} lacks the slot {{{missing[0]}}}; it needs {listed}.")


def _section(name: str, data: Mapping[str, Any], read: Any) -> dict[str, tuple[Any, ...]]:
    section = data[name]
    if not isinstance(section, dict):
        raise TemplateError(f"{name} must map forms or relations to lists of templates, not {shown(section)}.")
    result = {}
    for key, entries in section.items():
        if not isinstance(entries, list) or not entries:
            raise TemplateError(f"{name}, {key}: give a list of at least one template, not {shown(entries)}.")
        result[key] = tuple(read(f"{name}, {key}", entry) for entry in entries)
    return result


def _frame(where: str, entry: Any) -> Frame:
    texts = isinstance(entry, dict) and all(isinstance(text, str) for text in entry.values())
    if not texts or set(entry) != {"says", "denies"}:
        raise TemplateError(f"{where}: {shown(entry)} must be a mapping with the texts `says` and `denies`.")
    return Frame(**entry)


def _text(where: str, entry: Any) -> str:
    if not isinstance(entry, str):
        raise TemplateError(f"{where}: {shown(entry)} is not a text.")
    return entry
