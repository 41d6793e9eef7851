"""Facts are checked: cycles, contradictions, unknown relations; and read from TSV, JSON, networkx and WordNet."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pytest

from lr_dist.errors import (
    ContradictionError,
    HypernymCycleError,
    KnowledgeError,
    UnknownRelationError,
    UnreadableFileError,
)
from lr_dist.knowledge.prototypes.files import SHIPPED, read_graph
from lr_dist.knowledge.prototypes.graph import Fact, KnowledgeGraph

DOG = ("dog", "hypernym", "animal")


@pytest.mark.parametrize(
    ("triples", "error", "message"),
    [
        (
            [DOG, ("animal", "hypernym", "thing"), ("thing", "hypernym", "dog")],
            HypernymCycleError,
            "thing, hypernym, dog",
        ),
        ([("dog", "hypernym", "dog")], HypernymCycleError, "above itself"),
        # Only with synonyms taken as one word.
        (
            [DOG, ("animal", "synonym", "beast"), ("beast", "hypernym", "dog")],
            HypernymCycleError,
            "beast, hypernym, dog",
        ),
        ([("wheel", "part-of", "car"), ("car", "part-of", "wheel")], HypernymCycleError, "cycle of part-of"),
        ([("hot", "synonym", "cold"), ("hot", "antonym", "cold")], ContradictionError, "hot, antonym, cold"),
        # Over a third word.
        (
            [("hot", "synonym", "warm"), ("warm", "synonym", "mild"), ("hot", "antonym", "mild")],
            ContradictionError,
            "nothing is both",
        ),
        ([("hot", "antonym", "hot")], ContradictionError, "exclude itself"),
        (
            [("bat", "hypernym", "bird"), ("bat", "hypernym", "mammal"), ("bird", "disjoint", "mammal")],
            ContradictionError,
            "'bat' is",
        ),
        ([("dog", "hypernym", "animal"), ("dog", "disjoint", "animal")], ContradictionError, "'dog' is"),
        ([("fine", "polarity", "positive"), ("fine", "polarity", "negative")], ContradictionError, "both polarities"),
        (
            [("fine", "synonym", "okay"), ("fine", "polarity", "positive"), ("okay", "polarity", "negative")],
            ContradictionError,
            "the words are synonyms",
        ),
        ([("dog", "hyponym", "animal")], UnknownRelationError, "no relation 'hyponym'"),
        ([("fine", "polarity", "good")], KnowledgeError, "negative, positive"),
        ([("dog", "form", "noum")], KnowledgeError, "form is one of"),
        ([("dog", "hypernym", "  ")], KnowledgeError, "a word is empty"),
        ([("dog", "hypernym")], KnowledgeError, "three texts"),
        ([], KnowledgeError, "no facts"),
    ],
)
def test_a_graph_that_cannot_be_true_is_refused_by_name(triples: list, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        KnowledgeGraph.from_triples(triples)


def test_a_relation_of_a_users_templates_is_known() -> None:
    graph = KnowledgeGraph.from_triples([("Paris", "capital-of", "France")], ["capital-of"])
    assert graph.of("capital-of") == (Fact("Paris", "capital-of", "France"),)


def test_ancestors_go_up_step_by_step_through_synonyms() -> None:
    graph = KnowledgeGraph.from_triples(
        [
            ("poodle", "hypernym", "dog"),
            ("hound", "synonym", "dog"),
            ("hound", "hypernym", "mammal"),
            ("mammal", "hypernym", "animal"),
        ]
    )
    kind = graph.kind_of("dog")
    assert [(parent, len(facts)) for parent, facts in graph.ancestors("poodle", 9)] == [
        (kind, 1),
        ("mammal", 2),
        ("animal", 3),
    ]
    assert [parent for parent, _ in graph.ancestors("poodle", 2)] == [kind, "mammal"]


def test_repeated_and_mirrored_facts_count_once() -> None:
    graph = KnowledgeGraph.from_triples([DOG, DOG, ("hot", "antonym", "cold"), ("cold", "antonym", "hot")])
    assert len(graph.facts) == 2


def test_a_word_may_hold_characters_that_end_a_line_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "graph.tsv").write_text("caf\xe9\u2028bar\thypernym\tplace\n", encoding="utf-8")
    (fact,) = read_graph(str(tmp_path / "graph.tsv")).facts
    assert fact.subject == "caf\xe9\u2028bar"


def test_networkx_and_back() -> None:
    graph = KnowledgeGraph.from_triples([DOG, ("hot", "antonym", "cold")])
    assert KnowledgeGraph.from_networkx(graph.to_networkx()).facts == graph.facts
    with pytest.raises(UnknownRelationError):
        KnowledgeGraph.from_networkx(nx.DiGraph([("dog", "animal")]))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_graphs_are_sound_and_have_some_hundred_facts(name: str) -> None:
    assert 400 < len(read_graph(name).facts) < 1000


def test_tsv_and_json_hold_the_same_graph_and_errors_name_the_line(tmp_path: Path) -> None:
    tsv, as_json = tmp_path / "facts.tsv", tmp_path / "facts.json"
    tsv.write_text("# facts\n\ndog\thypernym\tanimal\nhot\tantonym\tcold\n")
    as_json.write_text(json.dumps([DOG, ["hot", "antonym", "cold"]]))
    assert read_graph(str(tsv)).facts == read_graph(str(as_json)).facts
    tsv.write_text("dog\thypernym\tanimal\ndog is an animal\n")
    with pytest.raises(KnowledgeError, match="line 2: 'dog is an animal' has 1 part"):
        read_graph(str(tsv))
    as_json.write_text('{"dog": "animal"}')
    with pytest.raises(KnowledgeError, match="must hold a list"):
        read_graph(str(as_json))
    tsv.write_bytes(b"dog\thypernym\t\xff\n")
    with pytest.raises(KnowledgeError, match="not UTF-8"):
        read_graph(str(tsv))
    with pytest.raises(UnreadableFileError, match="everyday or polarity"):
        read_graph("everydy")


NOUNS = """\
  1 This software and database is being provided to you
00000010 03 n 01 animal 0 001 ~ 00000020 n 0000 | a living organism
00000020 05 n 02 dog 0 domestic_dog 0 002 @ 00000010 n 0000 #m 00000090 n 0000 | a member of the genus
00000030 05 n 02 puppy 0 whelp 0 001 @ 00000020 n 0000 | a young dog
00000040 08 n 01 tail 0 001 #p 00000020 n 0000 | the rear part
00000050 18 n 01 puppy 1 001 @ 00000060 n 0000 | an inexperienced young person
00000060 18 n 01 youth 0 002 @ 00000010 n 0000 ! 00000070 n 0101 | a young person
00000070 18 n 01 elder 0 001 ! 00000060 n 0101 | an old person
00000080 18 n 01 Fido 0 001 @i 00000020 n 0000 | a name
"""
NOUN_INDEX = """\
  1 This software and database is being provided to you
animal n 1 1 ~ 1 1 00000010
dog n 1 2 @ #m 1 1 00000020
domestic_dog n 1 2 @ #m 1 0 00000020
elder n 1 1 ! 1 1 00000070
fido n 1 1 @ 1 0 00000080
puppy n 2 1 @ 2 1 00000030 00000050
tail n 1 1 #p 1 1 00000040
whelp n 1 1 @ 1 0 00000030
youth n 1 2 @ ! 1 1 00000060
"""
ADJECTIVES = """\
00000100 00 a 01 hot 0 001 ! 00000110 a 0101 | used of physical heat
00000110 00 a 01 cold 0 001 ! 00000100 a 0101 | having a low temperature
00000120 00 s 01 galore(ip) 0 001 & 00000100 a 0000 | in great numbers
"""
ADJECTIVE_INDEX = "cold a 1 1 ! 1 1 00000110\ngalore a 1 1 & 1 0 00000120\nhot a 1 1 ! 1 1 00000100\n"


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    texts = {"data.noun": NOUNS, "index.noun": NOUN_INDEX, "data.adj": ADJECTIVES, "index.adj": ADJECTIVE_INDEX}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_wordnets_files_are_read_by_first_senses(wordnet: Path) -> None:
    facts = {(fact.subject, fact.relation, fact.object) for fact in read_graph(f"wordnet:{wordnet}").facts}
    assert facts == {
        ("dog", "hypernym", "animal"),
        ("puppy", "hypernym", "dog"),  # not youth, which is its second sense
        ("youth", "hypernym", "animal"),
        ("puppy", "synonym", "whelp"),
        ("tail", "part-of", "dog"),
        ("elder", "antonym", "youth"),
        ("cold", "antonym", "hot"),
    }


def test_a_damaged_wordnet_file_is_named_with_its_line(wordnet: Path) -> None:
    (wordnet / "data.noun").write_text(NOUNS.replace("00000020 05 n 02", "00000020 05 n xx"))
    with pytest.raises(KnowledgeError, match=r"data\.noun, line 3"):
        read_graph(f"wordnet:{wordnet}")
    (wordnet / "data.adj").unlink()
    (wordnet / "data.noun").write_text(NOUNS)
    with pytest.raises(UnreadableFileError, match="wordnet-base"):
        read_graph(f"wordnet:{wordnet}")
