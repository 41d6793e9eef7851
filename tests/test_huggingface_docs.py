"""The page on Hugging Face, its Python run as it stands; only what comes from the hub is small and local here."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from test_readme import blocks
from tiny_trainer import Rates

from lr_dist.errors import ResumeMismatchError
from lr_dist.tasks import load_task

PAGE = "docs/huggingface.md"
SETUP, TRAIN, RESUME, PEFT, EMBEDDER = range(5)
STEPS = 12  # three epochs of four batches of 32
# Warm-up over a tenth of the steps, rounded up, then linearly to 0.
FACTORS = [0, 1 / 2, *(left / 10 for left in range(10, 0, -1))]


@pytest.fixture
def page(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a block of the page in the names of the blocks before it, in a folder of its own."""
    rows = load_task("demo-sentiment").train.rename_column("text_a", "sentence")
    splits = {"train": rows.select(range(128)), "validation": rows.select(range(128, 160))}
    test = rows.select(range(160, 168)).map(lambda row: {"label": -1})
    pairs = datasets.Dataset.from_dict({"anchor": rows["sentence"][:32], "positive": rows["sentence"][32:64]})
    hub = {"nyu-mll/glue": datasets.DatasetDict(**splits, test=test), "sentence-transformers/all-nli": pairs}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, *name, **split: hub[path])
    monkeypatch.chdir(tmp_path)
    found = blocks(PAGE, "python")
    assert len(found) == 5
    names: dict[str, Any] = {}

    def run(block: int) -> dict[str, Any]:
        source = re.sub(r'"(google-bert|sentence-transformers)/(bert|all-Mini)[^"]*"', repr(tiny_model), found[block])
        exec(compile(source, PAGE, "exec"), names)
        return names

    return run


def recorded(names: dict[str, Any]) -> Rates:
    rates = Rates()
    names["trainer"].add_callback(rates)
    return rates


def expected(head: float, factor: float) -> dict[str, float]:
    """The peak of each group's rate in the tiny model of three layers."""
    layers = {f"layers.{k}": head * factor ** (3 - k) for k in range(3)}
    return {"embeddings": head * factor**4, **layers, "head": head}


def test_the_script_of_the_documentation_trains_each_layer_at_its_rate_and_resumes(page: Any, tmp_path: Path) -> None:
    rates = recorded(page(SETUP))
    names = page(TRAIN)
    unbroken = names["trainer"]
    assert unbroken.state.global_step == len(rates.seen) == STEPS
    peaks = expected(3e-5, 0.9)
    assert peaks["layers.1"] == pytest.approx(2.43e-5)
    for step, factor in enumerate(FACTORS):
        for layer, peak in peaks.items():
            for group in (layer, f"{layer}/no_decay"):
                assert rates.seen[step][group] == pytest.approx(peak * factor, rel=1e-9, abs=0), (step, group)
    assert len(rates.seen[0]) == 10
    assert names["labels"].shape == (8,)
    assert {path.name for path in (tmp_path / "sst2").glob("checkpoint-*")} == {f"checkpoint-{k}" for k in (4, 8, 12)}
    assert (tmp_path / "sst2" / "model.safetensors").exists()

    # Stopped after the first epoch.
    for k in (8, 12):
        shutil.rmtree(tmp_path / "sst2" / f"checkpoint-{k}")
    later = recorded(page(SETUP))
    resumed = page(RESUME)["trainer"]
    assert resumed is not unbroken
    assert later.seen == rates.seen[4:]
    for (name, ours), theirs in zip(resumed.model.named_parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name

    # And with another distribution it is refused.
    kept = {"args": names["args"], "train_dataset": names["data"]["train"], "eval_dataset": names["data"]["validation"]}
    other = names["LayerwiseTrainer"](model=resumed.model, layerwise_lr="flat:lr=1e-5", **kept)
    with pytest.raises(ResumeMismatchError, match=r"factor=0\.9.*flat"):
        other.train(resume_from_checkpoint=True)


def test_the_blocks_on_peft_and_sentence_transformers_run(page: Any) -> None:
    page(SETUP)
    names = page(PEFT)
    assert names["trainer"].state.global_step == STEPS
    groups = {group["name"]: group["layer_lr"] for group in names["trainer"].optimizer.param_groups}
    peaks = expected(1e-3, 0.8)
    assert {layer: groups[layer] for layer in groups if "/" not in layer} == pytest.approx(
        {layer: peak for layer, peak in peaks.items() if layer != "embeddings"}
    )
    names = page(EMBEDDER)
    groups = {group["name"]: group["layer_lr"] for group in names["trainer"].optimizer.param_groups}
    assert groups == pytest.approx(expected(4e-4, 0.7))
