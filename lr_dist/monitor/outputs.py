"""How a batch is scored where the user does not say it: the model's own forward gives the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lr_dist.errors import ScoringError

_LABELS = ("labels", "label")
_GIVE = "Give score=..., a function (module, batch) -> (outputs, targets)."


def outputs_and_labels(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """(logits, labels) of a batch.

    The batch is a mapping with `labels`, whose other entries are the model's keywords, or a pair (inputs, labels). A
    LightningModule without a `forward` of its own stands for the one model that it holds.

    Raises:
        ScoringError: another kind of batch, no labels, no forward, or outputs without logits.
    """
    model = _with_forward(module)
    if isinstance(batch, Mapping):
        key = next((name for name in _LABELS if batch.get(name) is not None), None)
        if key is None:
            raise ScoringError(f"The batch has no labels; it has {', '.join(map(str, batch)) or 'no entries'}. {_GIVE}")
        inputs = {name: value for name, value in batch.items() if name != key}
        return _logits(model(**inputs)), batch[key]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return _logits(model(batch[0])), batch[1]
    raise ScoringError(
        f"The batch is a {type(batch).__name__}, neither a mapping with labels nor a pair (inputs, labels). {_GIVE}"
    )


def _with_forward(module: nn.Module) -> nn.Module:
    # LightningModule.forward calls nn.Module's, which is not implemented.
    if type(module).forward is not nn.Module.forward and not _inherits_from_lightning(type(module).forward):
        return module
    # Metrics and losses without weights are no models.
    models = [child for child in module.children() if any(True for _ in child.parameters())]
    if len(models) == 1:
        return models[0]
    raise ScoringError(f"{type(module).__name__} has no forward, and holds {len(models)} models. {_GIVE}")


def _inherits_from_lightning(forward: Any) -> bool:
    # None where the class was made by `exec` in names without `__name__`.
    return (forward.__module__ or "").startswith(("lightning.pytorch.core", "pytorch_lightning.core"))


def _logits(outputs: Any) -> Tensor:
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    if not isinstance(logits, Tensor):
        raise ScoringError(f"The model returns {type(outputs).__name__} without logits. {_GIVE}")
    return logits
