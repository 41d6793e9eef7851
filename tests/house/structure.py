"""The structure of the package: rooms, sizes, import circles, imports upward. `python tests/house/structure.py`

Every import counts: at the top of a file, within a function, and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# From the top of the house to its foundation. A module belongs to the first room whose name it begins with, and may
# import its own room and those below.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("lr_dist.cli", "lr_dist.__main__"),
    ("lr_dist.evidence", "lr_dist.advice", "lr_dist.tracing"),
    ("lr_dist.report",),
    ("lr_dist.search.page",),
    ("lr_dist.search.combining", "lr_dist.search.kenneweg2022"),
    ("lr_dist.search.trials",),
    ("lr_dist.search.space",),
    ("lr_dist.search.engine",),
    ("lr_dist.search",),
    ("lr_dist.knowledge",),
    # Above the sequence, which it joins as an observer.
    ("lr_dist.retention",),
    ("lr_dist.sequence",),
    ("lr_dist.methods", "lr_dist.monitor"),
    (
        *("lr_dist.callback", "lr_dist.loss_adaptive", "lr_dist.exact_resume", "lr_dist._callback"),
        *("lr_dist.huggingface", "lr_dist._lightning"),
    ),
    (
        *("lr_dist.coverage", "lr_dist.rate_check", "lr_dist.regroup", "lr_dist.kept_schedulers", "lr_dist.schedulers"),
        *("lr_dist.group_values", "lr_dist.step_factors", "lr_dist.layer_schedule", "lr_dist.groups"),
        "lr_dist._regroup",
    ),
    ("lr_dist.presets",),
    ("lr_dist.rate_plan", "lr_dist.plan_preview"),
    ("lr_dist.distribution", "lr_dist._distribution"),
    ("lr_dist.layers", "lr_dist._layers"),
    ("lr_dist.tasks", "lr_dist.models", "lr_dist._models"),
    ("lr_dist.runs",),
    ("lr_dist",),
)
# The faces of the package and of the search name what they offer, each loaded when it is first used.
FACES = ("lr_dist", "lr_dist.search")


@dataclass(frozen=True)
class House:
    """Modules and what they import.

    Attributes:
        lines: module -> number of lines.
        imports: module -> modules of the package that it imports.
    """

    lines: Mapping[str, int]
    imports: Mapping[str, frozenset[str]]

    @classmethod
    def read(cls, root: Path = ROOT) -> House:
        """Parse every file of `lr_dist` (with `search`, which is a part of it)."""
        files = {_module(path, root): path for path in sorted(_files(root / "lr_dist"))}
        texts = {module: path.read_text(encoding="utf-8") for module, path in files.items()}
        packages = {module for module, path in files.items() if path.name == "__init__.py"}
        return cls(
            {module: text.count("\n") for module, text in texts.items()},
            {
                module: frozenset(_imports(text, module, module in packages, files.keys()) - {module})
                for module, text in texts.items()
            },
        )

    def circles(self) -> list[list[str]]:
        """Groups of modules that import each other, directly or through others; the smallest first."""
        return sorted((sorted(group) for group in _components(self.imports) if len(group) > 1), key=len)

    def upward(self) -> list[str]:
        """`lr_dist.layers -> lr_dist.cli.layers` for each import of a higher room."""
        return [
            f"{module} -> {other}"
            for module, others in self.imports.items()
            for other in sorted(others)
            if module not in FACES and other not in FACES and _room(other) < _room(module)
        ]

    def table(self) -> str:
        """Rooms from the top, with files, lines and the longest file."""
        rows = [f"{'room':<44}{'files':>6}{'lines':>8}  longest file"]
        for number, names in enumerate(ROOMS):
            own = [module for module in self.lines if _room(module) == number]
            if own:
                longest = max(own, key=lambda module: self.lines[module])
                total = sum(self.lines[module] for module in own)
                rows.append(f"{names[0]:<44}{len(own):>6}{total:>8}  {longest} ({self.lines[longest]})")
        return "\n".join(rows)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):  # follows the link to search/, which rglob does not
        if path.is_dir():
            yield from _files(path)
        elif path.suffix == ".py":
            yield path


def _module(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(text: str, module: str, package: bool, known: Iterable[str]) -> set[str]:
    known = set(known)
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + package]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in known else base)
    return found & known


def _room(module: str) -> int:
    return next(
        number
        for number, names in enumerate(ROOMS)
        if any(module == name or module.startswith(f"{name}.") for name in names)
    )


def _components(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Strongly connected components, after Tarjan."""
    import networkx

    directed = networkx.DiGraph((module, other) for module, others in graph.items() for other in others)
    return [list(group) for group in networkx.strongly_connected_components(directed)]


def main() -> int:
    house = House.read()
    print(house.table())
    circles, upward = house.circles(), house.upward()
    print(f"\nimport circles: {len(circles)}")
    for circle in circles:
        print("  " + ", ".join(circle))
    print(f"imports upward: {len(upward)}")
    for line in upward:
        print("  " + line)
    return 1 if circles or upward else 0


if __name__ == "__main__":
    sys.exit(main())
