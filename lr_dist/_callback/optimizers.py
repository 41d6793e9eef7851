"""The optimizers of a Trainer whose groups `LayerwiseLR` splits."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from lr_dist.errors import UnsupportedOptimizerError
from lr_dist.regroup import Placement, layer_optimizers


def optimizers_to_split(optimizers: Sequence[Optimizer], placement: Placement) -> list[Optimizer]:
    """`layer_optimizers`; its error for no optimizer also says what to change in a LightningModule.

    Raises:
        UnsupportedOptimizerError: no optimizer at all.
        OptimizerCoverageError: see `layer_optimizers`.
    """
    try:
        return layer_optimizers(optimizers, placement)
    except UnsupportedOptimizerError as error:
        raise UnsupportedOptimizerError(
            f"{error} Return it from `configure_optimizers`, or remove the LayerwiseLR callback."
        ) from None
