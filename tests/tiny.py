"""Real models, small enough for a test, and what it takes to train them with a real Trainer."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

LAYERS = 3
# From the embeddings to the head; far apart, and no two ratios alike.
RATES = {"embeddings": 1e-5, "layers.0": 3e-5, "layers.1": 2e-4, "layers.2": 5e-4, "head": 7e-3}
EXPLICIT = {"family": "from_layers", "embeddings": 1e-5, "layers": [3e-5, 2e-4, 5e-4], "head": 7e-3}


def bert(*, dropout: float = 0.0, seed: int = 0, layers: int = LAYERS) -> BertForSequenceClassification:
    """A BERT of three layers with 16 dimensions and random weights."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,  # with the usual 0.02 a model this small has next to no gradients
    )
    return BertForSequenceClassification(config)


def batches(count: int = 8, *, size: int = 4, seed: int = 0) -> DataLoader:
    """`count` batches of random tokens with labels that follow from the first token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 40, (count * size, 7), generator=generator)
    return DataLoader(TensorDataset(tokens, (tokens[:, 0] > 20).long()), batch_size=size)


class ShuffledBatches:
    """Batches in another order in every epoch, which a checkpoint in the middle of an epoch continues."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.batches = list(batches(count, seed=seed))
        self.epoch, self.position = 0, 0
        self.sampler = self  # where Lightning looks for `set_epoch`

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(100 + self.epoch)).tolist()
        last = False
        while not last:
            batch = self.batches[order[self.position]]
            # Moved on before the batch is handed out: Lightning does not ask again after the last one.
            self.position += 1
            last = self.position == len(self)
            if last:
                self.position = 0
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class Classifier(L.LightningModule):
    """The shape of a user's module: a transformer, a loss, and optimizers built by `configure(module)`.

    `scores` are logged as the metric `score`, one an epoch; the random numbers of a step depend on the step alone.
    """

    def __init__(
        self, configure: Callable[[L.LightningModule], Any], *, dropout: float = 0.0, scores: Sequence[float] = ()
    ) -> None:
        super().__init__()
        self.model = bert(dropout=dropout)
        self.configure = configure
        self.scores = scores

    def configure_optimizers(self) -> Any:
        return self.configure(self)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(1000 + self.trainer.current_epoch * 100 + batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        tokens, labels = batch
        return self.model(input_ids=tokens, labels=labels).loss

    def on_train_epoch_end(self) -> None:
        if self.scores:
            self.log("score", self.scores[self.current_epoch])


class Unseeded(Classifier):
    """A module that draws its random numbers as they come, in torch, numpy and Python, and remembers what it saw."""

    def __init__(self, configure: Callable[[L.LightningModule], Any], **options: Any) -> None:
        super().__init__(configure, **{"dropout": 0.3, **options})
        self.seen: list[tuple[int, int, float, float]] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        pass

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        # Which batch of which epoch it is, its sequences, and one number of each generator.
        tokens = int((batch[0] * torch.arange(1, batch[0].numel() + 1).view_as(batch[0])).sum())
        self.seen.append((self.trainer.current_epoch * 1000 + batch_idx, tokens, random.random(), np.random.rand()))
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.model(input_ids=batch[0], labels=batch[1]).loss)


def shuffled(count: int = 6, **options: Any) -> DataLoader:
    """A plain loader of `count` batches, shuffled by the global generator."""
    return DataLoader(batches(count).dataset, batch_size=4, shuffle=True, **options)


class Recorder(L.Callback):
    """What the optimizers hold at each step, just before it is taken."""

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = {}
        self.steps: list[dict[str, Any]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for index, group in enumerate(optimizer.param_groups):
            self.rates.setdefault(group.get("name", str(index)), []).append(float(group["lr"]))
        self.steps.append(
            {key: optimizer.param_groups[0][key] for key in ("betas", "momentum") if key in optimizer.param_groups[0]}
        )


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    """A silent Trainer on one CPU that writes nothing."""
    silent = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(callbacks=list(callbacks), **{**silent, **options})


def fit(module: L.LightningModule, *callbacks: L.Callback, data: Any = None, ckpt: Any = None, **options: Any) -> Any:
    """Fit `module` with `callbacks` and return the Trainer."""
    loading = loaded_with(options.pop("weights_only", None))
    run = trainer(*callbacks, **options)
    with warnings.catch_warnings():
        # On the number of workers of the data loader.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        run.fit(module, batches() if data is None else data, ckpt_path=ckpt, **loading)
    return run


def loaded_with(weights_only: bool | None) -> dict[str, bool | None]:
    """The argument of `Trainer.fit`; before 2.6 Lightning had none, and loaded its checkpoints without."""
    return {"weights_only": weights_only} if "weights_only" in inspect.signature(L.Trainer.fit).parameters else {}


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the module's parameters."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
