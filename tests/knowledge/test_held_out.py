"""Held-out branches: no word in common, the labels of hypernyms, the folder that `lr-dist prototypes` writes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from lr_dist.errors import ConfigurationError, KnowledgeError
from lr_dist.knowledge.prototypes.config import PrototypesConfig
from lr_dist.knowledge.prototypes.examples import examples_of
from lr_dist.knowledge.prototypes.files import read_graph
from lr_dist.knowledge.prototypes.folder import write_prototypes
from lr_dist.knowledge.prototypes.graph import Fact, KnowledgeGraph
from lr_dist.knowledge.prototypes.held_out import hold_out_branches, split_in_two, words_in
from lr_dist.knowledge.prototypes.templates import Frame, Templates
from lr_dist.tasks import load_task
from lr_dist.tasks.task import text_keys

PLAIN = Templates({"noun": (Frame("{word}", "not {word}"),)}, {}, {})


def tree(branches: int, leaves: int = 3) -> KnowledgeGraph:
    """entity > kind > sort > leaf; every leaf is written in a second way, and is a part of the next branch's kind."""
    triples = []
    for b in range(branches):
        triples += [(f"kind{b}", "hypernym", "entity"), (f"sort{b}", "hypernym", f"kind{b}")]
        for leaf in range(leaves):
            word = f"leaf{b}x{leaf}"
            triples += [(word, "hypernym", f"sort{b}"), (word, "synonym", f"same{b}x{leaf}"), (word, "form", "noun")]
            triples.append((word, "part-of", f"kind{(b + 1) % branches}"))
    return KnowledgeGraph.from_triples(triples)


def test_held_out_branches_share_no_word_with_the_rest() -> None:
    graph = tree(30)
    rest, held = hold_out_branches(graph, 0.3)
    assert not words_in(rest) & words_in(held)
    # Synonyms and forms go with their word; what would join both sides is dropped, and nothing else is.
    kept = set(rest.facts) | set(held.facts)
    sides = [words_in(rest), words_in(held)]
    for fact in graph.facts:
        words = {fact.subject} if fact.relation == "form" else {fact.subject, fact.object}
        assert (fact in kept) == any(words <= side for side in sides), fact
    nouns = len(graph.taxonomy)
    assert 0.3 * nouns <= len(held.taxonomy) <= 0.45 * nouns
    assert hold_out_branches(graph, 0.3)[1] == held
    assert hold_out_branches(graph, 0.3, seed=1)[1] != held


def test_a_graph_without_branches_cannot_be_cut() -> None:
    with pytest.raises(KnowledgeError, match="cannot be cut"):
        hold_out_branches(KnowledgeGraph.from_triples([("dog", "hypernym", "animal")]), 0.3)
    with pytest.raises(KnowledgeError, match="between 0 and 1, not 0"):
        hold_out_branches(tree(5), 0.0)


def test_two_parts_share_no_word_and_lose_no_fact() -> None:
    _, held = hold_out_branches(tree(60), 0.3)
    first, second = split_in_two(held)
    assert not words_in(first) & words_in(second)
    assert set(first.facts) | set(second.facts) == set(held.facts)
    sizes = [len(each.taxonomy) for each in (first, second)]
    assert min(sizes) >= 0.4 * sum(sizes)
    assert split_in_two(held)[0] == first
    with pytest.raises(KnowledgeError, match="words of one branch"):
        split_in_two(KnowledgeGraph.from_triples([("dog", "hypernym", "mammal"), ("cat", "hypernym", "mammal")]))


def test_hypernyms_are_entailed_upwards_only() -> None:
    graph = tree(4)
    found = {example.texts: example for example in examples_of("hypernyms", graph, PLAIN)}
    for (a, b), example in found.items():
        upwards = b in {word for word, _ in graph.ancestors(a, 3)}
        assert example.label == ("entailment" if upwards else "not_entailment")
        if example.pattern == "unrelated":
            assert not graph.are_related(a, b)
        elif example.pattern == "reversed":
            assert a in {word for word, _ in graph.ancestors(b, 3)}
    assert {example.pattern for example in found.values()} >= {"reversed", "unrelated"}
    assert not any("not" in text.split() for texts in found for text in texts)


def test_two_words_are_related_at_any_distance() -> None:
    chain = [(f"w{i}", "hypernym", f"w{i + 1}") for i in range(6)]
    graph = KnowledgeGraph.from_triples([*chain, ("w0", "synonym", "v0"), ("x", "hypernym", "w6")])
    assert graph.are_related("w0", "w6")
    assert graph.are_related("w6", "v0")
    assert graph.are_related("w0", "v0")
    assert not graph.are_related("x", "w0")
    assert not graph.are_related("x", "unknown")


def test_the_folder_has_a_task_of_other_words(tmp_path: Path) -> None:
    source = tmp_path / "tree.json"
    # A subject like a comment, and white space within one.
    triples = [[f.subject, f.relation, f.object] for f in tree(60).facts]
    source.write_text(json.dumps([*triples, ["#1", "synonym", "first\tone"]]), encoding="utf-8")
    config = PrototypesConfig(knowledge=str(source), kind="hypernyms", hold_out=0.4, per_class=30)
    lines = write_prototypes(config, tmp_path / "made")
    about = json.loads((tmp_path / "made" / "prototypes.json").read_text())
    assert about["held_out"]["common"] == 0
    assert about["prototypes"]["leakage"]["checked"] > 0
    assert any("0 words in common" in line for line in lines)
    rows = {
        name: [json.loads(line) for line in (tmp_path / "made" / name).read_text().splitlines()]
        for name in ("train.jsonl", "validation.jsonl", "held-out/train.jsonl", "held-out/validation.jsonl")
    }
    words = {
        name: {
            word.strip(".")
            for row in each
            for word in f"{row['premise']} {row['hypothesis']}".split()
            if any(letter.isdigit() for letter in word)
        }
        for name, each in rows.items()
    }
    learned = words["train.jsonl"] | words["validation.jsonl"]
    kept = read_graph(str(tmp_path / "made" / "knowledge.tsv"))
    assert learned <= words_in(kept)
    assert Fact("#1", "synonym", "first one") in kept.facts
    for name in ("held-out/train.jsonl", "held-out/validation.jsonl"):
        assert not words[name] & learned
        counts = Counter(row["label"] for row in rows[name])
        assert len(set(counts.values())) == 1, counts
        assert set(counts) == {"entailment", "not_entailment"}
    assert not words["held-out/train.jsonl"] & words["held-out/validation.jsonl"]
    task = load_task(f"held={tmp_path / 'made' / 'held-out'}")
    assert len(text_keys(task.validation)) == len(rows["held-out/validation.jsonl"])


def test_a_share_to_hold_out_is_checked() -> None:
    with pytest.raises(ConfigurationError, match="to below 1, not 1"):
        PrototypesConfig(knowledge="everyday", hold_out=1.0)
    with pytest.raises(ConfigurationError, match="an equation has none"):
        PrototypesConfig(knowledge="pendulum.yaml", hold_out=0.2)
