"""The distribution among a logger's hyperparameters, so that runs can be told apart by it."""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from lr_dist._lightning import rank_zero_warn
from lr_dist.distribution import LRDistribution
from lr_dist.names import layer_of

# Not a name that a module's own `save_hyperparameters` is likely to hold: the loggers keep one mapping for all.
KEY = "LayerwiseLR"


class Hyperparameters:
    """Adds the distribution to what others give the loggers before the first step, and logs it alone if nobody does.

    TensorBoard shows the first hyperparameters of a run and no later ones, so a call of our own before Lightning's or
    the module's would take theirs away. The module's own `hparams`, which checkpoints hold, are not touched.
    """

    def __init__(self) -> None:
        self._content: Callable[[], dict[str, Any]] | None = None
        self._listening: list[Any] = []
        self._told: dict[int, Any] = {}

    def listen(self, trainer: Any, content: Callable[[], dict[str, Any]]) -> None:
        """Start in `setup`, before Lightning logs the module's hyperparameters.

        Args:
            trainer: its loggers are listened to, on the first process.
            content: what is known at the moment, as plain data.
        """
        self.close()
        self._content = content
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if hasattr(logger, "__dict__") and "log_hyperparams" not in vars(logger):
                logger.log_hyperparams = functools.partial(self._log, logger, logger.log_hyperparams)
                self._listening.append(logger)

    def finish(self, trainer: Any) -> None:
        """Log what was not told yet; at the first batch, after every hook in which a module may have logged its own."""
        if self._content is None:
            return
        now, told, loggers = self._content(), self._told, self._listening
        self.close()
        for logger in loggers:
            # Another logger may have taken its place, as in a search for a rate.
            if any(logger is other for other in trainer.loggers) and told.get(id(logger)) != now:
                try:
                    logger.log_hyperparams({KEY: now})
                except Exception as error:
                    # Such as MLflow's in a run that has another value: no reason to stop.
                    name = type(logger).__name__
                    rank_zero_warn(f"{name} does not take the distribution as a hyperparameter: {error}")

    def close(self) -> None:
        """Leave the loggers as they were."""
        for logger in self._listening:
            vars(logger).pop("log_hyperparams", None)
        self._content, self._listening, self._told = None, [], {}

    def _log(self, logger: Any, original: Callable[..., Any], params: Any, *rest: Any, **options: Any) -> Any:
        if self._content is None:
            return original(params, *rest, **options)
        plain = vars(params) if isinstance(params, Namespace) else params
        # A container of OmegaConf stays what it is; the distribution follows in `finish`.
        if isinstance(plain, dict) and KEY not in plain:
            self._told[id(logger)] = self._content()
            params = {**plain, KEY: self._told[id(logger)]}
        return original(params, *rest, **options)


def described(
    distribution: LRDistribution, num_layers: int | None, optimizer: Optimizer | None
) -> dict[str, str | dict[str, float]]:
    """The text form, and each layer's rate as far as it is known.

    Args:
        distribution: of the run.
        num_layers: None where the model is not built yet.
        optimizer: with the groups of `regroup`; None before they are made.
    """
    rates: Mapping[str, float] = {}
    if optimizer is not None:
        rates = {group["name"]: float(group["layer_lr"]) for group in optimizer.param_groups}
        # One entry a layer, unless its groups differ.
        layers = {name: rate for name, rate in rates.items() if layer_of(name) == name}
        rates = {**layers, **{n: r for n, r in rates.items() if layers.get(layer_of(n)) != r}}
    elif num_layers is not None and not distribution.relative:
        rates = distribution.rates(num_layers)
    return {"distribution": str(distribution), **({"rates": dict(rates)} if rates else {})}
