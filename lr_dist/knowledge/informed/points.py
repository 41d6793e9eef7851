"""Informed pre-training on points of an equation: a small network learns prototypes, then few measurements."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lr_dist._lightning import L
from lr_dist.callback import LayerwiseLR
from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError
from lr_dist.knowledge.prototypes.equations import Points
from lr_dist.presets.plans import resolve_plan
from lr_dist.rate_plan import RatePlan
from lr_dist.sequence.seeds import derive_seed, set_seed


class PointRegressor(L.LightningModule):
    """A network of equal layers for a value of a few variables, float64.

    Args:
        variables: number of inputs.
        width: of each hidden layer.
        depth: number of hidden layers.
        low, high: [variables] each; inputs are scaled from there to -1 ... 1.
    """

    def __init__(self, variables: int, *, width: int = 32, depth: int = 3, low: Tensor, high: Tensor) -> None:
        super().__init__()
        # By its length the list is known as the layers, which have no attention.
        self.config = SimpleNamespace(num_hidden_layers=depth)
        self.embeddings = nn.Linear(variables, width)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth))
        self.head = nn.Linear(width, 1)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.to(torch.float64)

    def forward(self, inputs: Tensor) -> Tensor:
        """Values [points] of inputs [points, variables]."""
        low, high = self.get_buffer("low"), self.get_buffer("high")
        states = torch.tanh(self.embeddings(2 * (inputs - low) / (high - low) - 1))
        for layer in self.layers:
            states = layer(states)
        return self.head(states).squeeze(-1)

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, values = batch
        return nn.functional.mse_loss(self(inputs), values)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def error(self, points: Points) -> float:
        """Root of the mean squared error."""
        with torch.no_grad():
            predicted = self(torch.from_numpy(points.inputs)).numpy()
        return float(np.sqrt(np.mean((predicted - points.values) ** 2)))


def learn_points(
    points: Points,
    prototypes: Points | None = None,
    *,
    rates: str | RatePlan,
    ranges: NDArray[np.float64],
    steps: int = 300,
    prototype_steps: int = 300,
    width: int = 32,
    depth: int = 3,
    seed: int = 0,
) -> PointRegressor:
    """A network that has learned the prototypes, if any, then the points; all points of a stage in every step.

    Args:
        points: measured points.
        prototypes: points of an equation.
        rates: a rate plan, `A | B`: A for the prototypes, B for the points.
        ranges: [variables, 2], lowest and highest value of each input.
        steps, prototype_steps: of each stage.
        width, depth: of the network.
        seed: of the network's first weights.

    Raises:
        ConfigurationError: no steps.
    """
    for name, value in (("steps", steps), ("prototype_steps", prototype_steps)):
        check_whole(name, value, 1, error=ConfigurationError)
    plan = rates if isinstance(rates, RatePlan) else resolve_plan(rates)
    set_seed(seed, "points")
    low, high = torch.from_numpy(np.array(ranges, dtype=np.float64)).T
    module = PointRegressor(points.inputs.shape[1], width=width, depth=depth, low=low.clone(), high=high.clone())
    stages = [(0, prototypes, prototype_steps), (1, points, steps)]
    for stage, given, count in stages:
        if given is None:
            continue
        set_seed(derive_seed(seed, "stage", stage), "fit")
        data = TensorDataset(torch.from_numpy(given.inputs), torch.from_numpy(given.values))
        with _quiet():
            trainer = L.Trainer(
                max_epochs=count,
                accelerator="cpu",
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[LayerwiseLR(plan.stage(stage), verbose=False, exact_resume=False)],
            )
            trainer.fit(module, DataLoader(data, batch_size=len(data)))
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
