"""Logs the distribution with a logger's hyperparameters, so that runs can be compared by it."""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from lr_dist._lightning import rank_zero_warn
from lr_dist.distribution import LRDistribution
from lr_dist.names import layer_of

# A key that a module's `save_hyperparameters` is unlikely to use: a logger keeps one mapping for all of them.
KEY = "LayerwiseLR"


class Hyperparameters:
    """Adds the distribution to the hyperparameters that are logged before the first step, or logs it alone.

    TensorBoard shows only the first hyperparameters of a run, so an extra call before Lightning's or the module's would
    hide theirs. The module's `hparams`, which checkpoints hold, are not changed.
    """

    def __init__(self) -> None:
        self._content: Callable[[], dict[str, Any]] | None = None
        self._wrapped: list[Any] = []
        self._logged: dict[int, Any] = {}

    def wrap_loggers(self, trainer: Any, content: Callable[[], dict[str, Any]]) -> None:
        """Wrap the loggers' `log_hyperparams`; call it in `setup`, before Lightning logs the module's hyperparameters.

        Args:
            trainer: its loggers are wrapped, in the first process.
            content: returns what is known at that moment, as plain data.
        """
        self.close()
        self._content = content
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if hasattr(logger, "__dict__") and "log_hyperparams" not in vars(logger):
                logger.log_hyperparams = functools.partial(self._log, logger, logger.log_hyperparams)
                self._wrapped.append(logger)

    def finish(self, trainer: Any) -> None:
        """Log what is not logged yet; call it at the first batch, after all hooks in which a module may log its own."""
        if self._content is None:
            return
        content, logged, loggers = self._content(), self._logged, self._wrapped
        self.close()
        for logger in loggers:
            # A logger may have been replaced, as during a search for a rate.
            if any(logger is other for other in trainer.loggers) and logged.get(id(logger)) != content:
                try:
                    logger.log_hyperparams({KEY: content})
                except Exception as error:
                    # MLflow, for example, refuses to change a value; that is no reason to stop the run.
                    name = type(logger).__name__
                    rank_zero_warn(f"{name} does not take the distribution as a hyperparameter: {error}")

    def close(self) -> None:
        """Unwrap the loggers."""
        for logger in self._wrapped:
            vars(logger).pop("log_hyperparams", None)
        self._content, self._wrapped, self._logged = None, [], {}

    def _log(self, logger: Any, original: Callable[..., Any], params: Any, *rest: Any, **options: Any) -> Any:
        if self._content is None:
            return original(params, *rest, **options)
        plain = vars(params) if isinstance(params, Namespace) else params
        # A container of OmegaConf is not changed; `finish` logs the distribution.
        if isinstance(plain, dict) and KEY not in plain:
            self._logged[id(logger)] = self._content()
            params = {**plain, KEY: self._logged[id(logger)]}
        return original(params, *rest, **options)


def described(
    distribution: LRDistribution, num_layers: int | None, optimizer: Optimizer | None
) -> dict[str, str | dict[str, float]]:
    """The distribution's text form, and the layers' rates if they are known.

    Args:
        distribution: the run's.
        num_layers: the model's number of layers; None if it is not built yet.
        optimizer: split by `regroup`; None before that.
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
