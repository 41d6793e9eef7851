"""Freeze: the lower layers are not trained."""

from __future__ import annotations

import re
from typing import ClassVar

from typing_extensions import override

from lr_dist._distribution.edits import Edit, apply_edits
from lr_dist._lightning import L
from lr_dist.errors import ConfigurationError, InvalidDistributionError, LayerCountError, shown
from lr_dist.layers import Overrides, assign_layers
from lr_dist.methods.base import MethodInfo, Order, Setting
from lr_dist.methods.model_change import ModelChange

_END = re.compile(r"-?\d+|\d*\.\d+|embeddings|layers\.-?\d+")
_EXAMPLES = "..5 (the embeddings and the layers 0 to 5), ..0.5 (the lower half), 3..5, -4.. (the last four layers)"


class Freeze(ModelChange):
    """Does not train the layers of a range, as in Lee et al. 2019 (arXiv 1911.03090), who train only the upper ones.

        trainer = L.Trainer(callbacks=[LayerwiseLR("flat:lr=1e-4"), Freeze("..5")])

    The same as the rate 0 (`flat:lr=1e-4,freeze=embeddings..layers.5`), as a method that can be added to any rates. In
    a sequence (`lr_dist.sequence`) it acts from the second stage on, so that the first one is shared with other arms
    (`stages=all` for all). After the fit, what was trainable before is trainable again. Gradients are computed only
    above the frozen layers, which saves time and memory.

    Args:
        layers: `FIRST..LAST`, both included: a layer's number from 0 (negative ones count from the last), a share of
            the layers written with a point (0.5), or `embeddings`. Without FIRST it begins with the embeddings, without
            LAST it ends with the last layer. The head is always trained.
        stages: `later` or `all`, of a sequence.
        overrides: regex -> group name for parameters that `assign_layers` cannot place.

    Raises:
        ConfigurationError: a range that is not valid; at the start of a fit, one that holds no layer of the model.
        LayerCountError: at the start of a fit, a layer that the model lacks.
    """

    name: ClassVar[str] = "freeze"
    info: ClassVar[MethodInfo] = MethodInfo(
        "does not train the lower layers after the first task", "Lee et al. 2019, arXiv 1911.03090"
    )
    # It does nothing to the weights at the end, so it may stand before those that do.
    order: ClassVar[Order] = Order.FINISH

    def __init__(self, layers: str = "..0.5", stages: str = "later", *, overrides: Overrides | None = None) -> None:
        super().__init__(stages)
        self.range = _range(layers)
        self.layers = layers.strip()
        self.overrides = overrides

    @override
    def settings(self) -> dict[str, Setting]:
        return {"layers": self.layers, "stages": self.stages}

    @override
    def change(self, module: L.LightningModule) -> None:
        """Set `requires_grad` to False in the range."""
        layers = assign_layers(module, self.overrides)
        try:
            rates = layers.rates(lambda n: apply_edits(_ones(n), [self.range]))
        except LayerCountError:
            raise LayerCountError(
                f"freeze:layers={self.layers} names a layer that {type(module).__name__} lacks, or runs backwards: it "
                f"has the layers 0 to {layers.num_layers - 1}. A share of any model's layers is written ..0.5."
            ) from None
        frozen = {group for group, rate in rates.items() if rate == 0}
        if not any(layers.groups[group] for group in frozen):
            raise ConfigurationError(
                f"freeze:layers={self.layers} holds no layer of {type(module).__name__}, which has {layers.num_layers}."
            )
        for name, parameter in module.named_parameters():
            if layers.group_of.get(name) in frozen:
                parameter.requires_grad_(False)


def _ones(num_layers: int) -> dict[str, float]:
    return dict.fromkeys(["embeddings", *(f"layers.{i}" for i in range(num_layers)), "head"], 1.0)


def _range(layers: object) -> Edit:
    """The range as it is written for distributions.

    Raises:
        ConfigurationError: it is none.
    """
    text = layers.strip() if isinstance(layers, str) else ""
    first, dots, last = text.partition("..")
    start, end = _end(first, "embeddings"), _end(last, "layers.-1")
    if not dots or not (first or last) or start is None or end is None:
        raise ConfigurationError(f"layers={shown(layers)} is no range of layers; write {_EXAMPLES}.")
    try:
        return Edit(start, end, 0.0)
    except (InvalidDistributionError, LayerCountError) as error:
        raise ConfigurationError(f"layers={shown(layers)} is no range of layers: {error}") from None


def _end(text: str, default: str) -> str | float | None:
    text = text.strip()
    if not text:
        return default
    if not _END.fullmatch(text):
        return None
    if text.startswith(("embeddings", "layers")):
        return text
    return float(text) if "." in text else f"layers.{int(text)}"
