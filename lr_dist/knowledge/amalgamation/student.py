"""Train a student towards an objective, with a rate plan; its checkpoint is chosen without labels."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler
from typing_extensions import override

from lr_dist._lightning import Callback, L
from lr_dist.callback import LayerwiseLR
from lr_dist.errors import DivergedError
from lr_dist.knowledge.amalgamation.config import StudentSettings
from lr_dist.knowledge.amalgamation.targets import Objective
from lr_dist.models import weights_fingerprint
from lr_dist.runs.atomic import write_bytes
from lr_dist.runs.fused import has_fused_adamw
from lr_dist.runs.machine import training_device
from lr_dist.runs.precision import choose_precision
from lr_dist.sequence.fitting import fit_or_interrupt, quiet_lightning
from lr_dist.sequence.seeds import derive_seed, set_seed
from lr_dist.tasks import TokenSplit, eval_loader, train_loader

_EVAL_BATCH = 64


@dataclass(frozen=True)
class TrainedStudent:
    """How a training went.

    Attributes:
        losses: mean loss on the held-out texts after each epoch.
        best: number of the epoch whose weights the model has, counted from 1.
        seconds: of training and held-out losses, in this process.
        steps: optimizer steps of the whole training.
        precision: of the training.
        resumed: number of epochs that an earlier process had finished.
    """

    losses: tuple[float, ...]
    best: int
    seconds: float
    steps: int
    precision: str
    resumed: int = 0


def train_student(
    model: Any,
    tokens: TokenSplit,
    objective: Objective,
    held_out: Sequence[int],
    settings: StudentSettings,
    *,
    pad_token_id: int,
    folder: str | Path | None = None,
    progress: Callable[[int, int, tuple[float, ...]], None] | None = None,
) -> TrainedStudent:
    """Train a model; it gets the weights of the epoch with the lowest loss on the held-out texts.

    Args:
        model: a sequence classifier of transformers with an output for each label of the union; changed.
        tokens: of all texts; the label of a row is its number, which is the row of the objective.
        objective: what to learn.
        held_out: numbers of the texts that are not trained on.
        settings: rates, epochs and the like.
        pad_token_id: of the student's tokenizer.
        folder: where a checkpoint is kept after each epoch, so that a further call goes on there; deleted at the end.
        progress: called after each step with its number, the number of all steps and the held-out losses so far.

    Raises:
        DivergedError: a loss that is NaN or infinite.
        LRDistError: rates that are not valid.
    """
    set_seed(settings.seed, "student")
    held = set(held_out)
    train = tokens.rows_at([row for row in range(len(tokens)) if row not in held])
    choice = choose_precision(settings.precision)
    loader = train_loader(train, settings.batch_size, derive_seed(settings.seed, "order"), pad_token_id)
    steps = settings.epochs * len(loader)
    place = None if folder is None else Path(folder) / _key(model, tokens, objective, sorted(held), settings)
    best = _BestWeights(model, tokens.rows_at(sorted(held)), objective, pad_token_id, place)
    module = _Student(model.train(), objective, settings, steps)
    began = time.perf_counter()
    with quiet_lightning():
        callbacks: list[Callback] = [LayerwiseLR(settings.rates, verbose=False), best]
        if progress is not None:
            callbacks.append(_Progress(progress, steps, best))
        if place is not None:
            # Without a monitor it keeps the newest, which is whole before the older one is deleted.
            keep = L.callbacks.ModelCheckpoint(dirpath=place, filename="{epoch}", save_on_train_epoch_end=True)
            callbacks.append(keep)
        trainer = L.Trainer(
            max_epochs=settings.epochs,
            accelerator="auto",
            devices=1,
            precision=choice.chosen,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=place is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        )
        checkpoint = None if place is None else _newest(place)
        fit_or_interrupt(trainer, module, loader, **_resuming(checkpoint))
    best.restore()
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):  # others may train in it
            place.parent.rmdir()
    model.eval()
    return TrainedStudent(
        tuple(best.losses),
        best.epoch + 1,
        time.perf_counter() - began,
        steps,
        choice.chosen,
        settings.epochs - best.epochs_here,
    )


class _Student(L.LightningModule):
    """A classifier whose batches bring the numbers of their texts in place of labels."""

    def __init__(self, model: nn.Module, objective: Objective, settings: StudentSettings, total_steps: int) -> None:
        super().__init__()
        self.model = model
        self._objective = objective
        self._settings = settings
        self._total_steps = total_steps

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = _loss(self.model, self._objective, batch)
        if not math.isfinite(loss.item()):
            raise DivergedError(
                f"The loss became {loss.item()} at step {self.global_step} of {self._total_steps}: the rates are too "
                "high. Lower them, or lengthen the warm-up."
            )
        return loss

    def configure_optimizers(self) -> Any:
        settings = self._settings
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fused=has_fused_adamw(self.device.type),
        )
        scheduler = get_scheduler(
            "constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
            optimizer,
            num_warmup_steps=round(settings.warmup * self._total_steps),
            num_training_steps=self._total_steps,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _BestWeights(Callback):
    """After each epoch, the loss on the held-out texts; the weights with the lowest one are kept.

    Args:
        model: the student.
        held_out: its tokens.
        objective: what is learned.
        pad_token_id: of its tokenizer.
        folder: where the weights are kept; None keeps them in memory.
    """

    def __init__(
        self, model: nn.Module, held_out: TokenSplit, objective: Objective, pad_token_id: int, folder: Path | None
    ) -> None:
        self._model = model
        self._held_out = held_out
        self._objective = objective
        self._pad = pad_token_id
        self._file = None if folder is None else folder / "best.safetensors"
        self._weights: dict[str, Tensor] = {}
        self.losses: list[float] = []
        self.epochs_here = 0

    @property
    def epoch(self) -> int:
        """The epoch with the lowest loss, the first of several, counted from 0."""
        return min(range(len(self.losses)), key=self.losses.__getitem__)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning's own autocast does not hold here, so the loss is that of 32 bits.
        loss = held_out_loss(self._model, self._objective, self._held_out, self._pad)
        if not math.isfinite(loss):
            raise DivergedError(f"The loss on the held-out texts became {loss}: the rates are too high. Lower them.")
        self.losses.append(loss)
        self.epochs_here += 1
        if self.epoch != len(self.losses) - 1:
            return
        # A clone each: safetensors refuses tensors that share memory, as tied weights do.
        self._weights = {name: value.detach().cpu().clone() for name, value in self._model.state_dict().items()}
        if self._file is not None:
            from safetensors.torch import save

            write_bytes(self._file, save(self._weights))
            self._weights = {}

    def restore(self) -> None:
        """Give the model the kept weights."""
        weights = self._weights
        if self._file is not None:
            from safetensors.torch import load_file

            weights = load_file(self._file)
        self._model.load_state_dict(weights)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = [float(loss) for loss in state_dict["losses"]]


class _Progress(Callback):
    def __init__(self, call: Callable[[int, int, tuple[float, ...]], None], steps: int, best: _BestWeights) -> None:
        self._call, self._steps, self._best = call, steps, best

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *args: object, **kwargs: object) -> None:
        self._call(trainer.global_step, self._steps, tuple(self._best.losses))


def held_out_loss(model: Any, objective: Objective, tokens: TokenSplit, pad_token_id: int) -> float:
    """The mean loss of texts, without dropout; the model's mode is restored."""
    training, total = model.training, 0.0
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        for batch in eval_loader(tokens, _EVAL_BATCH, pad_token_id):
            moved = {key: value.to(device) for key, value in batch.items()}
            total += _loss(model, objective, moved).item() * len(batch["labels"])
    model.train(training)
    return total / len(tokens)


def student_logits(model: Any, tokens: TokenSplit, pad_token_id: int) -> Tensor:
    """The outputs of a classifier for texts in their order, [texts, labels], float32, without dropout."""
    model.to(training_device()).eval()
    rows: list[Tensor] = []
    outputs: list[Tensor] = []
    with torch.inference_mode():
        for batch in eval_loader(_numbered(tokens), _EVAL_BATCH, pad_token_id):
            inputs = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
            outputs.append(model(**inputs).logits.float().cpu())
            rows.append(batch["labels"])
    return torch.cat(outputs)[torch.cat(rows).argsort()]


def _numbered(tokens: TokenSplit) -> TokenSplit:
    return TokenSplit(tokens.rows, torch.arange(len(tokens)))


def _loss(model: nn.Module, objective: Objective, batch: dict[str, Tensor]) -> Tensor:
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    return objective(model(**inputs).logits.float(), batch["labels"].cpu())


def _key(model: Any, tokens: TokenSplit, objective: Objective, held_out: list[int], settings: StudentSettings) -> str:
    """What a training depends on: one that was stopped goes on only with the same."""
    digest = hashlib.sha256(json.dumps([weights_fingerprint(model), held_out, asdict(settings)]).encode())
    digest.update(str(tokens.rows.checksum()).encode())
    for tensor in (objective.targets, objective.weights):
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _newest(folder: Path) -> Path | None:
    """The newest checkpoint that can be read; one that was cut by a kill cannot."""

    def epoch(path: Path) -> int:
        number = path.stem.partition("=")[2]
        return int(number) if number.isdecimal() else -1

    for path in sorted(folder.glob("epoch=*.ckpt"), key=epoch, reverse=True):
        try:
            torch.load(path, weights_only=True, map_location="cpu")
        # A file that is cut raises errors of zip, pickle or torch.
        except Exception:
            path.unlink()
            continue
        return path
    return None


def _resuming(checkpoint: Path | None) -> dict[str, Any]:
    if checkpoint is None:
        return {}
    # Before 2.6 Lightning has no such argument.
    can = "weights_only" in inspect.signature(L.Trainer.fit).parameters
    return {"ckpt_path": str(checkpoint), **({"weights_only": True} if can else {})}
