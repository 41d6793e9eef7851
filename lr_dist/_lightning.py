"""Lightning under both of its names: `lightning.pytorch`, and its twin `pytorch_lightning` with the same source.

The twins' classes are distinct: a Trainer of one knows nothing of the other's callbacks and strategies. So that a
callback serves whichever Trainer it is given, in whatever order things were imported, `Callback` inherits from both,
and each name below stands for the classes of both in `isinstance` and `except`. A twin that is not installed is left
out. A second one costs a tenth of a second: torch and torchmetrics have been imported by then.

This is the only module of lr-dist that imports Lightning; mypy sees `lightning.pytorch`.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

# The twins share these.
from lightning_utilities.core import rank_zero
from lightning_utilities.core.rank_zero import rank_zero_info as rank_zero_info
from lightning_utilities.core.rank_zero import rank_zero_warn as rank_zero_warn

from lr_dist.errors import MissingExtraError, UnsupportedTrainerError

_TWINS = ("lightning.pytorch", "pytorch_lightning")
# The oldest version that the hooks and loops used here were run with.
_OLDEST = (2, 5)


def _installed() -> list[ModuleType]:
    """The twins that can be imported, first the one that the program uses already."""
    found: list[ModuleType] = []
    failures: dict[str, Exception] = {}
    for name in sorted(_TWINS, key=lambda name: name not in sys.modules):
        try:
            found.append(importlib.import_module(name) if not found else _import_quietly(name))
        except Exception as failure:  # an old one beside a new torch may raise anything
            failures[name] = failure
    if not found:
        reasons = "; ".join(f"{name}: {type(failure).__name__}: {failure}" for name, failure in failures.items())
        raise MissingExtraError(
            f"lr-dist's callbacks need Lightning, and neither of its packages can be imported ({reasons}). "
            "Run: pip install lightning"
        ) from failures[_TWINS[0]]
    return found


def _import_quietly(name: str) -> ModuleType:
    """Import what nobody asked for: without its warnings, and without a change to where messages are logged."""
    log = getattr(rank_zero, "log", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(name)
    # Each twin directs all messages to a logger of its name; users silence that of the twin that they know.
    rank_zero.log = log  # type: ignore[assignment]
    return module


_PACKAGES = _installed()

if TYPE_CHECKING:
    import lightning.pytorch as L
    from lightning.fabric.utilities.load import _METADATA_FILENAME as METADATA_FILENAME
    from lightning.pytorch import Callback as Callback
    from lightning.pytorch import Trainer as Trainer
    from lightning.pytorch.callbacks import BackboneFinetuning as BackboneFinetuning
    from lightning.pytorch.callbacks import BaseFinetuning as BaseFinetuning
    from lightning.pytorch.callbacks import BatchSizeFinder as BatchSizeFinder
    from lightning.pytorch.callbacks import GradientAccumulationScheduler as GradientAccumulationScheduler
    from lightning.pytorch.callbacks import LearningRateFinder as LearningRateFinder
    from lightning.pytorch.callbacks import StochasticWeightAveraging as StochasticWeightAveraging
    from lightning.pytorch.core.optimizer import LightningOptimizer as LightningOptimizer
    from lightning.pytorch.strategies import DDPStrategy as DDPStrategy
    from lightning.pytorch.strategies import DeepSpeedStrategy as DeepSpeedStrategy
    from lightning.pytorch.strategies import FSDPStrategy as FSDPStrategy
    from lightning.pytorch.strategies import ModelParallelStrategy as ModelParallelStrategy
    from lightning.pytorch.strategies import SingleDeviceStrategy as SingleDeviceStrategy
    from lightning.pytorch.strategies import SingleDeviceXLAStrategy as SingleDeviceXLAStrategy
    from lightning.pytorch.strategies import XLAStrategy as XLAStrategy
    from lightning.pytorch.utilities.exceptions import SIGTERMException as SIGTERMException
    from lightning.pytorch.utilities.seed import isolate_rng as isolate_rng
else:
    # For what lr-dist makes itself, where any one will do: the Trainer and modules of `lr_dist.sequence`.
    L = _PACKAGES[0]
    METADATA_FILENAME = importlib.import_module(f"{L.__name__}.strategies.model_parallel")._METADATA_FILENAME
    isolate_rng = importlib.import_module(f"{L.__name__}.utilities.seed").isolate_rng

    def _classes(module: str, name: str) -> tuple[type, ...]:
        homes = [importlib.import_module(f"{package.__name__}.{module}") for package in _PACKAGES]
        return tuple(getattr(home, name) for home in homes if hasattr(home, name))

    Trainer = _classes("trainer", "Trainer")
    BackboneFinetuning = _classes("callbacks", "BackboneFinetuning")
    BaseFinetuning = _classes("callbacks", "BaseFinetuning")
    BatchSizeFinder = _classes("callbacks", "BatchSizeFinder")
    GradientAccumulationScheduler = _classes("callbacks", "GradientAccumulationScheduler")
    LearningRateFinder = _classes("callbacks", "LearningRateFinder")
    StochasticWeightAveraging = _classes("callbacks", "StochasticWeightAveraging")
    LightningOptimizer = _classes("core.optimizer", "LightningOptimizer")
    DDPStrategy = _classes("strategies", "DDPStrategy")
    DeepSpeedStrategy = _classes("strategies", "DeepSpeedStrategy")
    FSDPStrategy = _classes("strategies", "FSDPStrategy")
    ModelParallelStrategy = _classes("strategies", "ModelParallelStrategy")
    SingleDeviceStrategy = _classes("strategies", "SingleDeviceStrategy")
    SingleDeviceXLAStrategy = _classes("strategies", "SingleDeviceXLAStrategy")
    XLAStrategy = _classes("strategies", "XLAStrategy")
    SIGTERMException = _classes("utilities.exceptions", "SIGTERMException")

    class Callback(*_classes("callbacks", "Callback")):
        """A callback for the Trainer of either twin."""


def package_of(trainer: Any) -> ModuleType:
    """The twin that `trainer` belongs to.

    Raises:
        UnsupportedTrainerError: another library's Trainer, or a version of Lightning from before 2.5.
    """
    for package in _PACKAGES:
        if isinstance(trainer, package.Trainer):
            if _version(package) < _OLDEST:
                raise UnsupportedTrainerError(
                    f"The Trainer is of {package.__name__} {package.__version__}, and lr-dist works from version "
                    f"{'.'.join(map(str, _OLDEST))} on. Run: pip install -U {package.__name__.partition('.')[0]}"
                )
            return package
    raise UnsupportedTrainerError(
        f"lr-dist's callbacks work with the Trainer of lightning.pytorch or pytorch_lightning, not with "
        f"{type(trainer).__module__}.{type(trainer).__qualname__}. Make it with `import lightning.pytorch as L; "
        "L.Trainer(...)`."
    )


def part_of(trainer: Any, module: str) -> Any:
    """A module of the twin that `trainer` belongs to, by its name there: `utilities.model_helpers`."""
    return importlib.import_module(f"{package_of(trainer).__name__}.{module}")


# The module's methods, which Lightning gives every callback; they hold the module, and that its Trainer.
_LENT = ("log", "log_dict")


def give_back(callback: Any) -> None:
    """Remove what Lightning gave `callback` for its fit, and never takes back."""
    for name in _LENT:
        vars(callback).pop(name, None)


def kept(callback: Any) -> dict[str, Any]:
    """The attributes of `callback` without those, for a pickle."""
    return {name: value for name, value in vars(callback).items() if name not in _LENT}


def _version(package: ModuleType) -> tuple[int, ...]:
    # Of "2.6.0.dev20250701" the first two numbers.
    return tuple(int(number) for number in package.__version__.split(".")[:2])
