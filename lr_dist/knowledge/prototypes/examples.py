"""Every example that a graph and templates give, for each kind. What is not certain is left out."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lr_dist.knowledge.prototypes.graph import Fact, KnowledgeGraph
from lr_dist.knowledge.prototypes.templates import Frame, Templates, fill
from lr_dist.tasks.draw import draw_order

CLASSES: dict[str, tuple[str, ...]] = {
    "pairs": ("entailment", "neutral", "contradiction"),
    "statements": ("false", "true"),
    "polarity": ("negative", "positive"),
    "hypernyms": ("entailment", "not_entailment"),
}
KINDS = tuple(CLASSES)
# Kinds whose examples are two texts.
PAIRED = ("pairs", "hypernyms")
# Steps up the hypernyms: further ones ("a dog is an entity") say little.
DISTANCE = 3
# The form of words of which the graph does not say it, by the relation that they are in.
_ADJECTIVE = "adjective"


@dataclass(frozen=True)
class Example:
    """One labelled text or pair.

    Attributes:
        texts: one text, or premise and hypothesis.
        label: name of its class.
        facts: what it follows from.
        subject: the word that it is about; words are held out by it.
        pattern: the relation that it follows from, and which sides are denied; a draw takes all patterns alike.
    """

    texts: tuple[str, ...]
    label: str
    facts: tuple[Fact, ...]
    subject: str
    pattern: str


def examples_of(kind: str, graph: KnowledgeGraph, templates: Templates) -> Iterator[Example]:
    """All examples of a kind: "pairs", "statements", "polarity" or "hypernyms"."""
    makers = {
        "pairs": pair_examples,
        "statements": statement_examples,
        "polarity": polarity_examples,
        "hypernyms": hypernym_examples,
    }
    return makers[kind](graph, templates)


def pair_examples(graph: KnowledgeGraph, templates: Templates) -> Iterator[Example]:
    """Premise and hypothesis.

    With x below y (hypernyms up to three steps): x, y entailment; x, not y contradiction; y, x and y, not x neutral,
    because something that is y may or may not be x. Synonyms: entailment both ways, with "not" contradiction. Words
    that exclude each other (antonyms; disjoint words and what is below them): contradiction both ways, with "not"
    entailment.
    """
    pair = _Pairs(graph)
    for word, parent, facts in _hypernyms(graph):
        for frame in _frames(graph, templates, word, "noun"):
            yield pair(frame, "says", word, "says", parent, "entailment", facts)
            yield pair(frame, "says", word, "denies", parent, "contradiction", facts)
            yield pair(frame, "says", parent, "says", word, "neutral", facts, about=word)
            yield pair(frame, "says", parent, "denies", word, "neutral", facts, about=word)
    for fact in graph.of("synonym"):
        form = _form_of_pair(graph, fact)
        for frame in _frames(graph, templates, fact.subject, form):
            for a, b in ((fact.subject, fact.object), (fact.object, fact.subject)):
                yield pair(frame, "says", a, "says", b, "entailment", (fact,))
                yield pair(frame, "says", a, "denies", b, "contradiction", (fact,))
    for a, b, facts in _exclusions(graph):
        form = "noun" if facts[0].relation == "disjoint" else _form_of_pair(graph, facts[0])
        for frame in _frames(graph, templates, a, form):
            for x, y in ((a, b), (b, a)):
                yield pair(frame, "says", x, "says", y, "contradiction", facts)
                yield pair(frame, "says", x, "denies", y, "entailment", facts)


def hypernym_examples(graph: KnowledgeGraph, templates: Templates) -> Iterator[Example]:
    """Premise and hypothesis, both affirmative: whether the second word is a hypernym of the first.

    With x below y (hypernyms up to three steps): x, y entailment. Not entailment: y, x, and x, z for a hypernym z of
    other words that, as far as the graph tells, is neither above nor below x. The last ones assume that the graph is
    complete. A draw takes as many of both, so that neither the direction alone nor the topic alone gives the label.
    """
    pair = _Pairs(graph)
    pairs = list(_hypernyms(graph))
    parents = [pairs[index][1] for index in draw_order(len(pairs), "hypernyms of other words")]
    for (word, parent, facts), other in zip(pairs, parents, strict=True):
        unrelated = other != parent and not graph.are_related(word, other)
        for frame in _frames(graph, templates, word, "noun"):
            yield pair(frame, "says", word, "says", parent, "entailment", facts)
            yield replace(
                pair(frame, "says", parent, "says", word, "not_entailment", facts, about=word), pattern="reversed"
            )
            if unrelated:
                example = pair(frame, "says", word, "says", other, "not_entailment", facts)
                yield replace(example, pattern="unrelated")


def statement_examples(graph: KnowledgeGraph, templates: Templates) -> Iterator[Example]:
    """Single sentences.

    A fact is true and its denial false. Words that exclude each other give false statements of the hypernym, and true
    denials ("A dog is a fish." is false); the antonym of a property likewise ("Ice is hot.").
    """
    for relation, frames in templates.statements.items():
        for fact in graph.of(relation):
            for frame in frames:
                yield from _statements(graph, frame, fact.subject, fact.object, True, (fact,))
    for frame in templates.statements.get("hypernym", ()):
        for word, parent, facts in _hypernyms(graph):
            if len(facts) > 1:  # the direct ones are facts
                yield from _statements(graph, frame, word, parent, True, facts)
        for a, b, facts in _exclusions(graph):
            if facts[0].relation == "disjoint":
                yield from _statements(graph, frame, a, b, False, facts)
                yield from _statements(graph, frame, b, a, False, facts)
    opposites = [(a, b, fact) for fact in graph.of("antonym") for a, b in _both_ways(fact)]
    for frame in templates.statements.get("has-property", ()):
        for fact in graph.of("has-property"):
            for a, b, opposite in opposites:
                if graph.kind_of(a) == graph.kind_of(fact.object):
                    yield from _statements(graph, frame, fact.subject, b, False, (fact, opposite))


def polarity_examples(graph: KnowledgeGraph, templates: Templates) -> Iterator[Example]:
    """Texts that are negative or positive because of one word; a word's synonyms share its polarity."""
    known: dict[str, tuple[str, tuple[Fact, ...]]] = {
        fact.subject: (fact.object, (fact,)) for fact in graph.of("polarity")
    }
    # From word to word over any number of synonyms, in whatever order the facts are.
    before = -1
    while len(known) > before:
        before = len(known)
        for fact in graph.of("synonym"):
            for a, b in _both_ways(fact):
                if a in known and b not in known:
                    known[b] = (known[a][0], (*known[a][1], fact))
    for word, (label, facts) in known.items():
        for form in graph.forms(word, _ADJECTIVE):
            for template in templates.polarity.get("noun" if form == "mass" else form, ()):
                yield Example((fill(template, graph, form, word=word),), label, facts, word, form)


def _hypernyms(graph: KnowledgeGraph) -> Iterator[tuple[str, str, tuple[Fact, ...]]]:
    words = dict.fromkeys(fact.subject for fact in graph.of("hypernym"))
    for word in words:
        for parent, facts in graph.ancestors(word, DISTANCE):
            yield word, parent, facts


def _exclusions(graph: KnowledgeGraph) -> Iterator[tuple[str, str, tuple[Fact, ...]]]:
    """Pairs of words that exclude each other, each once, with the reasons; first the facts themselves."""
    pairs: dict[frozenset[str], None] = {}
    for relation in ("antonym", "disjoint"):
        for fact in graph.of(relation):
            pairs[frozenset((fact.subject, fact.object))] = None
            yield fact.subject, fact.object, (fact,)
    above: dict[str, list[tuple[str, tuple[Fact, ...]]]] = {}
    for word, parent, facts in _hypernyms(graph):
        above.setdefault(parent, []).append((word, facts))
    for fact in graph.of("disjoint"):
        a, b = graph.kind_of(fact.subject), graph.kind_of(fact.object)
        left: list[tuple[str, tuple[Fact, ...]]] = [(fact.subject, ()), *above.get(a, [])]
        right: list[tuple[str, tuple[Fact, ...]]] = [(fact.object, ()), *above.get(b, [])]
        for x, why in left:
            for y, reason in right:
                key = frozenset((x, y))
                if key not in pairs:
                    pairs[key] = None
                    yield x, y, (fact, *why, *reason)


def _both_ways(fact: Fact) -> tuple[tuple[str, str], tuple[str, str]]:
    return (fact.subject, fact.object), (fact.object, fact.subject)


def _form_of_pair(graph: KnowledgeGraph, fact: Fact) -> str:
    """Synonyms and antonyms are adjectives, unless the graph says otherwise, or uses one of them as a noun."""
    if fact.subject in graph.nouns or fact.object in graph.nouns:
        return "noun"
    return graph.forms(fact.subject, _ADJECTIVE)[0]


def _frames(graph: KnowledgeGraph, templates: Templates, word: str, default: str) -> tuple[Frame, ...]:
    form = graph.forms(word, default)[0]
    return templates.pairs.get("noun" if form in ("noun", "mass", "unique") else form, ())


class _Pairs:
    """Makes pairs; each word is put into each frame once."""

    def __init__(self, graph: KnowledgeGraph) -> None:
        self._written = functools.cache(lambda template, word: fill(template, graph, "noun", word=word))

    def __call__(
        self,
        frame: Frame,
        first: str,
        a: str,
        second: str,
        b: str,
        label: str,
        facts: tuple[Fact, ...],
        *,
        about: str = "",
    ) -> Example:
        """What the frame says (or denies) of a as premise, and of b as hypothesis."""
        texts = self._written(getattr(frame, first), a), self._written(getattr(frame, second), b)
        return Example(texts, label, facts, about or a, f"{facts[0].relation}, {first}, {second}")


def _statements(
    graph: KnowledgeGraph, frame: Frame, a: str, b: str, holds: bool, facts: tuple[Fact, ...]
) -> Iterator[Example]:
    """What the frame says of two words, and its negation."""
    for side, true in (("says", holds), ("denies", not holds)):
        text = fill(getattr(frame, side), graph, "noun", subject=a, object=b)
        yield Example((text,), "true" if true else "false", facts, a, f"{facts[0].relation}, {side}")
