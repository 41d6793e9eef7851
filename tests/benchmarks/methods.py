"""What methods against forgetting cost: time of a step, time at the end of a stage, and memory.

Real fits of the same module (a BERT of `--layers` layers, fused AdamW) go on side by side in threads of one process,
one step at a time and in random order, so that a change of the machine's speed hits all. A step is all that the loop
does for a batch, every hook included; the figure is the ratio of the medians to the fit without a method. A second fit
without one shows what noise alone does. Each method has been through one stage before (`--examples` texts), so that it
has something to work with; how long the end of that stage took, and the bytes of the tensors in its checkpoint, are the
other figures.
"""

from __future__ import annotations

import copy
import logging
import statistics
import threading
import time
import warnings
from typing import Any

import lightning.pytorch as L
import torch
from common import parser, publish
from step_overhead import WARMUP_STEPS, Clock, Turns
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from lr_dist import LayerwiseLR
from lr_dist.methods import METHODS, Method, build_method

PLAIN, AGAIN = "without", "without, again"


class Module(L.LightningModule):
    def __init__(self, model: BertForSequenceClassification) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-5, fused=True)


def model_of(arguments: Any) -> BertForSequenceClassification:
    width = arguments.width
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=width,
            num_attention_heads=max(1, width // 32),
            intermediate_size=4 * width,
            num_hidden_layers=arguments.layers,
            vocab_size=5000,
        )
    )


def texts(count: int, arguments: Any) -> DataLoader:
    tokens = torch.randint(1, 5000, (count, arguments.tokens))
    rows = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label}
        for ids, label in zip(tokens, torch.randint(0, 2, (count,)), strict=True)
    ]
    return DataLoader(rows, batch_size=arguments.batch)


def fit(name: str, module: Module, method: Method | None, arguments: Any, turns: Turns, found: dict[str, Any]) -> None:
    """One whole fit, in a thread of its own."""
    clock = Clock(name, turns)
    steps = arguments.steps + WARMUP_STEPS + 1
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        # Some methods act on the rates of layers.
        callbacks=[LayerwiseLR("flat:lr=1e-5", verbose=False), clock, *([method] if method else [])],
    )
    try:
        trainer.fit(module, texts(arguments.batch * steps, arguments))
        found[name] = clock.seconds
    finally:
        turns.give(name, last=True)


def learned(text: str, module: Module, data: DataLoader) -> tuple[Method, dict[str, float]]:
    """The method after a stage that left the weights as they are, with its seconds and bytes."""
    method = build_method(text)
    method.stage_started(module)
    began = time.perf_counter()
    method.end_stage(module, data)
    seconds = time.perf_counter() - began
    return method, {"stage_end_seconds": round(seconds, 3), "bytes_held": held(method.state())}


def held(state: Any) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(state, Tensor):
        return state.nbytes
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(held, values))


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--methods", nargs="+", default=list(METHODS), help="text forms; default: all, as they are")
    p.add_argument("--steps", type=int, default=60, help="timed steps of each fit")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--width", type=int, default=128, help="a multiple of 32")
    p.add_argument("--examples", type=int, default=1000, help="of the stage before")
    arguments = p.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    L.seed_everything(0, verbose=False)
    model, before = model_of(arguments), texts(arguments.examples, arguments)
    modules = {name: Module(copy.deepcopy(model)) for name in (PLAIN, AGAIN, *arguments.methods)}
    prepared = {text: learned(text, modules[text], before) for text in arguments.methods}
    turns, found = Turns(tuple(modules)), dict[str, Any]()
    threads = [
        threading.Thread(target=fit, args=(name, module, prepared.get(name, (None,))[0], arguments, turns, found))
        for name, module in modules.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    median = {name: statistics.median(seconds) for name, seconds in found.items()}
    publish(
        "methods",
        {
            "model": f"BERT of width {arguments.width} with {arguments.layers} layers",
            "parameters": sum(p.numel() for p in model.parameters()),
            **{key: getattr(arguments, key) for key in ("batch", "tokens", "steps", "examples")},
            "median_step_ms": {name: round(1000 * value, 2) for name, value in median.items()},
            "ratio_of_medians_noise_alone": round(median[AGAIN] / median[PLAIN], 3),
            "methods": {
                text: {"ratio_of_medians": round(median[text] / median[PLAIN], 3), **figures}
                for text, (_, figures) in prepared.items()
            },
        },
        arguments.output,
    )


if __name__ == "__main__":
    main()
