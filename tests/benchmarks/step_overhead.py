"""Step time with the groups of LayerwiseLR against one flat group of the same AdamW.

MiniLM, batch 32, 64 tokens, fused AdamW, linear warm-up, one real Lightning Trainer. Both kinds take turns by step,
in random order: before each step the optimizer's groups and the scheduler are those of the one or the other, so that a
change of the machine's speed hits both. The figure is the ratio of the medians. Half of the flat steps against the rest
is what noise alone does here; the optimizer's step by itself is the only place where the two differ.
"""

from __future__ import annotations

import logging
import random
import statistics
import time
import warnings
from typing import Any

import lightning.pytorch as L
import torch
from common import parser, publish
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import get_linear_schedule_with_warmup

from lr_dist import LayerwiseLR
from lr_dist.models import load_backbone

WARMUP_STEPS = 6


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


class Alternate(L.Callback):
    """Gives each step the flat or the layer-wise groups and scheduler, and times it; stands before LayerwiseLR."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"flat": [], "layerwise": []}
        self.groups: dict[str, list[dict[str, Any]]] = {}
        self.schedulers: dict[str, Any] = {}
        self._order: list[str] = []
        self._arm = ""
        self._began = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.groups["flat"] = list(trainer.optimizers[0].param_groups)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        self.groups["layerwise"] = list(optimizer.param_groups)
        self.schedulers["layerwise"] = trainer.lr_scheduler_configs[0].scheduler
        optimizer.param_groups[:] = self.groups["flat"]
        self.schedulers["flat"] = schedule(optimizer)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        if index % 2 == 0:
            self._order = random.sample(["flat", "layerwise"], 2)
        self._arm = self._order[index % 2]
        trainer.optimizers[0].param_groups[:] = self.groups[self._arm]
        trainer.lr_scheduler_configs[0].scheduler = self.schedulers[self._arm]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if trainer.global_step > WARMUP_STEPS:
            self.seconds[self._arm].append(time.perf_counter() - self._began)


def optimizer_alone(optimizer: torch.optim.Optimizer, groups: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Median milliseconds of the optimizer's step alone with each kind of groups, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in groups}
    for parameter in groups["flat"][0]["params"]:
        parameter.grad = torch.full_like(parameter, 1e-3)
    for _ in range(60):
        for name in random.sample(list(groups), len(groups)):
            optimizer.param_groups[:] = groups[name]
            began = time.perf_counter()
            optimizer.step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return {name: round(1000 * statistics.median(values), 3) for name, values in seconds.items()}


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--steps", type=int, default=100, help="timed steps of each kind")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--model", default="minilm")
    p.add_argument("--distribution", default="decay:lr=2e-5,factor=0.9")
    arguments = p.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    L.seed_everything(0, verbose=False)
    steps = 2 * arguments.steps + WARMUP_STEPS
    tokens = torch.randint(1000, 20000, (arguments.batch * steps, arguments.tokens))
    loader = DataLoader(TensorDataset(tokens, torch.randint(0, 2, (len(tokens),))), batch_size=arguments.batch)
    alternate = Alternate()
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[alternate, LayerwiseLR(arguments.distribution, verbose=False)],
    )
    trainer.fit(Module(load_backbone(arguments.model)), loader)
    flat, layerwise = alternate.seconds["flat"], alternate.seconds["layerwise"]
    median = {"flat": statistics.median(flat), "layerwise": statistics.median(layerwise)}
    publish(
        "step_overhead",
        {
            "model": arguments.model,
            "batch": arguments.batch,
            "tokens": arguments.tokens,
            "groups": {name: len(groups) for name, groups in alternate.groups.items()},
            "timed_steps": {"flat": len(flat), "layerwise": len(layerwise)},
            "median_step_ms": {name: round(1000 * value, 2) for name, value in median.items()},
            "ratio_of_medians": round(median["layerwise"] / median["flat"], 4),
            "ratio_of_medians_noise_alone": round(statistics.median(flat[::2]) / statistics.median(flat[1::2]), 4),
            "median_optimizer_step_alone_ms": optimizer_alone(trainer.optimizers[0], alternate.groups),
            "target_ratio": 1.02,
        },
        arguments.output,
    )


if __name__ == "__main__":
    main()
