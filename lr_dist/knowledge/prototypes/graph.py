"""`KnowledgeGraph`: facts (subject, relation, object) that are checked to be free of cycles and contradictions."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from lr_dist.errors import ContradictionError, HypernymCycleError, KnowledgeError, UnknownRelationError, shown
from lr_dist.extras import require_libraries

if TYPE_CHECKING:
    import networkx as nx

# Relations with a meaning of their own; those of a template file are known, too.
RELATIONS: dict[str, str] = {
    "hypernym": "every subject is an object (dog, animal)",
    "synonym": "both words mean the same",
    "antonym": "nothing is both at once (hot, cold)",
    "disjoint": "nothing is both, nor are their hyponyms (bird, fish)",
    "part-of": "the subject is a part of the object",
    "polarity": "the object is positive or negative",
    "form": "how the word is written: noun, mass, unique, adjective, adverb, verb",
    "has-property": "the object is an adjective that holds for the subject",
    "capable-of": "the object is a verb",
    "used-for": "the object is an activity",
    "made-of": "the object is a material",
    "found-in": "the object is a place",
}
POLARITIES = ("negative", "positive")
FORMS = ("noun", "mass", "unique", "adjective", "adverb", "verb")
_SYMMETRIC = ("synonym", "antonym", "disjoint")
_ACYCLIC = ("hypernym", "part-of")
# Words in the message of a cycle.
_SHOWN = 8


@dataclass(frozen=True, order=True)
class Fact:
    """One fact, such as (dog, hypernym, animal)."""

    subject: str
    relation: str
    object: str

    def __str__(self) -> str:
        return f"({self.subject}, {self.relation}, {self.object})"


@dataclass(frozen=True)
class KnowledgeGraph:
    """Facts, checked when the graph is made.

    Synonyms share what is said about one of them. What excludes a word excludes its hyponyms.

    Args:
        facts: each once; `from_triples` drops repeated ones.
        own_relations: relations beside `RELATIONS` that templates give a meaning.

    Raises:
        UnknownRelationError: a relation that is neither in `RELATIONS` nor in `own_relations`.
        HypernymCycleError: a word that is its own hypernym, or a part of itself, over any number of facts.
        ContradictionError: synonyms that are antonyms or disjoint, a word under two disjoint ones, a word (or two
            synonyms) of both polarities.
        KnowledgeError: no facts, empty words, an unknown polarity or form, a word related to itself.
    """

    facts: tuple[Fact, ...]
    own_relations: frozenset[str] = field(default=frozenset())

    def __post_init__(self) -> None:
        require_libraries("knowledge", "networkx")
        _check_words(self.facts, self.own_relations)
        self._check_cycles()
        self._check_contradictions()

    @classmethod
    def from_triples(cls, triples: Iterable[Iterable[str]], own_relations: Iterable[str] = ()) -> KnowledgeGraph:
        """From (subject, relation, object); repeated facts count once, symmetric ones in either order."""
        facts: dict[Fact, None] = {}
        for number, triple in enumerate(triples):
            parts = list(triple)
            if len(parts) != 3 or not all(isinstance(part, str) for part in parts):
                raise KnowledgeError(
                    f"Fact {number} must be (subject, relation, object), three texts, not {shown(parts)}."
                )
            fact = Fact(*(part.strip() for part in parts))
            if fact.relation in _SYMMETRIC and Fact(fact.object, fact.relation, fact.subject) in facts:
                continue
            facts.setdefault(fact)
        return cls(tuple(facts), frozenset(own_relations))

    @classmethod
    def from_networkx(cls, graph: nx.Graph, own_relations: Iterable[str] = ()) -> KnowledgeGraph:
        """From a graph whose edges have the attribute `relation`; directed, unless its relations are symmetric."""
        return cls.from_triples(
            ((str(a), str(data.get("relation", "")), str(b)) for a, b, data in graph.edges(data=True)), own_relations
        )

    def to_networkx(self) -> nx.MultiDiGraph:
        """A graph with the attribute `relation` on each edge."""
        import networkx as nx

        graph = nx.MultiDiGraph()
        graph.add_edges_from((fact.subject, fact.object, {"relation": fact.relation}) for fact in self.facts)
        return graph

    def of(self, relation: str) -> tuple[Fact, ...]:
        """The facts with this relation."""
        return self._by_relation.get(relation, ())

    def forms(self, word: str, default: str) -> tuple[str, ...]:
        """How a word is written."""
        return self._forms.get(word, (default,))

    def kind_of(self, word: str) -> str:
        """The word that stands for a word and its synonyms."""
        return self._kinds.get(word, word)

    @cached_property
    def taxonomy(self) -> nx.DiGraph:
        """Edges from a word (that stands for its synonyms) to its hypernyms; the attribute `fact` says why."""
        return self._directed("hypernym")

    def ancestors(self, word: str, distance: int) -> Iterator[tuple[str, tuple[Fact, ...]]]:
        """Hypernyms up to `distance` steps away, nearest first, each with a shortest chain of facts to it."""
        reached: dict[str, tuple[Fact, ...]] = {self.kind_of(word): ()}
        front = list(reached)
        for _ in range(distance):
            further = []
            for each in front:
                for parent, data in self.taxonomy.adj.get(each, {}).items():
                    if parent not in reached:
                        reached[parent] = (*reached[each], data["fact"])
                        further.append(parent)
                        yield parent, reached[parent]
            front = further

    def are_related(self, a: str, b: str) -> bool:
        """Whether one word is above the other at any distance, or both mean the same."""
        import networkx as nx

        x, y = self.kind_of(a), self.kind_of(b)
        if x == y:
            return True
        above = [nx.descendants(self.taxonomy, word) if word in self.taxonomy else set() for word in (x, y)]
        return y in above[0] or x in above[1]

    def members(self, word: str) -> set[str]:
        """The word that stands for `word`, and those of all its hyponyms."""
        import networkx as nx

        kind = self.kind_of(word)
        return {kind} | (nx.ancestors(self.taxonomy, kind) if kind in self.taxonomy else set())

    @cached_property
    def nouns(self) -> frozenset[str]:
        """Words that are nouns by the relations that they are in."""
        facts = [fact for relation in ("hypernym", "part-of", "disjoint") for fact in self.of(relation)]
        return frozenset(word for fact in facts for word in (fact.subject, fact.object))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the facts."""
        text = json.dumps([[fact.subject, fact.relation, fact.object] for fact in self.facts])
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _by_relation(self) -> Mapping[str, tuple[Fact, ...]]:
        result: dict[str, list[Fact]] = {}
        for fact in self.facts:
            result.setdefault(fact.relation, []).append(fact)
        return {relation: tuple(facts) for relation, facts in result.items()}

    @cached_property
    def _forms(self) -> Mapping[str, tuple[str, ...]]:
        result: dict[str, tuple[str, ...]] = {}
        for fact in self.of("form"):
            result[fact.subject] = (*result.get(fact.subject, ()), fact.object)
        return result

    @cached_property
    def _kinds(self) -> Mapping[str, str]:
        import networkx as nx

        graph = nx.Graph((fact.subject, fact.object) for fact in self.of("synonym"))
        first: dict[str, str] = {}
        for words in nx.connected_components(graph):
            # The one that is named first, so that it does not depend on the hash of strings.
            stands = min(words, key=self._place.__getitem__)
            first |= dict.fromkeys(words, stands)
        return first

    @cached_property
    def _place(self) -> Mapping[str, int]:
        words = itertools.chain.from_iterable((fact.subject, fact.object) for fact in self.facts)
        return {word: place for place, word in enumerate(dict.fromkeys(words))}

    def _directed(self, relation: str) -> nx.DiGraph:
        import networkx as nx

        graph = nx.DiGraph()
        for fact in self.of(relation):
            graph.add_edge(self.kind_of(fact.subject), self.kind_of(fact.object), fact=fact)
        return graph

    def _check_cycles(self) -> None:
        import networkx as nx

        for relation in _ACYCLIC:
            graph = self._directed(relation)
            try:
                edges = nx.find_cycle(graph)
            except nx.NetworkXNoCycle:
                continue
            facts = [graph.edges[a, b]["fact"] for a, b in edges]
            more = f" and {len(facts) - _SHOWN} more" if len(facts) > _SHOWN else ""
            raise HypernymCycleError(
                f"A cycle of {relation}: {', '.join(map(str, facts[:_SHOWN]))}{more}. With synonyms taken as one word, "
                f"{shown(facts[0].subject)} would be above itself. Remove one of these facts."
            )

    def _check_contradictions(self) -> None:
        for relation in ("antonym", "disjoint"):
            for fact in self.of(relation):
                both = self.members(fact.subject) & self.members(fact.object)
                if both:
                    word = min(both, key=self._place.__getitem__)
                    raise ContradictionError(
                        f"{fact} says that nothing is both, and {shown(word)} is: by its hypernyms or synonyms it is "
                        f"{shown(fact.subject)} and {shown(fact.object)}. Remove this fact or one of those."
                    )
        known: dict[str, Fact] = {}
        for fact in self.of("polarity"):
            other = known.setdefault(self.kind_of(fact.subject), fact)
            if other.object != fact.object:
                raise ContradictionError(
                    f"{other} and {fact} give one meaning both polarities"
                    + ("." if other.subject == fact.subject else ", since the words are synonyms.")
                    + " Remove one of them."
                )


def _check_words(facts: tuple[Fact, ...], own_relations: frozenset[str]) -> None:
    if not facts:
        raise KnowledgeError("The graph has no facts. Give at least one (subject, relation, object).")
    values = {"polarity": POLARITIES, "form": FORMS}
    for fact in facts:
        if fact.relation not in RELATIONS and fact.relation not in own_relations:
            known = ", ".join([*RELATIONS, *sorted(own_relations)])
            raise UnknownRelationError(
                f"{fact}: there is no relation {shown(fact.relation)}. Known: {known}. A relation of your own needs a "
                "template under `statements`."
            )
        if not fact.subject or not fact.object:
            raise KnowledgeError(f"{fact}: a word is empty. Fill it, or remove the fact.")
        if fact.object not in values.get(fact.relation, (fact.object,)):
            raise KnowledgeError(f"{fact}: {fact.relation} is one of {', '.join(values[fact.relation])}.")
        if fact.relation in ("antonym", "disjoint") and fact.subject == fact.object:
            raise ContradictionError(f"{fact}: a word cannot exclude itself. Remove the fact.")
