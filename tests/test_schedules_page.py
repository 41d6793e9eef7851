"""The Python of docs/schedules.md, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from lr_dist import LayerwiseLR, LossAdaptiveLR, LRDistribution

PAGE = Path(__file__).parents[1] / "docs" / "schedules.md"


def test_the_python_of_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 4
    module = tiny.Classifier(lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3))
    names: dict[str, Any] = {
        # A real Trainer that writes nothing.
        "L": SimpleNamespace(Trainer=lambda callbacks, **options: tiny.trainer(*callbacks, **options)),
        "LayerwiseLR": LayerwiseLR,
        "LossAdaptiveLR": LossAdaptiveLR,
        "LRDistribution": LRDistribution,
        "module": module,
        "model": module.model,
        "data": tiny.batches(),
    }
    for block in blocks:
        before = tiny.weights(module)
        exec(compile(block, str(PAGE), "exec"), names)
        moved = [name for name, p in module.named_parameters() if not torch.equal(p, before[name])]
        assert bool(moved) == ("fit(" in block)
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    rates = list(names["distribution"].rates(3).values())
    assert rates[0] == rates[-1] == 2e-5
    assert (min(rates), max(rates)) == (pytest.approx(1e-5), pytest.approx(3e-5))
