"""Three small generated tasks, for real learning and forgetting without a download.

Each is balanced, and generated in pure Python from a fixed seed, so the rows are the same everywhere. They share their
words on purpose: `terrible` decides the label of `demo-sentiment`, but does not matter in `demo-acceptability` (where
only the order counts) or in `demo-entailment` (where only the hypernym graph counts). So an encoder that is trained
long on one of them loses features that another needs.

- `demo-acceptability`: is the word order English? Every bag of words occurs once in order and once out of order.
- `demo-entailment`: does the first sentence entail the second? It does if the second names a hypernym of
  the first's noun; every such pair also occurs in the other direction, in which it does not.
- `demo-sentiment`: does the writer like it? Adjectives, negated or contrasted in templates.

Validation holds bags of words, pairs of sentences and (noun, adjective) combinations that are not in train.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from lr_dist.errors import UnknownTaskError

if TYPE_CHECKING:
    from datasets import Dataset

    from lr_dist.tasks.task import RawTask

DEMO_TASKS: tuple[str, ...] = ("demo-acceptability", "demo-entailment", "demo-sentiment")
TRAIN_ROWS = 720
VALIDATION_ROWS = 200
_SEED = "lr-dist demo tasks 1"

Row = tuple[str, "str | None", int]

GOOD = ("wonderful", "lovely", "great", "charming", "superb", "pleasant", "brilliant", "delightful")
BAD = ("bad", "terrible", "dreadful", "nasty", "horrible", "poor", "boring", "miserable")
NOUNS = ("film", "book", "meal", "song", "hotel", "garden", "concert", "story", "room", "show", "speech", "trip")
# child -> parent. Each path upwards is a chain of hypernyms.
HYPERNYMS = {
    "poodle": "dog", "terrier": "dog", "dog": "animal", "cat": "animal", "horse": "animal",
    "eagle": "bird", "sparrow": "bird", "bird": "animal", "salmon": "fish", "trout": "fish", "fish": "animal",
    "surgeon": "doctor", "dentist": "doctor", "doctor": "person", "baker": "person", "teacher": "person",
    "violin": "instrument", "piano": "instrument", "guitar": "instrument", "instrument": "object",
    "hammer": "tool", "saw": "tool", "tool": "object", "taxi": "car", "car": "vehicle", "truck": "vehicle",
    "vehicle": "object", "apple": "fruit", "banana": "fruit", "fruit": "food", "bread": "food", "food": "object",
}  # fmt: skip


def demo_rows(name: str) -> tuple[list[Row], list[Row]]:
    """The rows (text_a, text_b or None, label) of a demo task.

    Args:
        name: One of `DEMO_TASKS`.

    Returns:
        Train rows (`TRAIN_ROWS`) and validation rows (`VALIDATION_ROWS`), each balanced over the classes.

    Raises:
        UnknownTaskError: No demo task of that name.
    """
    if name not in _GENERATORS:
        raise UnknownTaskError(f"no demo task named {name!r}; there are: {', '.join(DEMO_TASKS)}")
    rng = random.Random(f"{_SEED}: {name}")
    train, validation = _GENERATORS[name](rng)
    return _balanced(train, TRAIN_ROWS, rng), _balanced(validation, VALIDATION_ROWS, rng)


def load_demo(name: str) -> RawTask:
    """Generates a demo task.

    Raises:
        UnknownTaskError: No demo task of that name.
    """
    from lr_dist.tasks.task import RawTask, make_split

    train, validation = demo_rows(name)
    classes = {
        "demo-acceptability": ("unacceptable", "acceptable"),
        "demo-entailment": ("entailment", "not_entailment"),
        "demo-sentiment": ("negative", "positive"),
    }[name]

    def split(rows: list[Row]) -> Dataset:
        second = [row[1] for row in rows if row[1] is not None]
        return make_split([row[0] for row in rows], second or None, [row[2] for row in rows], "classification")

    metrics = ("matthews", "accuracy") if name == "demo-acceptability" else ("accuracy",)
    return RawTask(
        name=name,
        kind="classification",
        classes=classes,
        metrics=metrics,
        train=split(train),
        validation=split(validation),
        note="generated",
    )


def _balanced(rows: list[Row], size: int, rng: random.Random) -> list[Row]:
    """`size` rows in random order, with equal numbers of each label."""
    labels = sorted({row[2] for row in rows})
    chosen: list[Row] = []
    for label in labels:
        chosen += rng.sample([row for row in rows if row[2] == label], size // len(labels))
    rng.shuffle(chosen)
    return chosen


def _acceptability(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Sentences in order (1), and the same words with neighbours of different kind swapped (0)."""
    things = [noun for noun in HYPERNYMS if HYPERNYMS[noun] != "object"]
    people = ("surgeon", "dentist", "baker", "teacher", "doctor", "singer", "farmer", "painter")
    verbs = ("praised", "found", "sold", "wanted", "watched", "carried", "bought", "liked", "lost", "described")
    places = ("garden", "hotel", "room", "kitchen", "school", "station", "market", "park")
    bags: dict[str, Row] = {}
    size = (TRAIN_ROWS + VALIDATION_ROWS) // 2
    pairs: list[tuple[Row, Row]] = []
    while len(pairs) < size:
        adjective = rng.choice(GOOD + BAD)
        words = ["the", rng.choice(people), rng.choice(verbs), "a", adjective, rng.choice(things)]
        words += ["in", "the", rng.choice(places)]
        if rng.random() < 0.5:
            words[1:2] = [rng.choice(GOOD + BAD), words[1]]
        bag = " ".join(sorted(words))
        if bag in bags:
            continue
        good = (" ".join(words), None, 1)
        bags[bag] = good
        pairs.append((good, (" ".join(_disorder(words, rng)), None, 0)))
    cut = TRAIN_ROWS // 2
    return [row for pair in pairs[:cut] for row in pair], [row for pair in pairs[cut:] for row in pair]


def _disorder(words: list[str], rng: random.Random) -> list[str]:
    """The same words with one pair of neighbours swapped, so that they are not a sentence."""
    words = list(words)
    verb = 2 if words[3] == "a" else 3
    # "a great dog" -> "a dog great"; "a great dog" -> "great a dog"; "the baker sold a" -> "the sold baker a".
    first = rng.choice((verb + 2, verb + 1, verb - 1))
    words[first], words[first + 1] = words[first + 1], words[first]
    return words


def hypernyms(noun: str) -> list[str]:
    """All words above `noun` in the graph, the nearest first."""
    above = []
    while noun in HYPERNYMS:
        noun = HYPERNYMS[noun]
        above.append(noun)
    return above


def _entailment(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """A pair entails (0) if the second names a hypernym; reversed, or with a sister word, it does not (1)."""
    frames = (
        "the {} was near the house", "she saw the {} in the garden", "the {} appeared in the film",
        "they found the {} in the room", "the story is about the {}", "he described the {} to me",
        "we left the {} at the hotel", "the {} was {adj}", "everybody knew the {adj} {}",
        "they talked about the {adj} {}",
    )  # fmt: skip
    steps = [(noun, above) for noun in HYPERNYMS for above in hypernyms(noun)]
    entailed: list[tuple[Row, Row]] = []
    for low, high in steps:
        for frame in frames:
            adjective = rng.choice(GOOD + BAD)
            a, b = (frame.format(word, adj=adjective) for word in (low, high))
            others = sorted(set(HYPERNYMS) - set(hypernyms(low)) - {low})
            c = frame.format(rng.choice(others), adj=adjective)
            wrong = (b, a, 1) if rng.random() < 0.5 else (a, c, 1)
            entailed.append(((a, b, 0), wrong))
    rng.shuffle(entailed)
    cut = len(entailed) * 3 // 4
    seen = {row[:2] for pair in entailed[:cut] for row in pair}
    held_out = [row for pair in entailed[cut:] for row in pair if row[:2] not in seen]
    return _unique([row for pair in entailed[:cut] for row in pair]), _unique(held_out)


def _sentiment(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Opinions about a noun; every template is used with good and bad adjectives, and four negate the meaning."""
    templates = (
        ("the {noun} was {adj}", False), ("i found the {noun} {adj}", False), ("what a {adj} {noun}", False),
        ("we all thought the {noun} was really {adj}", False), ("the {noun} was not {adj}", True),
        ("nobody would call this {noun} {adj}", True), ("i expected a {adj} {noun} , but it was {other}", True),
        ("i expected a {other} {noun} , but it was {adj}", False), ("the {noun} was anything but {adj}", True),
    )  # fmt: skip
    train: list[Row] = []
    validation: list[Row] = []
    for noun in NOUNS:
        # A quarter of each noun's adjectives is held out for validation, in every template.
        held_out = {word for words in (GOOD, BAD) for word in rng.sample(words, len(words) // 4)}
        for rows, adjectives in ((train, {*GOOD, *BAD} - held_out), (validation, held_out)):
            # Sorted, because the order of a set of texts differs between processes.
            for adjective in sorted(adjectives):
                positive = int(adjective in GOOD)
                opposites = sorted(word for word in adjectives if (word in GOOD) != positive)
                for template, turned in templates:
                    text = template.format(noun=noun, adj=adjective, other=rng.choice(opposites))
                    rows.append((text, None, 1 - positive if turned else positive))
    return _unique(train), _unique(validation)


def _unique(rows: list[Row]) -> list[Row]:
    return list(dict.fromkeys(rows))


_GENERATORS: dict[str, Callable[[random.Random], tuple[list[Row], list[Row]]]] = {
    "demo-acceptability": _acceptability,
    "demo-entailment": _entailment,
    "demo-sentiment": _sentiment,
}
