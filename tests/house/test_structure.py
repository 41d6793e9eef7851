"""The house has no import circle and no import upward, lazy and typed ones included."""

from __future__ import annotations

from pathlib import Path

from house.structure import House


def test_no_room_imports_a_higher_one_and_no_modules_import_each_other() -> None:
    house = House.read()
    assert house.circles() == []
    assert house.upward() == []
    # Not for want of looking: search/ is read through its link, and lazy imports count.
    assert "lr_dist.sequence.arm" in house.imports["lr_dist.search.trials.trial"]
    assert "lr_dist.sequence.compare" in house.imports["lr_dist.cli.compare"]


def test_the_search_engine_knows_nothing_of_learning_rates() -> None:
    house = House.read()
    engine = [module for module in house.imports if module.startswith("lr_dist.search.engine")]
    others = {other for module in engine for other in house.imports[module]} - set(engine)
    assert {"lr_dist.errors", "lr_dist.sequence.interrupts"} <= others
    assert all(
        other in ("lr_dist.errors", "lr_dist.extras", "lr_dist.reading", "lr_dist.sequence.interrupts")
        or other.startswith("lr_dist.runs.")
        for other in others
    ), others


def test_circles_and_imports_upward_are_found(tmp_path: Path) -> None:
    package = tmp_path / "lr_dist"
    (package / "cli").mkdir(parents=True)
    texts = {
        "__init__": "",
        "layers": "def lazy():\n    from lr_dist.groups import x\n",
        "groups": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import layers\n",
        "cli/__init__": "from ..layers import y",
        "errors": "import lr_dist.cli",
    }
    for name, text in texts.items():
        (package / f"{name}.py").write_text(text)
    house = House.read(tmp_path)
    assert house.circles() == [["lr_dist.groups", "lr_dist.layers"]]
    assert house.upward() == ["lr_dist.errors -> lr_dist.cli", "lr_dist.layers -> lr_dist.groups"]
    assert "lr_dist.cli" in house.table()
