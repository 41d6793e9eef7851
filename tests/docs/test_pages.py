"""The Python of the short guides runs as it stands; only models and data are small and local."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import lightning.pytorch as L
import pytest
import tiny
import torch
from test_readme import blocks
from torch import nn
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[2]


def rows(count: int = 4) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": tokens, "labels": labels} for tokens, labels in tiny.batches(count)]


class Module(tiny.Classifier):
    """Scores tuples as batches of the tests, and mappings as the monitor does."""

    def forward(self, **batch: Any) -> Any:
        return self.model(**batch).logits


def run(page: str, names: dict[str, Any], count: int) -> dict[str, Any]:
    found = blocks(page, "python")
    assert len(found) == count
    names = {"__name__": "__main__", **names}
    for number, block in enumerate(found):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


def test_the_first_five_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = Module(lambda own: torch.optim.AdamW(own.parameters(), lr=2e-5))
    loaders = {"train_loader": tiny.batches(4), "val_loader": None, "old_loader": rows()}
    names = run("docs/start.md", {"module": module, **loaders}, 2)
    assert [row.step for row in names["monitor"].history] == [0, 4, 8, 12]
    rates = {group["name"]: group["lr"] for group in names["trainer"].optimizers[0].param_groups}
    assert rates == pytest.approx({name: 4e-4 * 0.7**k for k, name in enumerate(reversed(rates))})


def test_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("docs/peft.md", {"model": tiny.bert(), "train_loader": DataLoader(rows(), batch_size=None)}, 1)
    (optimizer,) = names["trainer"].optimizers
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    # The adapters of the layers, and the classifier; nothing in the embeddings trains.
    assert rates == pytest.approx({f"layers.{k}": 1e-3 * 0.8 ** (3 - k) for k in range(3)} | {"head": 1e-3})
    assert [len(group["params"]) for group in optimizer.param_groups[:3]] == [4, 4, 4]


def test_plain_pytorch() -> None:
    names = run("docs/torch.md", {"model": tiny.bert()}, 1)
    groups = {group["name"]: group for group in names["optimizer"].param_groups}
    assert groups["layers.2"]["lr"] == pytest.approx(4e-4 * 0.7)
    assert groups["layers.0/no_decay"]["weight_decay"] == 0


def test_sentence_transformers(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = datasets.Dataset.from_dict({"anchor": ["a good film", "bad"] * 8, "positive": ["good", "a bad film"] * 8})
    names = run("docs/sentence-transformers.md", {"name": tiny_model, "pairs": pairs}, 1)
    rates = {group["name"]: group["layer_lr"] for group in names["trainer"].optimizer.param_groups}
    assert rates["layers.2"] == pytest.approx(2e-5 * 0.9)


def test_timm_with_a_model_in_its_place() -> None:
    """timm is not installed where the tests run; any ViT stands for its model."""
    from test_layers import TimmViT

    class timm:
        @staticmethod
        def create_model(name: str, **options: Any) -> nn.Module:
            return TimmViT()

    first, second, *_ = blocks("docs/timm.md", "python")
    names: dict[str, Any] = {"L": L, "timm": timm}
    exec(compile(first.replace("import timm\n", ""), "docs/timm.md", "exec"), names)
    assert {group["name"] for group in names["optimizer"].param_groups} >= {"embeddings", "layers.3", "head"}
    exec(compile(second, "docs/timm.md", "exec"), names)
