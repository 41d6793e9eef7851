"""The figure of scores and movement."""

from __future__ import annotations

from pathlib import Path

import pytest

from lr_dist.errors import ConfigurationError
from lr_dist.monitor.figure import plot
from lr_dist.monitor.measurement import Measurement

HISTORY = [
    Measurement(step, 0, {"sst2": 0.9 - step / 100, "a_b$c": 0.7}, {"sst2": step / 100, "a_b$c": 0.0}, moved, new=new)
    for step, moved, new in (
        (0, {"embeddings": 0.0, "head": 0.0}, {}),
        (10, {"embeddings": 0.01, "head": 0.2}, {"val_acc": 0.5}),
        (20, {"embeddings": 0.02, "head": 0.3}, {"val_acc": 0.6}),
    )
]


def test_the_figure_names_tasks_layers_and_the_kept_step(tmp_path: Path) -> None:
    text = plot(tmp_path / "new" / "forgetting.svg", HISTORY, best_step=10).read_text()
    for word in (
        "sst2",
        "embeddings",
        "head",
        "val_acc",
        "kept: step 10",
        "Forgotten at step 20: sst2: +0.200",
        "steps",
        # Under the mouse, in a browser.
        "<title>sst2, step 10: 0.800</title>",
        "val_acc, step 20: 0.600",
        "<title>head, step 20: 0.3</title>",
    ):
        assert word in text
    assert text == plot(tmp_path / "again.svg", HISTORY, best_step=10).read_text()


def test_without_movement_there_is_one_panel(tmp_path: Path) -> None:
    scores = [Measurement(row.step, 0, row.old, row.forgotten) for row in HISTORY]
    text = plot(tmp_path / "forgetting.svg", scores).read_text()
    assert "sst2" in text
    assert "movement" not in text


def test_other_formats_are_written_and_unknown_ones_refused(tmp_path: Path) -> None:
    assert plot(tmp_path / "forgetting.png", HISTORY).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigurationError, match=r"must end with one of .*\.svg"):
        plot(tmp_path / "forgetting.gif2", HISTORY)
    with pytest.raises(ConfigurationError, match="nothing to draw"):
        plot(tmp_path / "forgetting.svg", [])
