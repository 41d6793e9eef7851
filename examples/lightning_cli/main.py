"""A program with a LightningCLI, whose rates stand in a YAML file.

    python examples/lightning_cli/main.py fit --config examples/lightning_cli/config.yaml

Runs offline in under a minute on two cores (`pip install 'lr-dist[demo]' 'jsonargparse[signatures]'`). The program does
not mention lr-dist's rates: callbacks, schedule and optimizer come from the file, and options on the command line take
precedence, as in `--trainer.max_epochs 3`.
"""

from __future__ import annotations

import lightning.pytorch as L
import torch
from lightning.pytorch.cli import ArgsType, LightningCLI
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lr_dist.models import resolve_model
from lr_dist.tasks import eval_loader, load_task, tokenize_task, train_loader


class DemoTask(L.LightningDataModule):
    """A generated task in tokens.

    Args:
        task: name of a task, such as demo-sentiment.
        model: whose tokenizer; minilm, a name or a folder.
        limit: training examples (default: all).
        batch_size: of the training.
    """

    def __init__(
        self, task: str = "demo-sentiment", model: str = "minilm", limit: int | None = None, batch_size: int = 16
    ) -> None:
        super().__init__()
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(model))
        self.tokens = tokenize_task(load_task(task, limit=limit), tokenizer, 32)
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return train_loader(self.tokens.train, self.batch_size, seed=0, pad_token_id=self.tokens.pad_token_id)

    def val_dataloader(self) -> DataLoader:
        return eval_loader(self.tokens.validation, 64, self.tokens.pad_token_id)


class Classifier(L.LightningModule):
    """An encoder with a classifier; the optimizer comes from the configuration.

    Args:
        model: minilm, a name or a folder.
        labels: number of classes.
    """

    def __init__(self, model: str = "minilm", labels: int = 2) -> None:
        super().__init__()
        path = resolve_model(model)
        self.model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=labels, dtype=torch.float32)
        self.model.train()
        self.accuracy = MulticlassAccuracy(labels, average="micro")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.accuracy(self.model(**batch).logits, batch["labels"])
        self.log("accuracy", self.accuracy, on_epoch=True, prog_bar=True)


def main(arguments: ArgsType = None) -> LightningCLI:
    return LightningCLI(Classifier, DemoTask, args=arguments, save_config_callback=None, seed_everything_default=0)


if __name__ == "__main__":
    cli = main()
    if "accuracy" in cli.trainer.callback_metrics:
        print(f"accuracy: {cli.trainer.callback_metrics['accuracy'].item():.3f}")
