"""What stands beside `LayerwiseLR` in a Trainer: strategies and callbacks that it refuses, or has to listen to."""

from __future__ import annotations

import lightning.pytorch as L

from lr_dist.errors import UnsupportedStrategyError, UnsupportedTrainerError


def check_trainer(trainer: L.Trainer) -> None:
    """Refuse what cannot work, before anything is set up.

    Raises:
        UnsupportedTrainerError: another library's Trainer.
        UnsupportedStrategyError: a strategy under which a callback cannot split the parameter groups.
    """
    if not isinstance(trainer, L.Trainer):
        raise UnsupportedTrainerError(
            f"LayerwiseLR works with lightning.pytorch.Trainer, not with {type(trainer).__module__}."
            f"{type(trainer).__qualname__}. Import Lightning as `import lightning.pytorch as L`."
        )


def check_strategy(trainer: L.Trainer) -> None:
    """Refuse a strategy that builds its optimizer before a callback can split the groups.

    Raises:
        UnsupportedStrategyError: DeepSpeed.
    """
    from lightning.pytorch.strategies import DeepSpeedStrategy

    if isinstance(trainer.strategy, DeepSpeedStrategy):
        raise UnsupportedStrategyError(
            "DeepSpeedStrategy builds its optimizer before a callback can split the parameter groups. Build them "
            "in `configure_optimizers` instead, Adam(lr_dist.param_groups(self, distribution)), and remove the "
            "LayerwiseLR callback; or use FSDP or DDP."
        )
