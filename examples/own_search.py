"""Search the rates of a training program of your own. `python examples/own_search.py --trials 8`

Runs offline (`pip install 'lr-dist[demo,search]'`). The program is a plain Lightning module, MiniLM with a
classifier, on demo-sentiment; `optimize` calls it with other rates in every trial. It can be stopped and started again,
and started several times at once. The study is one of `lr-dist search`; at the end, two commands that read it are
printed.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import lightning.pytorch as L
import optuna
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lr_dist import LayerwiseLR
from lr_dist.models import resolve_model
from lr_dist.search import Space, optimize
from lr_dist.tasks import eval_loader, load_task, tokenize_task, train_loader


class Classifier(L.LightningModule):
    """A pre-trained encoder with a classifier; nothing in it knows of lr-dist."""

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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def main(arguments: list[str] | None = None) -> optuna.Study:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/own-search"))
    parser.add_argument("--model", default="minilm", help="minilm, or a folder with an encoder")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int, default=None, help="training examples (default: all)")
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")

    model = resolve_model(options.model)
    task = load_task("demo-sentiment", limit=options.limit)
    tokens = tokenize_task(task, AutoTokenizer.from_pretrained(model), 32)
    space = Space("shape", low=1e-5, high=1e-3)

    def objective(trial: optuna.Trial) -> float:
        rates = space.suggest(trial)
        L.seed_everything(0, verbose=False)
        module = Classifier(model, len(task.classes))
        trainer = L.Trainer(
            max_epochs=options.epochs,
            callbacks=[LayerwiseLR(rates, verbose=False)],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        training = train_loader(tokens.train, 16, seed=0, pad_token_id=tokens.pad_token_id)
        trainer.fit(module, training, eval_loader(tokens.dev, 64, tokens.pad_token_id))
        return trainer.callback_metrics["accuracy"].item()

    options.output.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{options.output / 'study.db'}"
    study = optimize(
        objective,
        space,
        trials=options.trials,
        study="own",
        storage=storage,
        # The control: one rate for all layers.
        queued=["flat:lr=1e-4", "flat:lr=3e-4"],
        num_layers=6,
        model=options.model,
    )
    best = study.best_trial
    print(f"accuracy {best.value:.3f} with LayerwiseLR({str(space.distribution(best.params))!r})")
    print(f"lr-dist search status --study own --storage {storage}")
    print(f"lr-dist search report own --storage {storage}")
    return study


if __name__ == "__main__":
    main()
