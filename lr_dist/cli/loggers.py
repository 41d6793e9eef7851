"""`--logger`: send every finished run or trial to an experiment tracker, through Lightning's loggers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lr_dist.errors import MissingExtraError
from lr_dist.runs.redact import redact

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

# Name -> the packages of which it needs one; none of them is among lr-dist's extras.
LOGGERS: dict[str, tuple[str, ...]] = {
    "csv": (),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
NAME = "lr-dist"


def add_logger_option(parser: ArgumentParser, what: str) -> None:
    """Add `--logger`; `what` is what becomes a run of the tracker."""
    parser.add_argument(
        "--logger",
        type=Literal["csv", "tensorboard", "wandb", "mlflow"] | None,
        default=None,
        help=f"Send each finished {what} to this tracker, as a run of its own: csv, tensorboard, wandb or mlflow. It "
        "reads its own environment variables; files are written into OUTPUT/logs.",
    )


class Tracker:
    """Logs what is finished, each as a run of the tracker.

    Args:
        kind: of `LOGGERS`.
        folder: for files.

    Raises:
        MissingExtraError: the tracker's package is not installed.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        if LOGGERS[kind] and not any(find_spec(package) for package in LOGGERS[kind]):
            raise MissingExtraError(f"--logger {kind} needs {LOGGERS[kind][0]}: pip install {LOGGERS[kind][0]}")
        self.kind = kind
        self.folder = folder

    def log(self, name: str, settings: Mapping[str, Any], steps: Sequence[Mapping[str, float]]) -> None:
        """Log one run.

        Args:
            name: of the run.
            settings: its hyperparameters.
            steps: for each step, metric -> value.
        """
        logger = self._open(name)
        shown = {key: redact(value) if isinstance(value, str) else value for key, value in settings.items()}
        logger.log_hyperparams(shown)
        for step, metrics in enumerate(steps):
            if metrics:
                # MLflow takes no other characters.
                named = {re.sub(r"[^\w./: -]", "-", key): value for key, value in metrics.items()}
                logger.log_metrics(named, step=step)
        logger.save()
        logger.finalize("success")
        if self.kind == "wandb":
            # Otherwise the next logger would go on with the same run.
            logger.experiment.finish()

    def _open(self, name: str) -> Any:
        from lr_dist._lightning import L

        loggers: Any = L.loggers
        makers: dict[str, Callable[[], Any]] = {
            "csv": lambda: loggers.CSVLogger(self.folder, name=NAME, version=_as_file(name)),
            "tensorboard": lambda: loggers.TensorBoardLogger(self.folder, name=NAME, version=_as_file(name)),
            "wandb": lambda: loggers.WandbLogger(project=NAME, name=name, save_dir=self.folder),
            "mlflow": lambda: loggers.MLFlowLogger(
                NAME, run_name=name, **({} if os.environ.get("MLFLOW_TRACKING_URI") else {"save_dir": str(self.folder)})
            ),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        return makers[self.kind]()


def stages_as_steps(tasks: list[str], run: Mapping[str, Any]) -> Sequence[Mapping[str, float]]:
    """The scores of a run of a comparison after each stage (step 0: before the first), and its metrics at the end."""
    steps: list[dict[str, float]] = [
        {f"score/{task}": score for task, score in zip(tasks, row, strict=True)} for row in run["matrix"]
    ]
    steps[-1] |= {name: value for name, value in run["metrics"].items() if value is not None}
    steps[-1] |= {"train_seconds": run["train_seconds"]}
    return steps


def _as_file(name: str) -> str:
    return re.sub(r"[^\w.=,+-]+", "_", name)[:150]
