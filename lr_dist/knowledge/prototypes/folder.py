"""Prototypes as a task folder, which every command takes as `NAME=FOLDER`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lr_dist.knowledge.prototypes.examples import Example
from lr_dist.knowledge.prototypes.prototypes import Prototypes
from lr_dist.runs.atomic import write_json, write_text

SCHEMA_VERSION = 1


def write_task(prototypes: Prototypes, folder: Path, about: dict[str, Any]) -> None:
    """Write train.jsonl, validation.jsonl (examples of held-out subjects) and prototypes.json.

    Args:
        prototypes: what is written.
        folder: made if needed.
        about: further keys of prototypes.json, such as where the knowledge is from.

    Raises:
        KnowledgeError: too few examples to hold some out.
        UnwritableFileError: a file cannot be written.
    """
    train, validation = prototypes.split()
    for name, examples in (("train", train), ("validation", validation)):
        write_text(folder / f"{name}.jsonl", _lines(examples), instead="Give another --output.")
    about = {"schema_version": SCHEMA_VERSION, "kind": "prototypes", **about, "prototypes": prototypes.to_dict()}
    write_json(folder / "prototypes.json", about)


def _lines(examples: Sequence[Example]) -> str:
    keys = ("text",) if len(examples[0].texts) == 1 else ("premise", "hypothesis")
    rows = ({**dict(zip(keys, each.texts, strict=True)), "label": each.label} for each in examples)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
