"""Prototypes as a folder: a task that every command takes as `NAME=FOLDER`, or the points of an equation."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lr_dist.knowledge.prototypes.config import PrototypesConfig
from lr_dist.knowledge.prototypes.equations import read_equation
from lr_dist.knowledge.prototypes.examples import Example
from lr_dist.knowledge.prototypes.files import read_graph
from lr_dist.knowledge.prototypes.graph import Fact, KnowledgeGraph
from lr_dist.knowledge.prototypes.held_out import hold_out_branches, split_in_two, words_in
from lr_dist.knowledge.prototypes.prototypes import make_prototypes
from lr_dist.knowledge.prototypes.templates import Templates
from lr_dist.runs.atomic import write_json, write_text

SCHEMA_VERSION = 1
_INSTEAD = "Give another --output."


def write_prototypes(config: PrototypesConfig, folder: Path, command: str = "") -> list[str]:
    """Make prototypes and write them.

    A graph gives train.jsonl and validation.jsonl (examples of words that train is not about), an equation points.csv;
    prototypes.json says what they are made from. With words held out, held-out/ is a task on these, and knowledge.tsv
    the facts without them.

    Returns:
        Lines for the reader.

    Raises:
        LRDistError: knowledge, templates or a test task that cannot be used.
        UnwritableFileError: a file cannot be written.
    """
    about: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "kind": "prototypes", "command": command}
    about |= {"knowledge": config.knowledge, "seed": config.seed}
    if config.is_equation:
        return _write_points(config, folder, about)
    templates = Templates.read(config.templates)
    graph = read_graph(config.knowledge, templates.own_relations)
    tested = _tested(config)
    notes: list[str] = []
    if config.hold_out:
        graph, rows, part, notes = _hold_out(config, graph, templates, folder)
        tested += rows
        about["held_out"] = part
    prototypes = make_prototypes(
        graph, config.kind, templates, per_class=config.per_class, seed=config.seed, tested=tested
    )
    train, validation = prototypes.split()
    for name, examples in (("train", train), ("validation", validation)):
        write_text(folder / f"{name}.jsonl", _lines(examples), instead=_INSTEAD)
    about |= {"facts": len(graph.facts), "fingerprint": graph.fingerprint, "prototypes": prototypes.to_dict()}
    write_json(folder / "prototypes.json", about)
    leakage = prototypes.leakage
    return [
        f"{len(graph.facts)} facts of {config.knowledge}: {len(train)} examples to learn, {len(validation)} held out "
        f"({', '.join(prototypes.classes)}; {prototypes.duplicates} duplicates left out).",
        f"Compared with {leakage.checked} test texts: {leakage.removed} left out because they are among them, "
        f"{leakage.contained} are a part of one."
        if tested
        else "Compared with no test texts; name their task with --test.",
        *notes,
        f"As a task: --tasks prototypes={folder} ...",
    ]


def _hold_out(
    config: PrototypesConfig, graph: KnowledgeGraph, templates: Templates, folder: Path
) -> tuple[KnowledgeGraph, list[tuple[str, ...]], dict[str, Any], list[str]]:
    """Write the task of the held-out words; the graph without them, the task's texts, and what to say of it.

    Train and validation are made from different branches, so that few-shot examples have no word of the test either.
    """
    rest, held = hold_out_branches(graph, config.hold_out, config.seed)
    parts = split_in_two(held, config.seed)
    texts: list[tuple[str, ...]] = []
    sizes = {}
    for name, part in zip(("train", "validation"), parts, strict=True):
        made = make_prototypes(part, config.kind, templates, per_class=config.per_class, seed=config.seed)
        write_text(folder / "held-out" / f"{name}.jsonl", _lines(made.examples), instead=_INSTEAD)
        texts += [example.texts for example in made.examples]
        sizes[name] = len(made.examples)
    write_text(folder / "knowledge.tsv", "".join(map(_tsv_line, rest.facts)), instead=_INSTEAD)
    words = [words_in(each) for each in (rest, *parts)]
    common = len((words[0] & words[1]) | (words[0] & words[2]) | (words[1] & words[2]))
    about = {"share": config.hold_out, "examples": sizes, "words": [len(each) for each in words], "common": common}
    lines = [
        f"Held out: {len(words[1])} words with {sizes['train']} examples in {folder / 'held-out'}/train, and "
        f"{len(words[2])} words with {sizes['validation']} in validation; {common} words in common with each other or "
        f"with the {len(words[0])} words of {folder / 'knowledge.tsv'}.",
        f"To test on them: lr-dist informed --knowledge {folder / 'knowledge.tsv'} --kind {config.kind} "
        f"--task held-out={folder / 'held-out'} ...",
    ]
    return rest, texts, about, lines


def _tsv_line(fact: Fact) -> str:
    """A line that `read_graph` reads as this fact: no white space but spaces within a text, and no comment."""
    line = "\t".join(" ".join(text.split()) for text in (fact.subject, fact.relation, fact.object))
    return (f" {line}" if line.startswith("#") else line) + "\n"


def _write_points(config: PrototypesConfig, folder: Path, about: dict[str, Any]) -> list[str]:
    equation = read_equation(config.knowledge)
    points = equation.sample(config.per_class, config.seed)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*points.names, equation.target])
    writer.writerows(
        [*map(repr, row), repr(value)]
        for row, value in zip(points.inputs.tolist(), points.values.tolist(), strict=True)
    )
    write_text(folder / "points.csv", text.getvalue(), instead=_INSTEAD)
    write_json(folder / "prototypes.json", {**about, "equation": str(equation), "points": len(points.values)})
    return [f"{len(points.values)} points of {equation} in {folder / 'points.csv'}."]


def _tested(config: PrototypesConfig) -> list[tuple[str, ...]]:
    if config.test is None:
        return []
    from lr_dist.tasks import load_task
    from lr_dist.tasks.task import text_keys

    task = load_task(config.test, data_dir=config.data_dir)
    return [*text_keys(task.dev), *text_keys(task.validation)]


def _lines(examples: Sequence[Example]) -> str:
    keys = ("text",) if len(examples[0].texts) == 1 else ("premise", "hypothesis")
    rows = ({**dict(zip(keys, each.texts, strict=True)), "label": each.label} for each in examples)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
