"""`Prototypes`: a balanced, deduplicated data set that is disjoint from the test texts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lr_dist.checks import check_whole
from lr_dist.errors import KnowledgeError, TemplateError, shown
from lr_dist.knowledge.prototypes.examples import CLASSES, KINDS, Example, examples_of
from lr_dist.knowledge.prototypes.graph import KnowledgeGraph
from lr_dist.knowledge.prototypes.leakage import Leakage, Tested, key_of
from lr_dist.knowledge.prototypes.templates import Templates
from lr_dist.tasks.draw import draw_order

if TYPE_CHECKING:
    from lr_dist.tasks import Task

PER_CLASS = 200
# Of the subjects: their examples are for testing whether the prototypes were learned.
HELD_OUT = 0.1


@dataclass(frozen=True)
class Prototypes:
    """Labelled texts or pairs.

    Attributes:
        kind: "pairs", "statements", "polarity" or "hypernyms".
        classes: names of the classes.
        examples: every class as often, in random order.
        leakage: what was found in the test texts.
        duplicates: number of examples that were left out because another one has the same words.
        possible: class -> number of examples before balancing.
    """

    kind: str
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    leakage: Leakage
    duplicates: int
    possible: Mapping[str, int]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of texts and labels."""
        text = json.dumps([[*example.texts, example.label] for example in self.examples])
        return hashlib.sha256(text.encode()).hexdigest()

    def renamed(self, classes: Sequence[str], names: Mapping[str, str]) -> Prototypes:
        """The same examples with the names of other classes, balanced again.

        Args:
            classes: the new classes, in their order.
            names: class -> its new name.
        """
        examples = [replace(example, label=names[example.label]) for example in self.examples]
        least = min(Counter(example.label for example in examples).values())
        return replace(self, classes=tuple(classes), examples=tuple(_first_of_each(examples, classes, least)))

    def with_labels(self, labels: Sequence[str]) -> Prototypes:
        """The same texts with other labels, for a control."""
        pairs = zip(self.examples, labels, strict=True)
        return replace(self, examples=tuple(replace(example, label=label) for example, label in pairs))

    def split(self, share: float = HELD_OUT) -> tuple[list[Example], list[Example]]:
        """Examples to learn, and examples of held-out subjects; each holds every class.

        A pair is held out if it is about a held-out subject, so its other word may be in a learned one.

        Raises:
            KnowledgeError: too few examples for that.
        """
        subjects = sorted({example.subject for example in self.examples})
        order = draw_order(len(subjects), "held-out subjects")
        held = {subjects[index] for index in order[: max(1, round(share * len(subjects)))]}
        for index in order[len(held) :]:
            test = [example for example in self.examples if example.subject in held]
            train = [example for example in self.examples if example.subject not in held]
            if {example.label for example in test} == {example.label for example in train} == set(self.classes):
                return train, test
            held.add(subjects[index])
        raise KnowledgeError(
            f"{len(self.examples)} prototypes of {len(subjects)} words cannot be split so that both parts hold "
            f"{', '.join(self.classes)}. Give more facts."
        )

    def to_task(self, name: str, head: str = "") -> Task:
        """A task that learns them; dev and validation are the examples of held-out subjects.

        Args:
            name: of the task.
            head: see `lr_dist.tasks.Task`.
        """
        train, test = self.split()
        held_out = _split(test, self.classes)
        return _task(name, self.classes, _split(train, self.classes), held_out, head)

    def to_dict(self) -> dict[str, Any]:
        """What they are, without the texts, for a result file."""
        return {
            "kind": self.kind,
            "classes": list(self.classes),
            "examples": len(self.examples),
            "duplicates": self.duplicates,
            "possible": dict(self.possible),
            "leakage": self.leakage.to_dict(),
            "fingerprint": self.fingerprint,
        }


def make_prototypes(
    graph: KnowledgeGraph,
    kind: str,
    templates: Templates | None = None,
    *,
    per_class: int = PER_CLASS,
    seed: int = 0,
    tested: Iterable[Sequence[str]] = (),
) -> Prototypes:
    """Make prototypes from a graph.

    Args:
        graph: the facts.
        kind: "pairs" (entailment, neutral, contradiction), "statements" (false, true), "polarity" (negative,
            positive) or "hypernyms" (entailment, not_entailment).
        templates: the sentences; None: the shipped ones.
        per_class: at most so many examples of each class. A class with fewer limits all others.
        seed: of the draw. Relations take turns, and in each all facts are used once before one is used again.
        tested: the texts (or pairs) of the test set; prototypes with the same words are left out and counted.

    Raises:
        KnowledgeError: an unknown kind, or a class without examples.
        TemplateError: the templates give the same text different labels.
    """
    if kind not in KINDS:
        raise KnowledgeError(f"There is no kind of prototypes {shown(kind)}; there are: {', '.join(KINDS)}.")
    check_whole("per_class", per_class, 1, error=KnowledgeError)
    known: dict[tuple[tuple[str, ...], ...], Example] = {}
    duplicates = 0
    for example in examples_of(kind, graph, templates or Templates.read()):
        other = known.setdefault(key_of(example.texts), example)
        duplicates += other is not example
        if other.label != example.label:
            raise TemplateError(
                f"{shown(' / '.join(example.texts))} is {other.label} by {', '.join(map(str, other.facts))} and "
                f"{example.label} by {', '.join(map(str, example.facts))}. Make the templates tell them apart, or "
                "remove a fact."
            )
    against = Tested(tested)
    kept = [example for key, example in known.items() if key not in against.keys]
    removed = [example for key, example in known.items() if key in against.keys]
    classes = CLASSES[kind]
    possible = {label: sum(example.label == label for example in kept) for label in classes}
    empty = [label for label, count in possible.items() if not count]
    if empty:
        raise KnowledgeError(
            f"The graph and the templates give no example of {empty[0]} ({kind}): {possible}. Add facts (polarity for "
            "polarity; hypernym, antonym or disjoint for the others), or choose another kind."
        )
    drawn = _spread(kept, seed)
    examples = _first_of_each(drawn, classes, min(per_class, min(possible.values())))
    contained = [example for example in examples if against.contains(example.texts)] if against.keys else []
    shown_ones = (*removed[:5], *contained[: max(0, 5 - len(removed))])
    leakage = Leakage(
        len(against.keys), len(removed), len(contained), tuple(" / ".join(each.texts) for each in shown_ones)
    )
    return Prototypes(kind, classes, tuple(examples), leakage, duplicates, possible)


def _spread(examples: Sequence[Example], seed: int) -> list[Example]:
    """In random order, but so that patterns take turns, and in each a new fact comes before one that was used."""
    of_fact: Counter[Any] = Counter()
    rounds = []
    for index in draw_order(len(examples), f"prototypes {seed}"):
        example = examples[index]
        key = example.label, example.pattern, example.facts[0]
        rounds.append((of_fact[key], example))
        of_fact[key] += 1
    of_pattern: Counter[Any] = Counter()
    turns = []
    for _, example in sorted(rounds, key=lambda each: each[0]):
        pattern = example.label, example.pattern
        turns.append((of_pattern[pattern], example))
        of_pattern[pattern] += 1
    return [example for _, example in sorted(turns, key=lambda each: each[0])]


def _first_of_each(examples: Sequence[Example], classes: Sequence[str], count: int) -> list[Example]:
    left = dict.fromkeys(classes, count)
    chosen = []
    for example in examples:
        if left[example.label]:
            left[example.label] -= 1
            chosen.append(example)
    return chosen


def _split(examples: Sequence[Example], classes: Sequence[str]) -> Any:
    from lr_dist.tasks.task import make_split

    second = [example.texts[1] for example in examples] if len(examples[0].texts) == 2 else None
    labels = [classes.index(example.label) for example in examples]
    return make_split([example.texts[0] for example in examples], second, labels, "classification")


def _task(name: str, classes: tuple[str, ...], train: Any, held_out: Any, head: str) -> Task:
    from lr_dist.tasks import Task

    return Task(name, "classification", classes, ("accuracy",), train, held_out, held_out, head)
