"""Step time of a Lightning Trainer with LayerwiseLR against the same one with one flat group.

MiniLM, batch 32, 64 tokens, the same fused AdamW and linear warm-up. Short fits of both alternate (A B, B A, ...), so
that a change of the machine's speed hits both; the figure is the ratio of the medians over all steps.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
import warnings

import lightning.pytorch as L
import torch
from common import parser, publish
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import get_linear_schedule_with_warmup

from lr_dist import LayerwiseLR
from lr_dist.models import load_backbone

WARMUP_STEPS = 2


class Module(L.LightningModule):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.config.hidden_size, 2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        tokens, labels = batch
        hidden = self.backbone(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        return nn.functional.cross_entropy(self.classifier(hidden[:, 0]), labels)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-5, fused=True)
        scheduler = get_linear_schedule_with_warmup(optimizer, 2, 1000)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class StepTimes(L.Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def on_train_batch_end(self, trainer, *args: object) -> None:
        now = time.perf_counter()
        if self._last is not None and trainer.global_step > WARMUP_STEPS:
            self.seconds.append(now - self._last)
        self._last = now


def fit(module: Module, loader: DataLoader, steps: int, callbacks: list[L.Callback]) -> list[float]:
    times = StepTimes()
    trainer = L.Trainer(
        max_steps=steps + WARMUP_STEPS,
        accelerator="cpu" if not torch.cuda.is_available() else "gpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, times],
    )
    trainer.fit(module, loader)
    return times.seconds


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--rounds", type=int, default=8)
    p.add_argument("--steps", type=int, default=8, help="timed steps a fit")
    p.add_argument("--model", default="minilm")
    p.add_argument("--distribution", default="decay:lr=2e-5,factor=0.9")
    arguments = p.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    L.seed_everything(0, verbose=False)
    backbone = load_backbone(arguments.model)
    tokens = torch.randint(1000, 20000, (32 * (arguments.steps + WARMUP_STEPS), 64))
    loader = DataLoader(TensorDataset(tokens, torch.randint(0, 2, (len(tokens),))), batch_size=32)
    modules = {name: Module(copy.deepcopy(backbone)) for name in ("flat", "layerwise")}
    seconds: dict[str, list[float]] = {"flat": [], "layerwise": []}
    for round_ in range(arguments.rounds):
        for name in ("flat", "layerwise") if round_ % 2 == 0 else ("layerwise", "flat"):
            extra = [LayerwiseLR(arguments.distribution, verbose=False)] if name == "layerwise" else []
            seconds[name] += fit(modules[name], loader, arguments.steps, extra)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    publish(
        "step_overhead",
        {
            "model": arguments.model,
            "batch": 32,
            "tokens": 64,
            "timed_steps_each": len(seconds["flat"]),
            "median_step_ms": {name: round(1000 * value, 2) for name, value in median.items()},
            "ratio_of_medians": round(median["layerwise"] / median["flat"], 4),
            "target_ratio": 1.02,
        },
        arguments.output,
    )


if __name__ == "__main__":
    main()
