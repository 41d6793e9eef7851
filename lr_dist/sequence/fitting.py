"""A fit within a long command: Ctrl-C raises KeyboardInterrupt, and Lightning prints nothing."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lr_dist._lightning import L
from lr_dist.errors import RateRangeWarning, StuckLayersWarning


def fit_or_interrupt(trainer: L.Trainer, module: L.LightningModule, loader: Any, **options: Any) -> None:
    """Fit; on Ctrl-C raise KeyboardInterrupt, where Lightning calls sys.exit(1) and leaves the signal ignored.

    Args:
        trainer, module, loader: as for `trainer.fit`.
        options: further arguments of `trainer.fit`, such as `ckpt_path`.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, loader, **options)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's start-up lines and its advice on loaders and loggers, which would repeat for every task."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            # Given once for all runs, before the first.
            for category in (RateRangeWarning, StuckLayersWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
