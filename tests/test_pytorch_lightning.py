"""LayerwiseLR and LossAdaptiveLR under `pytorch_lightning`: alone, beside its twin, and in every order of import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
import twin

from lr_dist import ExactResume, LayerwiseLR, LossAdaptiveLR, LRDistribution
from lr_dist.errors import UnsupportedTrainerError

pl = pytest.importorskip("pytorch_lightning")

# What stands for each part of the callback: a step's rates, schedulers, resuming, other callbacks, the command line.
CHOSEN = (
    "tests/test_callback.py",
    "tests/test_resume.py",
    "tests/test_exact_resume.py::test_a_run_resumes_exactly_from_every_hook",
    "tests/test_exact_resume_alone.py",
    "tests/test_lightning_internals.py",
    "tests/test_exact_resume_stops.py::test_a_run_that_the_scheduler_of_a_cluster_ends_resumes_exactly",
    "tests/test_exact_resume_stops.py::test_a_window_that_changes_with_the_epoch",
    "tests/test_schedulers.py::test_a_plateau_reduces_every_layer_down_to_its_own_floor",
    "tests/test_gradual.py::test_every_n_steps_one_more_layer_moves_from_the_head_down",
    "tests/test_gradual.py::test_on_a_single_device_nothing_is_computed_below_the_lowest_started_layer",
    "tests/test_gradual.py::test_the_monitor_shows_what_the_next_step_will_use",
    "tests/test_loss_adaptive.py::test_a_run_resumes_exactly_within_a_window_too",
    "tests/compatibility/test_logging.py",
    "tests/compatibility/test_lr_finder.py",
    "tests/compatibility/test_averaging.py",
    "tests/compatibility/test_finetuning.py",
    "tests/compatibility/test_cli.py::test_the_shipped_configuration_fits_with_its_rates_and_saves_itself",
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)


def test_the_callback_does_its_work_where_only_pytorch_lightning_is_installed(tmp_path: Path) -> None:
    done = twin.run(tmp_path, "-W", "ignore", *CHOSEN)
    counted = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-3000:]
    assert counted is not None
    assert int(counted[1]) > 100


# A module and data that are written with `L`, whichever of the twins that is.
PROGRAM = """
import sys
{imports}
import torch

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(40, 8)
        self.layers = torch.nn.ModuleList(torch.nn.TransformerEncoderLayer(8, 2, 8) for _ in range(3))
        self.head = torch.nn.Linear(8, 2)
    def training_step(self, batch, index):
        hidden = self.embedding(batch[0])
        for layer in self.layers:
            hidden = layer(hidden)
        return torch.nn.functional.cross_entropy(self.head(hidden[:, 0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

tokens = torch.arange(64).view(8, 8) % 40
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tokens, tokens[:, 0] % 2), batch_size=4)
trainer = L.Trainer(callbacks={callbacks}, accelerator="cpu", max_epochs=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Module(), data)
print({{group["name"]: float(group["lr"]) for group in trainer.optimizers[0].param_groups}})
"""
CALLBACK = 'LayerwiseLR("decay:lr=1e-2,factor=0.5", verbose=False)'
ORDERS = {
    "twin first": "import pytorch_lightning as L\nfrom lr_dist import LayerwiseLR",
    "lr-dist first": "from lr_dist import LayerwiseLR\nimport pytorch_lightning as L",
    "another library has imported lightning": (
        "import lightning.pytorch\nfrom lr_dist import LayerwiseLR\nimport pytorch_lightning as L"
    ),
    "lightning is missing": (
        "sys.modules['lightning'] = None\nfrom lr_dist import LayerwiseLR\nimport pytorch_lightning as L"
    ),
    "the twin is missing": (
        "sys.modules['pytorch_lightning'] = None\nfrom lr_dist import LayerwiseLR\nimport lightning.pytorch as L"
    ),
    "the twin cannot be imported": (
        "sys.path.insert(0, {folder!r})\nfrom lr_dist import LayerwiseLR\nimport lightning.pytorch as L"
    ),
}


@pytest.mark.parametrize("imports", ORDERS.values(), ids=ORDERS)
def test_a_program_works_in_every_order_of_imports(imports: str, tmp_path: Path) -> None:
    (tmp_path / "pytorch_lightning.py").write_text("raise RuntimeError('made for another torch')")
    # Lightning takes a callback outside a list only if it is one of its own class.
    done = run(PROGRAM.format(imports=imports.format(folder=str(tmp_path)), callbacks=CALLBACK))
    assert done.returncode == 0, done.stderr[-3000:]
    rates = {"embeddings": 1e-2 / 16, "layers.0": 1e-2 / 8, "layers.1": 1e-2 / 4, "layers.2": 1e-2 / 2, "head": 1e-2}
    assert ast.literal_eval(done.stdout.splitlines()[-1]) == pytest.approx(rates)


def test_without_any_lightning_the_package_to_install_is_named() -> None:
    code = "import sys; sys.modules.update(lightning=None, pytorch_lightning=None); import lr_dist.callback"
    done = run(code)
    assert "MissingExtraError" in done.stderr
    assert "pip install lightning" in done.stderr


class Classifier(pl.LightningModule):
    """`tiny.Classifier` for the twin's Trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny.bert()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    on_train_batch_start = tiny.Classifier.on_train_batch_start
    training_step = tiny.Classifier.training_step


def test_one_process_trains_with_both_twins_and_ends_at_the_same_weights() -> None:
    def callbacks() -> list[Any]:
        options: dict[str, Any] = {"unfreeze_every_n_steps": 1, "layer_warmup_steps": 2, "verbose": False}
        return [LayerwiseLR(LRDistribution.from_dict(tiny.EXPLICIT), **options), LossAdaptiveLR()]

    ended = []
    for package, module in (
        (L, tiny.Classifier(lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3))),
        (pl, Classifier()),
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            trainer = package.Trainer(
                callbacks=callbacks(), accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(module, tiny.batches())
        ended.append(tiny.weights(module))
    first, second = ended
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("callback", [ExactResume, LayerwiseLR, LossAdaptiveLR])
def test_the_callbacks_are_of_both_twins_classes(callback: type) -> None:
    assert issubclass(callback, L.Callback)
    assert issubclass(callback, pl.Callback)


def test_a_version_from_before_lightning_2_5_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl, "__version__", "1.9.5")
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, callbacks=[LayerwiseLR("flat:lr=1e-4")])
    with pytest.raises(UnsupportedTrainerError, match=r"pytorch_lightning 1\.9\.5.*pip install -U pytorch_lightning"):
        trainer.fit(Classifier(), tiny.batches())


def test_one_module_alone_imports_lightning() -> None:
    found = {
        file.relative_to(twin.ROOT).as_posix()
        for folder in ("lr_dist", "search")
        for file in (twin.ROOT / folder).rglob("*.py")
        if re.search(
            r"^\s*(import|from) (lightning|pytorch_lightning)\b", file.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert found == {"lr_dist/_lightning.py"}
