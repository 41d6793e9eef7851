"""Hugging Face's Trainer with a rate for every layer. `python examples/huggingface_trainer.py`

Runs offline in under a minute on two cores (`pip install 'lr-dist[demo,huggingface]'`). The mixin stands in front of
the Trainer, and one argument names the rates: relative to `learning_rate`, the head at 1 and each layer below at 0.8 of
the one above. The log shows the rate of every layer; a second call with `--resume` continues from the last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lr_dist import LayerwiseTrainerMixin
from lr_dist.models import resolve_model
from lr_dist.tasks import load_task


class LayerwiseTrainer(LayerwiseTrainerMixin, Trainer):
    """Your own Trainer stands in the place of `Trainer`."""


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}


def main(arguments: list[str] | None = None) -> LayerwiseTrainer:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/huggingface-trainer"))
    parser.add_argument("--rates", default="decay:lr=1,factor=0.8,relative=true")
    parser.add_argument("--model", default="minilm", help="minilm, or a folder with an encoder")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int, default=None, help="training examples (default: all)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --output")
    options = parser.parse_args(arguments)
    set_seed(0)

    model = resolve_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    task = load_task("demo-sentiment", limit=options.limit)

    def tokenized(rows: Dataset) -> Dataset:
        rows = rows.map(lambda batch: tokenizer(batch["text_a"], truncation=True, max_length=32), batched=True)
        return rows.rename_column("label", "labels").select_columns(["input_ids", "attention_mask", "labels"])

    trainer = LayerwiseTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=len(task.classes), dtype=torch.float32
        ),
        args=TrainingArguments(
            output_dir=str(options.output),
            learning_rate=4e-4,
            lr_scheduler_type="linear",
            warmup_steps=0.1,
            weight_decay=0.01,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=16,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            logging_strategy="epoch",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=tokenized(task.train),
        eval_dataset=tokenized(task.validation),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        layerwise_lr=options.rates,
    )
    trainer.train(resume_from_checkpoint=options.resume or None)
    rates = next(entry for entry in trainer.state.log_history if "learning_rate/head" in entry)
    layers = {name: rate for name, rate in rates.items() if name.startswith("learning_rate/")}
    print("rates at the end of the first epoch:", {name: f"{rate:.2g}" for name, rate in layers.items()})
    print(f"accuracy: {trainer.evaluate()['eval_accuracy']:.3f}")
    return trainer


if __name__ == "__main__":
    main()
