"""Influence on real data: flipped labels, memory, seconds. `python tests/benchmarks/influence.py --model minilm`

A model is fine-tuned on sst2 with a share of the labels flipped. The training examples are ranked by their influence on
the mean loss of clean held-out examples (most harmful first), by the same without curvature, and by their own loss. A
ranking's precision at k is the share of flipped ones among its first k, k being the number of flipped labels; chance is
their share of all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lr_dist.retention.influence.ekfac import MeanQuery, Queries, gradient_products, stage_influence
from lr_dist.retention.influence.factors import InverseCurvature, fit_factors
from lr_dist.retention.influence.model_stage import ModelStage
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.environment import describe_environment, peak_memory_mb
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.tasks.batches import Collator, train_loader
from lr_dist.tracing.kept_run import objective_of


def fine_tuned(bench: Bench, labels: torch.Tensor, *, epochs: int, lr: float) -> SequenceClassifier:
    """The model after learning the first task with these labels."""
    torch.manual_seed(0)
    tokens, task = bench.tokens[0], bench.tasks[0]
    module = SequenceClassifier(
        bench.backbone, {task.head: task.num_outputs}, reads_first_token=True, settings=bench.settings
    )
    split = tokens.train.rows_at(range(len(labels)))
    split.labels = labels
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.0)
    loader = train_loader(split, 16, 0, tokens.pad_token_id)
    module.train()
    for _ in range(epochs):
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=bench.precision.chosen == "bf16-mixed"):
                loss = torch.nn.functional.cross_entropy(module(batch), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module.eval()


def measure(
    *,
    model: str,
    examples: int,
    flipped: float,
    factor_examples: int,
    held_out: int,
    queries: int,
    epochs: int,
    lr: float,
) -> dict[str, Any]:
    """Fine-tune, rank, time; plain data."""
    seconds: dict[str, float] = {}
    bench = Bench.prepare(model, ["sst2"], SequenceSettings(max_length=48), limit=examples)
    mixed = bench.precision.chosen == "bf16-mixed"
    tokens = bench.tokens[0]
    draw = np.random.default_rng(0)
    labels = tokens.train.labels.clone()
    wrong = draw.permutation(len(labels))[: round(flipped * len(labels))]
    labels[wrong] = 1 - labels[wrong]
    with timed(seconds, "fine-tuning"):
        module = fine_tuned(bench, labels, epochs=epochs, lr=lr)
    rows = [{**tokens.train[i], "label": labels[i]} for i in range(len(labels))]
    collate = Collator(tokens.pad_token_id)
    stage = ModelStage(module, objective_of(bench.tasks[0]), rows, collate)
    some = [rows[i] for i in draw.permutation(len(rows))[:factor_examples]]
    base = ModelStage(module, stage.objective, some, collate)
    clean = [tokens.dev[i] for i in range(min(held_out, len(tokens.dev)))]
    batches = [collate(clean[i : i + 4]) for i in range(0, len(clean), 4)]
    query = MeanQuery(batches, stage.objective.losses)
    with tempfile.TemporaryDirectory() as folder:
        with timed(seconds, f"factors, {len(some)} examples"):
            factors = fit_factors(base, folder, mixed=mixed)
        kept = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) / 2**20
    inverse = InverseCurvature(factors, factors.relative_damping(0.1))
    with timed(seconds, f"scores of {len(rows)} candidates, 1 mean query of {len(clean)} rows"):
        influence = stage_influence(stage, inverse, query, mixed=mixed).total[0]
    plain = gradient_products(stage, stage, query, mixed=mixed).total[0]
    if queries:
        several = ModelStage(module, stage.objective, rows[: min(100, len(rows))], collate)
        asked = Queries([collate(clean[:queries])], stage.objective.losses)
        with timed(seconds, f"scores of {several.examples} candidates, {queries} queries"):
            stage_influence(several, inverse, asked, mixed=mixed)
    with torch.no_grad():
        losses = torch.cat([stage.objective.losses(module, batch) for batch in stage.batches()])
        hits = [(module(batch).argmax(-1) == batch["labels"]).float() for batch in batches]
    rankings = {"influence (EK-FAC)": influence, "gradient products": plain, "own loss": losses}
    k = len(wrong)
    return {
        "examples": len(rows),
        "flipped": k,
        "chance": round(k / len(rows), 4),
        "accuracy_on_held_out": round(float(torch.cat(hits).mean()), 4),
        "precision_at_k": {name: precision(values, wrong, k) for name, values in rankings.items()},
        "precision": bench.precision.chosen,
        "layers": len(stage.layers),
        "factors_mib_on_disk": round(kept, 1),
        "seconds_of_this_process": seconds,
        "process_peak_memory_mb": peak_memory_mb(),
        "environment": describe_environment(),
    }


def precision(values: torch.Tensor, wrong: np.ndarray, k: int) -> float:
    """Share of flipped labels among the k highest values."""
    first = values.argsort(descending=True)[:k].numpy()
    return round(float(np.isin(first, wrong).mean()), 4)


@contextmanager
def timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Processor seconds, which other processes affect little."""
    began = time.process_time()
    yield
    seconds[what] = round(time.process_time() - began, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    for name, default in (
        ("examples", 1000),
        ("factor-examples", 256),
        ("held-out", 64),
        ("queries", 10),
        ("epochs", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--flipped", type=float, default=0.1, help="Share of the labels.")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--output", type=Path)
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    result = {"arguments": arguments, **measure(**arguments)}
    print(json.dumps(result, indent=1))
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
