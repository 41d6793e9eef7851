"""A transformer with one linear head a task, as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from lr_dist._lightning import L
from lr_dist.errors import ConfigurationError, DivergedError, shown
from lr_dist.runs.fused import has_fused_adamw
from lr_dist.sequence.fast.packing import first_states
from lr_dist.sequence.joint_loader import HEAD
from lr_dist.sequence.settings import SequenceSettings


class SequenceClassifier(L.LightningModule):
    """A backbone with a linear head for each task; one head is active at a time.

    The vector of a text is the last hidden state of its first token if the tokenizer puts a class token there,
    otherwise of its last token that is not padding (decoders).

    Args:
        backbone: a transformers model that returns `last_hidden_state` [batch, tokens, hidden].
        heads: name -> number of outputs.
        reads_first_token: whether the first token gives the text's vector, see above.
        first_position: for batches without padding on a CPU, see `lr_dist.sequence.fast.packing`; None pads them.
        settings: optimizer, schedule.
        given_heads: name -> a head that a start has learned, with dropout of its own, in place of a new one.

    Raises:
        ConfigurationError: an encoder-decoder, which has no single vector for a text; two heads of nearly one name.
    """

    def __init__(
        self,
        backbone: nn.Module,
        heads: Mapping[str, int],
        *,
        reads_first_token: bool,
        settings: SequenceSettings,
        first_position: int | None = None,
        given_heads: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        config: Any = backbone.config
        if getattr(config, "is_encoder_decoder", False):
            raise ConfigurationError(
                f"{type(backbone).__name__} is an encoder-decoder; the sequence needs an encoder or a decoder."
            )
        check_heads(heads)
        self.backbone = backbone
        self.heads = nn.ModuleDict({key_of(name): _new_head(config.hidden_size, n) for name, n in heads.items()})
        # After the new ones are made, so that those of the other tasks do not depend on what is given.
        self._given = {key_of(name) for name in given_heads}
        self.heads.update({key_of(name): head for name, head in given_heads.items()})
        self.dropout = nn.Dropout(0.1)
        self.reads_first_token = reads_first_token
        self.first_position = first_position
        self.settings = settings
        # Weights that were frozen before (by the user, or next to adapters) stay frozen for every task.
        self._trainable = {name for name, weight in backbone.named_parameters() if weight.requires_grad}
        self._active = next(iter(self.heads))
        self._regressions: set[str] = set()
        self._total_steps = 1

    def start_task(self, head: str, *, regression: bool, total_steps: int, trained_too: Collection[str] = ()) -> None:
        """Train this head, and those weights of the backbone that were trainable when the module was made.

        In the setup of the fit, `LayerwiseLR` freezes what its distribution freezes.

        Args:
            head: the task's.
            regression: whether its labels are numbers.
            total_steps: length of the schedule.
            trained_too: heads of earlier tasks that are trained, too.
        """
        self._active = key_of(head)
        (self._regressions.add if regression else self._regressions.discard)(self._active)
        self._total_steps = total_steps
        for weight_name, weight in self.backbone.named_parameters():
            weight.requires_grad_(weight_name in self._trainable)
        for name, module in self.heads.items():
            module.requires_grad_(name == self._active or name in {key_of(each) for each in trained_too})

    def forward(self, batch: Mapping[str, Tensor], head: str | None = None) -> Tensor:
        """Outputs [batch, number of outputs] of one head (default: the active one), float32."""
        vectors = self.vectors(batch)
        return self._outputs(head, vectors, self.dropout(vectors))

    def task_outputs(self, batch: Mapping[str, Tensor], head: str | None) -> Tensor:
        """As `forward`: what methods call for the batches of other tasks."""
        return self(batch, head)

    def heads_outputs(self, batch: Mapping[str, Tensor], heads: Sequence[str | None]) -> list[Tensor]:
        """`task_outputs` of several heads, from one pass through the backbone."""
        vectors = self.vectors(batch)
        dropped = self.dropout(vectors)
        return [self._outputs(head, vectors, dropped) for head in heads]

    def _outputs(self, head: str | None, vectors: Tensor, dropped: Tensor) -> Tensor:
        name = self._active if head is None else key_of(head)
        return self.heads[name](vectors if name in self._given else dropped).float()

    @contextmanager
    def padded_batches(self) -> Iterator[None]:
        """Compute texts in separate rows for a while: for methods that look at the gradient of each."""
        before, self.first_position = self.first_position, None
        try:
            yield
        finally:
            self.first_position = before

    def vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The texts' vectors [batch, hidden], which the heads see."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        if self.first_position is not None and self.device.type == "cpu":
            return first_states(self.backbone, inputs, self.first_position)
        hidden = self.backbone(**inputs).last_hidden_state
        if self.reads_first_token:
            return hidden[:, 0]
        last = inputs["attention_mask"].sum(dim=1) - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), last]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        # In joint training, each batch has the head of its task.
        head = key_of(str(batch.get(HEAD, self._active)))
        outputs = self({key: value for key, value in batch.items() if key != HEAD}, head)
        if head in self._regressions:
            loss = nn.functional.mse_loss(outputs.squeeze(-1), batch["labels"].float())
        else:
            loss = nn.functional.cross_entropy(outputs, batch["labels"])
        if not math.isfinite(loss.item()):
            raise DivergedError(
                f"The loss became {loss.item()} at step {self.global_step} of {self._total_steps} of the task with "
                f"head {head!r}: the rates are too high. Lower them, or lengthen the warm-up."
            )
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with one rate for all trainable weights; `LayerwiseLR` then gives every layer its own rate."""
        settings = self.settings
        optimizer = torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad],
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fused=has_fused_adamw(self.device.type),
        )
        # transformers' name for a schedule that stays at its peak.
        name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
        scheduler = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=round(settings.warmup * self._total_steps),
            num_training_steps=self._total_steps,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


# Names of nn.ModuleDict's own attributes and methods, which none of its modules can have.
_TAKEN = frozenset(dir(nn.ModuleDict()))


def key_of(head: str) -> str:
    """A head's name as the name of a module, which must not contain a dot, nor be `values`, `training` and the like."""
    key = head.replace(".", "_")
    return f"{key}_" if key in _TAKEN else key


def check_heads(heads: Iterable[str]) -> None:
    """Check that different heads are different modules.

    Raises:
        ConfigurationError: two names that `key_of` makes one.
    """
    names: dict[str, str] = {}
    for head in heads:
        other = names.setdefault(key_of(head), head)
        if other != head:
            raise ConfigurationError(
                f"The heads {shown(other)} and {shown(head)} have names that are too much alike: both are the module "
                f"{key_of(head)}. Give one of the tasks another name."
            )


def _new_head(hidden_size: int, outputs: int) -> nn.Linear:
    """A linear layer with BERT's initialisation."""
    head = nn.Linear(hidden_size, outputs)
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
