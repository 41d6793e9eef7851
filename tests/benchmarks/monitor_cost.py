"""What ForgettingMonitor costs: a step without a measurement, a measurement, and its parts. Processor seconds.

`python tests/benchmarks/monitor_cost.py`: MiniLM in fp32 learns random tokens while one old task is watched.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import lightning.pytorch as L
import torch
from common import parser, publish
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lr_dist import ForgettingMonitor
from lr_dist.models import load_backbone

HOOKS = ("on_train_batch_start", "on_train_batch_end")


class Module(L.LightningModule):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.config.hidden_size, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.backbone(input_ids=tokens).last_hidden_state[:, 0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-5)


class Steps(L.Callback):
    """The processor time from one batch's start to the next."""

    def __init__(self) -> None:
        self.began: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.began.append(time.process_time())


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--examples", type=int, default=256, help="of the old task")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--tokens", type=int, default=32)
    arguments = p.parse_args()

    def loader(rows: int) -> DataLoader:
        tokens = torch.randint(1000, 20000, (rows, arguments.tokens))
        return DataLoader(TensorDataset(tokens, torch.randint(0, 2, (rows,))), batch_size=arguments.batch)

    old = loader(arguments.examples)
    monitor = ForgettingMonitor({"old": old}, metric=MulticlassAccuracy(2), every_n_steps=arguments.steps)
    spent: dict[str, list[float]] = {}

    def timed(name: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            result = function(*args, **kwargs)
            spent.setdefault(name, []).append(time.process_time() - began)
            return result

        return run

    for hook in HOOKS:
        setattr(monitor, hook, timed(hook, getattr(monitor, hook)))
    module, steps = Module(load_backbone("minilm")), Steps()
    trainer = L.Trainer(
        max_steps=arguments.steps,
        accelerator="cpu",
        callbacks=[steps, monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(arguments.batch * arguments.steps))
    # Between batches, so without the measurement after the last.
    step = statistics.median(b - a for a, b in zip(steps.began[2:], steps.began[3:], strict=False))
    idle = [sum(pair) for pair in zip(*(spent[hook][1:-1] for hook in HOOKS), strict=True)]

    movement = monitor._watch.movement
    assert movement is not None
    measured = timed("movement", movement.by_layer)
    module.eval()
    for _ in range(3):
        measured(module)
        with torch.no_grad():
            timed("plain_forward", lambda: [module(batch[0]) for batch in old])()
    figures = {
        "step_seconds": step,
        "hooks_seconds": statistics.median(idle),
        "hooks_share_of_a_step": statistics.median(idle) / step,
        "measurement_seconds": spent["on_train_batch_end"][-1],
        "plain_forward_seconds": statistics.median(spent["plain_forward"]),
        "movement_seconds": statistics.median(spent["movement"]),
    }
    options = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish("monitor_cost", {"options": options, **figures}, arguments.output)


if __name__ == "__main__":
    main()
