"""Hold out whole branches of a graph, so that a test is about words that no prototype has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lr_dist.checks import check_finite
from lr_dist.errors import KnowledgeError
from lr_dist.knowledge.prototypes.graph import Fact, KnowledgeGraph
from lr_dist.tasks.draw import draw_order

if TYPE_CHECKING:
    import networkx as nx

# A branch is a word with all of its hyponyms: so many words at least, and at most this share of what is wanted.
_LEAST_WORDS = 3
_MOST_OF_ALL = 0.1
# Relations whose object is a value, not a word.
_VALUES = ("form", "polarity")


def hold_out_branches(graph: KnowledgeGraph, share: float, seed: int = 0) -> tuple[KnowledgeGraph, KnowledgeGraph]:
    """Cut a graph into two that have no word in common.

    Whole branches (a word with all of its hyponyms, and the synonyms of these) are held out, in random order, until
    they have the share of the words with hypernyms. Facts about words of both sides are dropped. So a pair of a word
    and its hypernym is on one side with both words: what a model learned of single words ("animal is a general word")
    cannot be what it is tested on (Levy et al. 2015, "Do supervised distributional methods really learn lexical
    inference relations?").

    Args:
        graph: with hypernyms.
        share: of the words, between 0 and 1.
        seed: of the draw.

    Returns:
        The graph without the branches, and the branches.

    Raises:
        KnowledgeError: a share out of range, or too few hypernyms for that.
    """
    if not 0 < check_finite("hold_out", share, error=KnowledgeError) < 1:
        raise KnowledgeError(f"hold_out is a share of the words between 0 and 1, not {share}.")
    taxonomy = graph.taxonomy
    wanted = share * len(taxonomy)
    most = max(_LEAST_WORDS, _MOST_OF_ALL * wanted)
    branches = [branch for word in taxonomy if _LEAST_WORDS <= len(branch := _branch(taxonomy, word)) <= most]
    held: set[str] = set()
    for index in draw_order(len(branches), f"held-out branches {seed}"):
        if len(held) >= wanted:
            break
        held |= branches[index]
    inside: list[Fact] = []
    outside: list[Fact] = []
    for fact in graph.facts:
        sides = {graph.kind_of(word) in held for word in _words(fact)}
        if len(sides) == 1:
            (inside if sides.pop() else outside).append(fact)
    for side in (inside, outside):
        if not any(fact.relation == "hypernym" for fact in side):
            raise KnowledgeError(
                f"A graph of {len(taxonomy)} words with hypernyms and {len(branches)} small branches cannot be cut so "
                f"that both sides keep some (hold_out {share}). Give more facts of hypernymy, or another share."
            )
    own = graph.own_relations
    return KnowledgeGraph(tuple(outside), own), KnowledgeGraph(tuple(inside), own)


def split_in_two(graph: KnowledgeGraph, seed: int = 0) -> tuple[KnowledgeGraph, KnowledgeGraph]:
    """Two parts of a graph that have no word in common, of about the same size; no fact is dropped.

    Args:
        graph: such as the branches that `hold_out_branches` gives, which no fact joins.
        seed: of the draw.

    Raises:
        KnowledgeError: facts join all words with hypernyms.
    """
    import networkx as nx

    joined = nx.Graph()
    for fact in graph.facts:
        words = _words(fact)
        joined.add_edge(words[0], words[-1])
    # In the order of their first words, which no hash of strings decides.
    parts: dict[int, list[str]] = {}
    number = {word: k for k, words in enumerate(nx.connected_components(joined)) for word in words}
    for word in joined:
        parts.setdefault(number[word], []).append(word)
    hypernyms = {word for fact in graph.of("hypernym") for word in (fact.subject, fact.object)}
    components = list(parts.values())
    sides: tuple[set[str], set[str]] = (set(), set())
    counts = [0, 0]
    # The largest first, so that both sides come out alike.
    order = draw_order(len(components), f"two parts {seed}")
    for index in sorted(order, key=lambda index: -len(hypernyms.intersection(components[index]))):
        side = counts.index(min(counts))
        sides[side].update(components[index])
        counts[side] += len(hypernyms.intersection(components[index]))
    if not min(counts):
        raise KnowledgeError(
            f"{len(graph.facts)} facts cannot be parted so that both parts have hypernyms: they are all about words of "
            "one branch. Hold out more, or give more facts."
        )
    first, second = (tuple(fact for fact in graph.facts if fact.subject in side) for side in sides)
    return KnowledgeGraph(first, graph.own_relations), KnowledgeGraph(second, graph.own_relations)


def words_in(graph: KnowledgeGraph) -> set[str]:
    """The words that a graph's facts are about."""
    return {word for fact in graph.facts for word in _words(fact)}


def _branch(taxonomy: nx.DiGraph, word: str) -> set[str]:
    import networkx as nx

    return {word, *nx.ancestors(taxonomy, word)}  # edges lead from a word to its hypernyms


def _words(fact: Fact) -> tuple[str, ...]:
    return (fact.subject,) if fact.relation in _VALUES else (fact.subject, fact.object)
