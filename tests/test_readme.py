"""The Python and YAML of the README and the docs, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import bert

from lr_dist.distribution import LRDistribution
from lr_dist.presets import get_preset, resolve_distribution

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def trained(folder: Path) -> dict[str, Any]:
    """What a reader of the README has: torch, transformers, a model, arguments, data."""
    rows = [{"input_ids": [i % 40, 3, 5], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(16)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=3, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
    )
    old = [{name: torch.tensor([row[name]]) for name in row} for row in rows]
    return {
        "torch": torch,
        "transformers": transformers,
        "model": bert(),
        "args": arguments,
        "data": rows,
        "old_loader": old,
    }


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path):
    found = blocks("README.md", "python")
    assert len(found) == 5
    names = trained(tmp_path)
    before = names["model"].bert.encoder.layer[0].attention.self.query.weight.detach().clone()
    trainers = []
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
        trainers.append(names["trainer"])
    assert names["d"].rates(12)["layers.0"] == pytest.approx(5.5e-6, rel=0.01)
    assert [t.state.global_step for t in trainers if isinstance(t, transformers.Trainer)][-1] == 3
    lightning = [[type(c).__name__ for c in t.callbacks] for t in trainers if not isinstance(t, transformers.Trainer)]
    assert [names[:2] for names in lightning][1:] == [
        ["LayerwiseLR", "ForgettingMonitor"],
        ["LayerwiseLR", "Interpolate"],
    ]
    assert [group["name"] for group in names["optimizer"].param_groups][-1] == "head/no_decay"
    assert not torch.equal(before, names["model"].bert.encoder.layer[0].attention.self.query.weight)


def test_every_text_form_in_the_readme_is_a_distribution():
    found = re.findall(r"^\| `([^`]+)`(?:, `[^`]+`)? \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    texts = [text for text in found if "..." not in text]
    assert len(texts) >= 6
    for text in texts:
        assert isinstance(resolve_distribution(text), LRDistribution)


def test_the_preset_in_the_docs_can_be_used(tmp_path, monkeypatch):
    text = blocks("docs/distributions.md", "yaml")[-1]  # the others are rate plans
    (tmp_path / "my-preset.yaml").write_text(text)
    monkeypatch.setenv("LR_DIST_PRESETS", str(tmp_path))
    assert get_preset("my-preset").distribution == LRDistribution.decay(lr=4e-4, factor=0.7)
