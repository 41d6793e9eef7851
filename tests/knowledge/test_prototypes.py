"""Prototypes: labels that follow from the facts, balance, no duplicates, no test text, the same for the same seed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from lr_dist.errors import InvalidYAMLError, KnowledgeError, TemplateError
from lr_dist.knowledge.prototypes.examples import examples_of, polarity_examples
from lr_dist.knowledge.prototypes.files import read_graph
from lr_dist.knowledge.prototypes.graph import KnowledgeGraph
from lr_dist.knowledge.prototypes.leakage import key_of
from lr_dist.knowledge.prototypes.prototypes import make_prototypes
from lr_dist.knowledge.prototypes.templates import Frame, Templates

PLAIN = Templates(
    pairs={"noun": (Frame("{word}", "not {word}"),), "adjective": (Frame("{word}", "not {word}"),)},
    statements={"hypernym": (Frame("{subject} is {object}", "{subject} is not {object}"),)},
    polarity={"adjective": ("{word}",)},
)
GRAPH = KnowledgeGraph.from_triples(
    [
        ("poodle", "hypernym", "dog"),
        ("dog", "hypernym", "mammal"),
        ("owl", "hypernym", "bird"),
        ("mammal", "disjoint", "bird"),
        ("hot", "antonym", "cold"),
        ("big", "synonym", "large"),
    ]
)


def labels(kind: str, graph: KnowledgeGraph = GRAPH, templates: Templates = PLAIN) -> dict[tuple[str, ...], str]:
    return {example.texts: example.label for example in examples_of(kind, graph, templates)}


def test_pairs_follow_from_the_facts_and_reversed_hypernymy_is_neutral() -> None:
    pairs = labels("pairs")
    for below, above in (("poodle", "dog"), ("dog", "mammal"), ("poodle", "mammal")):
        assert pairs[below, above] == "entailment"
        assert pairs[below, f"not {above}"] == "contradiction"
        assert pairs[above, below] == pairs[above, f"not {below}"] == "neutral"
    for a, b in (("mammal", "bird"), ("poodle", "owl"), ("owl", "dog"), ("hot", "cold"), ("cold", "hot")):
        assert pairs[a, b] == "contradiction"
        assert pairs[a, f"not {b}"] == "entailment"
    assert pairs["big", "large"] == pairs["large", "big"] == "entailment"
    assert pairs["big", "not large"] == "contradiction"
    # What the facts do not decide is left out.
    assert ("not cold", "hot") not in pairs
    assert ("big", "hot") not in pairs


def test_no_pair_of_the_shipped_graph_contradicts_another() -> None:
    graph = read_graph("everyday")
    pairs = labels("pairs", graph, PLAIN)
    for (a, b), label in pairs.items():
        if b.startswith("not "):
            continue
        opposite = {"entailment": "contradiction", "contradiction": "entailment", "neutral": "neutral"}[label]
        assert pairs[a, f"not {b}"] == opposite
        if label == "contradiction":
            assert pairs[b, a] == "contradiction"
        if label == "neutral":
            assert pairs[b, a] == "entailment"


def test_statements_are_true_or_false_with_their_denials() -> None:
    statements = labels("statements")
    assert statements[("poodle is mammal",)] == statements[("owl is not dog",)] == "true"
    assert statements[("poodle is not mammal",)] == statements[("owl is dog",)] == "false"


def test_synonyms_share_their_polarity() -> None:
    graph = KnowledgeGraph.from_triples(
        [("fine", "polarity", "positive"), ("fine", "synonym", "good"), ("bad", "polarity", "negative")]
    )
    assert labels("polarity", graph) == {("fine",): "positive", ("good",): "positive", ("bad",): "negative"}


@pytest.mark.parametrize("kind", ["pairs", "statements"])
def test_prototypes_are_balanced_distinct_and_the_same_for_a_seed(kind: str) -> None:
    graph = KnowledgeGraph.from_triples(
        fact
        for name in ("everyday",)
        for fact in ((f.subject, f.relation, f.object) for f in read_graph(name).facts[:230])
    )
    made = make_prototypes(graph, kind, per_class=50, seed=3)
    assert set(Counter(example.label for example in made.examples).values()) == {50}
    assert len({key_of(example.texts) for example in made.examples}) == len(made.examples)
    assert made.fingerprint == make_prototypes(graph, kind, per_class=50, seed=3).fingerprint
    assert made.fingerprint != make_prototypes(graph, kind, per_class=50, seed=4).fingerprint
    train, test = made.split()
    assert not {example.subject for example in train} & {example.subject for example in test}
    assert {example.label for example in test} == set(made.classes)


def test_a_polarity_reaches_synonyms_of_synonyms_in_any_order_of_the_facts() -> None:
    facts = [("fine", "synonym", "great"), ("great", "synonym", "good"), ("good", "polarity", "positive")]
    for triples in (facts, facts[::-1]):
        examples = list(polarity_examples(KnowledgeGraph.from_triples(triples), PLAIN))
        assert {(each.subject, each.label) for each in examples} == {(w, "positive") for w in ("fine", "great", "good")}


def test_denials_do_not_give_the_label_away() -> None:
    made = make_prototypes(read_graph("everyday"), "pairs", PLAIN, per_class=100)
    denied = Counter(example.label for example in made.examples if example.texts[1].startswith("not "))
    assert all(abs(denied[label] - 50) <= 2 for label in made.classes)


def test_test_texts_are_left_out_and_counted() -> None:
    graph = read_graph("polarity")
    # In other case and with other punctuation; and as a part of a longer text.
    tested = [["IT WAS -- awful!"], ["superb"], ["I think this is a dreadful film , really"]]
    made = make_prototypes(graph, "polarity", per_class=600, tested=tested)
    texts = {example.texts[0] for example in made.examples}
    assert not texts & {"It was awful.", "superb"}
    assert made.leakage.removed == 2
    assert made.leakage.contained == 1
    assert made.leakage.examples[-1] == "This is a dreadful film."
    assert made.leakage.checked == 3


def test_labels_are_joined_by_name_and_balanced_again() -> None:
    made = make_prototypes(GRAPH, "pairs", PLAIN, per_class=6)
    names = {"entailment": "entailment", "neutral": "not_entailment", "contradiction": "not_entailment"}
    renamed = made.renamed(("entailment", "not_entailment"), names)
    assert Counter(example.label for example in renamed.examples) == {"entailment": 6, "not_entailment": 6}
    task = make_prototypes(read_graph("polarity"), "polarity").to_task("prototypes", "sst2")
    assert task.classes == ("negative", "positive")
    assert task.head == "sst2"


def test_articles_follow_the_form_and_the_sound() -> None:
    graph = KnowledgeGraph.from_triples(
        [(word, "hypernym", "object") for word in ("owl", "dog", "milk", "hour", "university", "sun", "umbrella")]
        + [("milk", "form", "mass"), ("sun", "form", "unique")]
    )
    templates = Templates(
        {}, {"hypernym": (Frame("{A subject} is {a object}.", "{A subject} is not {a object}."),)}, {}
    )
    said = [example.texts[0].partition(" is ")[0] for example in examples_of("statements", graph, templates)]
    assert said[::2] == ["An owl", "A dog", "Milk", "An hour", "A university", "The sun", "An umbrella"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("polarity: {adjective: ['It was good.']}", r"lacks the slot \{word\}"),
        ("polarity: {adjective: ['It was {wrod}.']}", r"has the slot \{wrod\}"),
        ("polarity: {adjective: ['It was {word}. }']}", "a single brace"),
        ("polarity: {adverbs: ['{word}']}", "no form 'adverbs'"),
        ("polarity: {adjective: []}", "at least one template"),
        ("polarity: [x]", "must map"),
        ("pairs: {noun: ['{word}']}", "`says` and `denies`"),
        ("statements: {hypernym: [{says: '{subject}', denies: '{subject} {object}'}]}", r"lacks the slot \{object\}"),
        ("sentences: {}", "must be a mapping with pairs, statements, polarity"),
    ],
)
def test_wrong_templates_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(text)
    with pytest.raises(TemplateError, match=message):
        Templates.read(str(path))


def test_a_section_of_ones_own_replaces_the_shipped_one_and_makes_its_relations_known(tmp_path: Path) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(
        "statements: {capital-of: [{says: '{subject} leads {object}.', denies: '{subject} follows {object}.'}]}"
    )
    templates = Templates.read(str(path))
    assert templates.own_relations == {"capital-of"}
    assert templates.polarity == Templates.read().polarity
    graph = KnowledgeGraph.from_triples([("Paris", "capital-of", "France")], templates.own_relations)
    assert labels("statements", graph, templates) == {
        ("Paris leads France.",): "true",
        ("Paris follows France.",): "false",
    }
    path.write_text("statements: {a: &x [1]}")
    with pytest.raises(InvalidYAMLError):
        Templates.read(str(path))


def test_templates_that_give_one_text_two_labels_are_refused() -> None:
    silent = Templates({}, {}, {"adjective": ("The same {word} thing.",), "noun": ("{word}",)})
    graph = KnowledgeGraph.from_triples([("good-", "polarity", "positive"), ("good", "polarity", "negative")])
    with pytest.raises(TemplateError, match=re.escape("(good, polarity, negative)")):
        make_prototypes(graph, "polarity", silent)


@pytest.mark.parametrize(
    ("kind", "message"), [("polarity", "no example of negative"), ("pears", "no kind of prototypes 'pears'")]
)
def test_nothing_to_make_prototypes_from_is_an_error(kind: str, message: str) -> None:
    with pytest.raises(KnowledgeError, match=message):
        make_prototypes(GRAPH, kind)
