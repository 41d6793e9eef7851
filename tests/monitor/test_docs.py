"""The README's and the docs page's examples run as they stand, and so does the example program."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import tiny
import torch
from safetensors.torch import load_file
from tiny_trainer import plain, rows
from torchmetrics.classification import MulticlassAccuracy

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


class Module(tiny.Classifier):
    def forward(self, tokens: Any) -> Any:
        return self.model(input_ids=tokens).logits

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(-1) == batch[1]).float().mean())


def old() -> list[dict[str, Any]]:
    return [{"input_ids": tokens, "labels": labels} for tokens, labels in tiny.batches(3, seed=2)]


def test_the_page_for_lightning_runs_as_it_stands(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    text, _ = blocks("docs/forgetting-monitor.md")
    names: dict[str, Any] = {
        **{"L": L, "old_loader": old(), "new_loader": tiny.batches(4), "val_loader": tiny.batches(1)},
        "module": Module(lambda own: torch.optim.AdamW(own.parameters(), lr=2e-5)),
    }
    text = text.replace("callbacks=[monitor]", "callbacks=[monitor], max_epochs=2, accelerator='cpu'")
    exec(compile(text, "docs/forgetting-monitor.md", "exec"), names)
    assert [row.step for row in names["monitor"].history] == [0, 8]
    assert (tmp_path / "forgetting.svg").read_text().startswith("<svg")


def test_the_page_for_transformers_runs_as_it_stands(tmp_path: Path) -> None:
    _, text = blocks("docs/forgetting-monitor.md")
    model = tiny.bert()
    plain_trainer, _ = plain(tmp_path, eval_strategy="steps", eval_steps=5, eval_dataset=rows(4))
    names: dict[str, Any] = {
        **{"Trainer": type(plain_trainer), "model": model, "args": plain_trainer.args},
        **{"data": plain_trainer.train_dataset, "dev": plain_trainer.train_dataset, "old_loader": old()},
        "metric": MulticlassAccuracy(2, average="micro"),
        "compute_metrics": lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
    }
    exec(compile(text, "docs/forgetting-monitor.md", "exec"), names)
    assert "eval_accuracy" in names["monitor"].history[-1].new


def test_the_example_program_runs(tiny_model: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "examples" / "second_task.py"),
        "--output",
        str(tmp_path),
        "--model",
        tiny_model,
    ]
    short = ["--epochs", "1", "--limit", "80", "--every", "2", "--lr", "1e-6"]
    done = subprocess.run([*command, *short], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "fine-tuned" / "model.safetensors").exists()
    assert (tmp_path / "forgetting.svg").exists()
    kept = load_file(tmp_path / "kept.safetensors")
    assert {"first.classifier.weight", "second_head.weight"} <= set(kept)
    # Steps 0, 2, 4 and the last; at so low a rate nothing is forgotten, so one is kept.
    assert [line.split()[0] for line in done.stdout.splitlines() if re.match(r" +\d+ ", line)] == ["0", "2", "4", "5"]
    # At so low a rate, the weights before and after hardly differ, and neither do the scores of the first task.
    blended = [line.split() for line in done.stdout.splitlines() if re.match(r"\d\.\d  ", line)]
    assert [row[0] for row in blended] == ["1.0", "0.7", "0.5", "0.3"]
    assert all(abs(float(row[1]) - float(blended[0][1])) < 0.05 for row in blended)
