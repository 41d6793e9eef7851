"""Step time with LayerwiseLR in the Trainer against the same run without it.

Real fits of the same module (fused AdamW, linear warm-up) go on side by side in threads of one process, one step at a
time and in random order, so that a change of the machine's speed hits all. A step is all that the loop does for a
batch, every hook included. The figure is the ratio of the medians. A further fit without the callback takes turns too:
its ratio to the first is what noise alone does here. The optimizer's step alone, where most of the difference arises,
is timed afterwards. The fit `layerwise_unchecked` has the callback without its comparison of the rates at every step
(`RateCheck`), so that `ratio_of_medians_rate_check` is what that costs. `--layers N` takes a BERT of MiniLM's width
(or of `--width`) with N layers instead of MiniLM.
"""

from __future__ import annotations

import copy
import logging
import random
import statistics
import threading
import time
import warnings
from typing import Any

import lightning.pytorch as L
import torch
from common import parser, publish
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertModel, get_linear_schedule_with_warmup

from lr_dist import LayerwiseLR
from lr_dist.models import load_backbone

WARMUP_STEPS = 6
ARMS = ("flat", "flat_again", "layerwise", "layerwise_unchecked")


class Module(L.LightningModule):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.config.hidden_size, 2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        tokens, labels = batch
        hidden = self.backbone(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        return nn.functional.cross_entropy(self.classifier(hidden[:, 0]), labels)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-5, fused=True)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule(optimizer), "interval": "step"}}


def schedule(optimizer: torch.optim.Optimizer) -> Any:
    return get_linear_schedule_with_warmup(optimizer, 2, 10_000)


class Turns:
    """Lets one of several fits do one step at a time; each round in another order."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = set(names)
        self._round: list[str] = []
        self._changed = threading.Condition()

    def take(self, name: str) -> None:
        """Wait until it is this fit's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._next() == name)

    def give(self, name: str, *, last: bool = False) -> None:
        """This fit's step is done, or its last one."""
        with self._changed:
            if self._round and self._round[0] == name:
                self._round.pop(0)
            if last:
                self._names.discard(name)
                self._round = [other for other in self._round if other != name]
            self._changed.notify_all()

    def _next(self) -> str:
        if not self._round:
            self._round = random.sample(sorted(self._names), len(self._names))
        return self._round[0]


class Clock(L.Callback):
    """Times whole iterations of the training loop, from one batch's start to the next; stands before LayerwiseLR."""

    def __init__(self, name: str, turns: Turns) -> None:
        self.name = name
        self.seconds: list[float] = []
        self._turns = turns
        self._began: float | None = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        self._stop(index)
        self._turns.take(self.name)
        self._began = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._turns.give(self.name, last=True)

    def _stop(self, steps: int) -> None:
        if self._began is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if steps > WARMUP_STEPS:
            self.seconds.append(time.perf_counter() - self._began)
        self._turns.give(self.name)


class Unchecked(L.Callback):
    """Takes the comparison of rates out of a LayerwiseLR."""

    def __init__(self, callback: LayerwiseLR) -> None:
        self.callback = callback

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for watch in self.callback._watches:
            watch.warn_of_other_rates = lambda step: None  # type: ignore[method-assign]


def fit(name: str, backbone: nn.Module, arguments: Any, turns: Turns, found: dict[str, Any]) -> None:
    """One whole fit, in a thread of its own."""
    clock = Clock(name, turns)
    steps = arguments.steps + WARMUP_STEPS + 1
    tokens = torch.randint(1000, min(20000, backbone.config.vocab_size), (arguments.batch * steps, arguments.tokens))
    loader = DataLoader(TensorDataset(tokens, torch.randint(0, 2, (len(tokens),))), batch_size=arguments.batch)
    extra = [LayerwiseLR(arguments.distribution, verbose=False)] if name.startswith("layerwise") else []
    if name == "layerwise_unchecked":
        extra.append(Unchecked(extra[0]))
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, *extra],
    )
    try:
        trainer.fit(Module(backbone), loader)
        found[name] = clock.seconds, trainer.optimizers[0]
    finally:
        turns.give(name, last=True)


def optimizer_alone(optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, float]:
    """Median milliseconds of each optimizer's step alone, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 1e-3)
    for _ in range(60):
        for name in random.sample(list(optimizers), len(optimizers)):
            began = time.perf_counter()
            optimizers[name].step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return {name: round(1000 * statistics.median(values), 3) for name, values in seconds.items()}


def backbone_of(arguments: Any) -> nn.Module:
    if arguments.layers is None:
        return load_backbone("minilm")
    config = BertConfig(
        hidden_size=arguments.width,
        num_attention_heads=max(1, arguments.width // 32),
        intermediate_size=4 * arguments.width,
        num_hidden_layers=arguments.layers,
        vocab_size=30522 if arguments.width >= 384 else 1100,
    )
    return BertModel(config, add_pooling_layer=False)


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--steps", type=int, default=60, help="timed steps of each fit")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--layers", type=int, help="a BERT with so many layers; default: MiniLM, which has 6")
    p.add_argument("--width", type=int, default=384, help="with --layers: of that BERT, a multiple of 32")
    p.add_argument("--distribution", default="decay:lr=2e-5,factor=0.9")
    arguments = p.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    L.seed_everything(0, verbose=False)
    backbone = backbone_of(arguments)
    turns, found = Turns(ARMS), dict[str, Any]()
    threads = [
        threading.Thread(target=fit, args=(name, copy.deepcopy(backbone), arguments, turns, found)) for name in ARMS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    median = {name: statistics.median(found[name][0]) for name in ARMS}
    publish(
        "step_overhead",
        {
            "model": "minilm"
            if arguments.layers is None
            else f"BERT of width {arguments.width} with {arguments.layers} layers",
            "batch": arguments.batch,
            "tokens": arguments.tokens,
            "groups": {name: len(found[name][1].param_groups) for name in ARMS},
            "timed_steps": {name: len(found[name][0]) for name in ARMS},
            "median_step_ms": {name: round(1000 * value, 2) for name, value in median.items()},
            "ratio_of_medians": round(median["layerwise"] / median["flat"], 4),
            "ratio_of_medians_noise_alone": round(median["flat_again"] / median["flat"], 4),
            "ratio_of_medians_rate_check": round(median["layerwise"] / median["layerwise_unchecked"], 4),
            "median_optimizer_step_alone_ms": optimizer_alone({name: found[name][1] for name in ARMS}),
            "target_ratio": 1.02,
        },
        arguments.output,
    )


if __name__ == "__main__":
    main()
