"""The distribution among the hyperparameters of loggers, beside those of the module."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lr_dist import LayerwiseLR

DECAY = "decay:lr=4e-4,factor=0.5"
RATES = {"embeddings": 2.5e-5, "layers.0": 5e-5, "layers.1": 1e-4, "layers.2": 2e-4, "head": 4e-4}


class WithHyperparameters(tiny.Classifier):
    """Saves hyperparameters of its own, as most modules do."""

    def __init__(self, width: int = 3, learning_rate: float = 1e-3) -> None:
        super().__init__(lambda module: torch.optim.AdamW(module.parameters(), lr=learning_rate))
        self.save_hyperparameters()


class Recorder(CSVLogger):
    """A CSVLogger that remembers every call."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.calls: list[Any] = []

    def log_hyperparams(self, params: Any) -> None:
        self.calls.append(params)
        super().log_hyperparams(params)


def adamw(module: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=2e-5)


def fit(module: Any, distribution: str, *loggers: Any, callbacks: Any = (), **options: Any) -> L.Trainer:
    callback = LayerwiseLR(distribution, verbose=False)
    return tiny.fit(module, callback, *callbacks, logger=list(loggers), max_steps=2, log_every_n_steps=1, **options)


def written(folder: Path) -> Any:
    return yaml.safe_load(next(folder.rglob("hparams.yaml")).read_text())


def test_the_distribution_and_its_rates_stand_beside_the_modules_hyperparameters(tmp_path: Path) -> None:
    logger, module = Recorder(tmp_path), WithHyperparameters(width=7)
    trainer = fit(module, DECAY, logger)
    expected = {"distribution": DECAY, "rates": pytest.approx(RATES)}
    # One call: TensorBoard shows the first and no later one.
    assert logger.calls == [{"width": 7, "learning_rate": 1e-3, "LayerwiseLR": expected}]
    assert written(tmp_path) == {"width": 7, "learning_rate": 1e-3, "LayerwiseLR": expected}
    # What checkpoints hold, and load_from_checkpoint builds the module from, is the module's alone.
    assert dict(module.hparams) == {"width": 7, "learning_rate": 1e-3}
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert WithHyperparameters.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True).hparams.width == 7
    assert "log_hyperparams" not in vars(logger)


def test_a_module_without_hyperparameters_gets_the_distribution_alone_in_every_logger(tmp_path: Path) -> None:
    first, second = Recorder(tmp_path / "a"), Recorder(tmp_path / "b")
    fit(tiny.Classifier(adamw), DECAY, first, second)
    assert first.calls == second.calls == [{"LayerwiseLR": {"distribution": DECAY, "rates": pytest.approx(RATES)}}]


def test_the_rates_of_a_relative_distribution_are_those_of_the_optimizer(tmp_path: Path) -> None:
    logger = Recorder(tmp_path)
    fit(tiny.Classifier(adamw), "decay:lr=20,factor=0.5,relative=true", logger)
    assert logger.calls[-1]["LayerwiseLR"]["rates"] == pytest.approx(RATES)


def test_halves_of_one_rate_are_one_entry(tmp_path: Path) -> None:
    def halves(module: Any) -> Any:
        decayed, rest = [p for p in module.parameters() if p.ndim > 1], [p for p in module.parameters() if p.ndim < 2]
        return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0}], 2e-5)

    logger = Recorder(tmp_path)
    fit(tiny.Classifier(halves), DECAY, logger)
    assert logger.calls[-1]["LayerwiseLR"]["rates"] == pytest.approx(RATES)


class LogsItself(L.Callback):
    """Logs hyperparameters in a hook of its own, as modules do for TensorBoard's metrics."""

    def __init__(self, params: Any) -> None:
        self.params = params

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.logger.log_hyperparams(self.params)


@pytest.mark.parametrize("params", [{"mine": 1}, Namespace(mine=1)])
def test_what_others_log_before_the_first_step_is_not_taken_away(params: Any, tmp_path: Path) -> None:
    logger = Recorder(tmp_path)
    fit(tiny.Classifier(adamw), DECAY, logger, callbacks=[LogsItself(params)])
    assert len(logger.calls) == 1
    assert logger.calls[0]["mine"] == 1
    assert logger.calls[0]["LayerwiseLR"]["distribution"] == DECAY
    assert vars(params) == {"mine": 1} if isinstance(params, Namespace) else params == {"mine": 1}


def test_a_resumed_run_logs_the_same(tmp_path: Path) -> None:
    fit(WithHyperparameters(), DECAY, CSVLogger(tmp_path / "a")).save_checkpoint(tmp_path / "two.ckpt")
    logger = Recorder(tmp_path / "b")
    module = WithHyperparameters()
    trainer = tiny.trainer(LayerwiseLR(DECAY, verbose=False), logger=logger, max_steps=4, log_every_n_steps=1)
    trainer.fit(module, tiny.batches(8), ckpt_path=tmp_path / "two.ckpt")
    assert trainer.global_step == 4
    assert written(tmp_path / "a") == written(tmp_path / "b")


def test_a_logger_that_refuses_is_warned_of_and_the_run_goes_on(tmp_path: Path) -> None:
    class Strict(CSVLogger):
        def log_hyperparams(self, params: Any) -> None:
            raise RuntimeError("Changing param values is not allowed")

    with pytest.warns(UserWarning, match=r"Strict does not take the distribution.*Changing param values"):
        trainer = fit(tiny.Classifier(adamw), DECAY, Strict(tmp_path))
    assert trainer.global_step == 2


@pytest.mark.parametrize("options", [{}, {"fast_dev_run": True}])
def test_without_a_logger_nothing_happens(options: Any) -> None:
    trainer = tiny.trainer(LayerwiseLR(DECAY, verbose=False), logger=False, **{"max_steps": 1, **options})
    trainer.fit(tiny.Classifier(adamw), tiny.batches(2))
    assert trainer.global_step == 1


def test_tensorboard_shows_both_in_its_first_summary(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    fit(WithHyperparameters(width=7), DECAY, TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(next(tmp_path.rglob("version_0")))).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    shown = metadata.parse_session_start_info_plugin_data(content).hparams
    assert shown["width"].number_value == 7
    assert shown["LayerwiseLR/distribution"].string_value == DECAY
    assert shown["LayerwiseLR/rates/layers.0"].number_value == pytest.approx(5e-5)
