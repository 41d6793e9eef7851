"""What the usual tutorial of text classification with Lightning has its readers write; nothing in it knows of lr-dist.

A LightningDataModule that tokenizes with `AutoTokenizer`, and a LightningModule around
`AutoModelForSequenceClassification` with AdamW, no weight decay for biases and LayerNorm, and a linear warm-up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import lightning.pytorch as L
import torch
import torchmetrics
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
)


class TextDataModule(L.LightningDataModule):
    """Files `train.parquet` and `validation.parquet` with the columns `sentence` and `label`."""

    def __init__(
        self, folder: str, model_name_or_path: str, max_length: int = 32, batch_size: int = 16, limit: int | None = None
    ) -> None:
        super().__init__()
        self.folder, self.max_length, self.batch_size, self.limit = Path(folder), max_length, batch_size, limit
        self.tokenizer = AutoTokenizer.from_pretrained(model_name_or_path)
        self.collate = DataCollatorWithPadding(self.tokenizer)

    def setup(self, stage: str) -> None:
        splits = ("train", "validation")
        self.dataset = {name: self._tokenized(datasets.Dataset.from_parquet(self._file(name))) for name in splits}

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset["train"], self.batch_size, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset["validation"], self.batch_size, collate_fn=self.collate)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()

    def _file(self, split: str) -> str:
        return str(self.folder / f"{split}.parquet")

    def _tokenized(self, data: datasets.Dataset) -> datasets.Dataset:
        if self.limit is not None:
            data = data.select(range(self.limit))

        def encode(rows: dict[str, list[Any]]) -> Any:
            features = self.tokenizer(rows["sentence"], max_length=self.max_length, truncation=True)
            return {**features, "labels": rows["label"]}

        return data.map(encode, batched=True, remove_columns=data.column_names, keep_in_memory=True)


class TextClassifier(L.LightningModule):
    """A pre-trained encoder with a new head."""

    def __init__(
        self,
        model_name_or_path: str,
        num_labels: int = 2,
        learning_rate: float = 2e-5,
        adam_epsilon: float = 1e-8,
        warmup_steps: int = 0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.config = AutoConfig.from_pretrained(model_name_or_path, num_labels=num_labels)
        self.model = AutoModelForSequenceClassification.from_pretrained(
            model_name_or_path, config=self.config, dtype=torch.float32
        )
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=num_labels)

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self(**batch).loss
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        output = self(**batch)
        self.accuracy(output.logits.argmax(dim=-1), batch["labels"])
        self.log("val_loss", output.loss, prog_bar=True)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        no_decay = ("bias", "LayerNorm.weight")
        decayed, rest = [], []
        for name, parameter in self.model.named_parameters():
            (rest if any(part in name for part in no_decay) else decayed).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.hparams.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        optimizer = AdamW(groups, lr=self.hparams.learning_rate, eps=self.hparams.adam_epsilon)
        scheduler = get_linear_schedule_with_warmup(
            optimizer,
            num_warmup_steps=self.hparams.warmup_steps,
            num_training_steps=self.trainer.estimated_stepping_batches,
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 1}]
