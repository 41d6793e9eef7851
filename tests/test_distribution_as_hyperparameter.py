"""An LRDistribution as a hyperparameter of the user's module: checkpoints, loggers, copies, pickles, YAML."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lr_dist import LayerwiseLR, LRDistribution

EXPLICIT = LRDistribution.from_dict(tiny.EXPLICIT)
DECAY = LRDistribution.decay(1e-3, 0.5)
KINDS = {
    "explicit and frozen": EXPLICIT.freeze("embeddings"),
    "relative": LRDistribution.linear(0.1, 2.0, relative=True),
    "edited": DECAY.override("layers.1", 3e-5),
    "mean": LRDistribution.geometric_mean([DECAY.override("layers.1", 3e-5), EXPLICIT]),
}


class Module(L.LightningModule):
    """As users write it: everything that the constructor is given is a hyperparameter."""

    def __init__(self, distribution: Any, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = tiny.bert()

    training_step = tiny.Classifier.training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])

    def configure_callbacks(self) -> Any:
        return [LayerwiseLR(self.hparams["distribution"], verbose=False)]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_are_loaded_and_resumed_with_weights_only(kind: str, tmp_path: Path) -> None:
    distribution = KINDS[kind]
    trainer = tiny.fit(Module(distribution), logger=CSVLogger(tmp_path))
    path = tmp_path / "one.ckpt"
    trainer.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["hyper_parameters"]["distribution"] == distribution
    for weights_only in (True, False, None):
        assert Module.load_from_checkpoint(path, weights_only=weights_only).hparams["distribution"] == distribution
    assert tiny.fit(Module(distribution), ckpt=path, max_epochs=2, weights_only=True).global_step == 16


@pytest.mark.parametrize("kind", KINDS)
def test_the_loggers_file_is_plain_and_makes_the_module_again(kind: str, tmp_path: Path) -> None:
    trainer = tiny.fit(Module(KINDS[kind]), logger=CSVLogger(tmp_path))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    (hparams,) = tmp_path.rglob("hparams.yaml")
    written = yaml.safe_load(hparams.read_text())["distribution"]
    assert LayerwiseLR(written).distribution == KINDS[kind]
    again = Module.load_from_checkpoint(tmp_path / "one.ckpt", hparams_file=str(hparams), weights_only=True)
    assert tiny.fit(again, max_epochs=1).global_step == 8


def test_tensorboard_logs_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tiny.fit(Module(DECAY), logger=TensorBoardLogger(tmp_path))
    (hparams,) = tmp_path.rglob("hparams.yaml")
    assert LRDistribution.parse(yaml.safe_load(hparams.read_text())["distribution"]) == DECAY


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles_are_equal(kind: str) -> None:
    distribution = KINDS[kind]
    for again in (
        copy.copy(distribution),
        copy.deepcopy(distribution),
        copy.deepcopy(Module(distribution)).hparams["distribution"],
        *(pickle.loads(pickle.dumps(distribution, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)),
    ):
        assert again == distribution
        assert again.fingerprint == distribution.fingerprint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dump", [yaml.dump, yaml.safe_dump])
def test_yaml_is_what_the_callback_reads(kind: str, dump: Any) -> None:
    read = yaml.safe_load(dump({"distribution": KINDS[kind]}))["distribution"]
    assert LayerwiseLR(read).distribution == KINDS[kind]


def test_a_changed_checkpoint_does_not_get_past_the_constructors_checks() -> None:
    file = io.BytesIO()
    torch.save({"distribution": DECAY}, file, _use_new_zipfile_serialization=False)
    assert file.getvalue().count(b"decay") == 1
    with pytest.raises(Exception, match="dekay"):
        torch.load(io.BytesIO(file.getvalue().replace(b"decay", b"dekay")), weights_only=True)


def test_it_is_loaded_by_a_program_that_imports_lr_dist_and_torch_in_either_order(tmp_path: Path) -> None:
    torch.save(DECAY, tmp_path / "one.pt")
    load = f"print(torch.load({str(tmp_path / 'one.pt')!r}, weights_only=True))"
    for imports in (
        "import torch\nfrom lr_dist import LRDistribution",
        "from lr_dist import param_groups\nimport torch",
    ):
        done = subprocess.run([sys.executable, "-c", f"{imports}\n{load}"], capture_output=True, text=True)
        assert done.stdout.strip() == str(DECAY), done.stderr
