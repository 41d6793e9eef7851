"""From what became of each class to the evidence file, and from that to the tables of docs/architectures.md."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

Pair = tuple[str, str]
Finding = Mapping[str, Any]

COMMAND = "python tests/architectures/sweep.py --output runs/architectures"
# Outcome -> the heading of its column.
COLUMNS = {
    "right": "right",
    "unchecked": "grouped, not run",
    "several stacks": "refused: several stacks",
    "no stack": "refused: no stack",
    "in doubt": "refused: parameters in doubt",
    "unbuildable": "not built",
    "wrong": "wrong",
    "crash": "crash",
}
_REFUSALS = {
    "several stacks": r"^LayersNotFoundError: \d+ stacks of layers",
    "no stack": r"^LayersNotFoundError",
    "in doubt": r"^UnplacedParametersError",
}
_MISSING_LIBRARY = re.compile(r"requires the (\w+) library")


def summarize(mappings: Mapping[str, Sequence[Pair]], findings: Mapping[Pair, Finding]) -> dict[str, Any]:
    """The content of the evidence file.

    Args:
        mappings: AutoModel's mappings -> their classes, as far as they were examined.
        findings: (model type, class) -> what became of it (`examine.Finding.as_dict`).

    Returns:
        For each mapping and class `[outcome, layers, placed parameters, seen in the run]`, and a reason where the
        outcome is not `right`; the versions; the command.
    """
    return {
        "schema_version": 1,
        "command": COMMAND,
        "environment": {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "mappings": {
            name: {
                f"{model_type}/{class_name}": _row(findings[model_type, class_name]) for model_type, class_name in pairs
            }
            for name, pairs in mappings.items()
            if pairs
        },
    }


def render(result: Mapping[str, Any]) -> str:
    """The tables, in Markdown."""
    classes: dict[str, list[Any]] = {}
    for rows in result["mappings"].values():
        classes |= rows
    placed = [row for row in classes.values() if row[0] == "right"]
    versions = result["environment"]
    lines = [
        f"transformers {versions['transformers']}, torch {versions['torch']}; {len(classes)} model classes. Of "
        f"{sum(row[2] for row in placed):,} parameters in the classes that are right, "
        f"{sum(row[3] for row in placed):,} were seen at work in the run; the others had no part in its outputs.",
        "",
        "| mapping of AutoModel | classes | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for name, rows in result["mappings"].items():
        lines.append(_line(f"`{name}`", rows))
    lines += [_line("**all, each class once**", classes), ""]
    base = result["mappings"].get("MODEL", {})
    if base:
        lines += ["By model type, for the bare models (`MODEL`, what `AutoModel` makes):", ""]
        for outcome, heading in COLUMNS.items():
            types = sorted(name.partition("/")[0] for name, row in base.items() if row[0] == outcome)
            if types:
                lines += [f"**{heading}** ({len(types)}): {', '.join(types)}", ""]
    for outcome in ("unchecked", "unbuildable"):
        reasons = Counter(row[4] for row in classes.values() if row[0] == outcome)
        if reasons:
            lines += [f"Why {COLUMNS[outcome]}, of all classes:", "", "| reason | classes |", "|---|---|"]
            lines += [f"| {_cell(reason)} | {count} |" for reason, count in reasons.most_common()]
            lines.append("")
    return "\n".join(lines)


def _row(finding: Finding) -> list[Any]:
    outcome, reason = finding["outcome"], finding.get("reason", "")
    if outcome == "refused":
        outcome = next(name for name, pattern in _REFUSALS.items() if re.search(pattern, reason))
        return [outcome]
    if outcome == "unbuildable":
        library = _MISSING_LIBRARY.search(reason)
        return [outcome, 0, 0, 0, f"needs {library[1]}" if library else _short(reason)]
    row = [outcome, finding.get("layers", 0), finding.get("parameters", 0), finding.get("seen", 0)]
    if outcome == "right":
        return row
    return [*row, _short("; ".join(finding.get("wrong", [])) or reason)]


def _line(name: str, rows: Mapping[str, Sequence[Any]]) -> str:
    counts = Counter(row[0] for row in rows.values())
    return f"| {name} | {len(rows)} | " + " | ".join(str(counts[outcome]) for outcome in COLUMNS) + " |"


def _short(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:120]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
