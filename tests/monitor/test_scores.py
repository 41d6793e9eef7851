"""What is logged: the scores of the old tasks, what was forgotten, how far each layer moved."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from monitor.watched import accuracy, accuracy_of, adamw, monitor, old_loader, score
from torchmetrics import MeanSquaredError
from torchmetrics.classification import BinaryF1Score

from lr_dist.monitor.measurement import Measurement
from lr_dist.monitor.outputs import outputs_and_labels


class Checked(L.Callback):
    """Scores and distances after every step, worked out here."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.found = loader, {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = tiny.weights(pl_module.model)
        self.look(0, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.look(trainer.global_step, pl_module)

    def look(self, step: int, module: Any) -> None:
        def distance(*parts: str) -> float:
            pairs = [(p, self.start[n]) for n, p in module.model.named_parameters() if n.startswith(parts)]
            moved = torch.cat([(p.detach() - s).flatten() for p, s in pairs]).norm()
            return float(moved / torch.cat([s.flatten() for _, s in pairs]).norm())

        layers = {f"layers.{i}": distance(f"bert.encoder.layer.{i}.") for i in range(tiny.LAYERS)}
        moved = {"embeddings": distance("bert.embeddings"), **layers, "head": distance("bert.pooler", "classifier")}
        self.found[step] = accuracy_of(module.model, self.loader), moved


def test_scores_and_distances_are_those_worked_out_by_hand() -> None:
    loader = old_loader()
    watching, checked = monitor({"first": loader}, every_n_steps=3), Checked(loader)
    tiny.fit(tiny.Classifier(adamw), watching, checked, data=tiny.batches(7))
    assert [row.step for row in watching.history] == [0, 3, 6, 7]  # the last is the end
    for row in watching.history:
        hits, moved = checked.found[row.step]
        assert row.old["first"] == pytest.approx(hits, abs=1e-6)
        assert row.forgotten["first"] == pytest.approx(checked.found[0][0] - hits, abs=1e-6)
        assert list(row.moved) == list(moved)
        assert row.moved == pytest.approx(moved, rel=1e-5)
    assert checked.found[0][1]["head"] == 0.0
    assert checked.found[7][1]["head"] > 0.01
    assert len({hits for hits, _ in checked.found.values()}) > 1


def test_an_epoch_is_the_default_and_several_tasks_have_their_own_metric_and_function() -> None:
    calls: list[str] = []

    def second(module: Any, batch: Any) -> Any:
        calls.append("second")
        logits, labels = score(module, batch)
        return logits[:, 1] - logits[:, 0], labels

    watching = monitor(
        {"first": old_loader(), "second": old_loader(9)},
        every_n_epochs=2,
        score={"first": score, "second": second},
        metric={"first": accuracy(), "second": BinaryF1Score()},
    )
    tiny.fit(tiny.Classifier(adamw), watching, data=tiny.batches(4), max_epochs=5)
    assert [(row.step, row.epoch) for row in watching.history] == [(0, 0), (8, 2), (16, 4), (20, 5)]
    assert len(calls) == 1 + 4 * 3  # one batch to see that it can be scored, then three each time


def test_where_lower_is_better_a_rise_is_forgotten() -> None:
    def regression(module: Any, batch: Any) -> Any:
        logits, labels = score(module, batch)
        return logits[:, 0], labels.float()

    watching = monitor(score=regression, metric=MeanSquaredError())
    tiny.fit(tiny.Classifier(adamw), watching, data=tiny.batches(4))
    first, *_, last = watching.history
    assert last.old["first"] != first.old["first"]
    assert last.forgotten["first"] == pytest.approx(last.old["first"] - first.old["first"])


def test_loggers_get_all_of_it_at_the_steps_taken(tmp_path: Path) -> None:
    watching = monitor(every_n_steps=2)
    logger = CSVLogger(tmp_path)
    tiny.fit(tiny.Classifier(adamw), watching, data=tiny.batches(5), logger=logger, accumulate_grad_batches=2)
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file) if row["old/first"]}
    assert list(rows) == [0, 2, 3]
    for measured in watching.history:
        logged = {name: float(value) for name, value in rows[measured.step].items() if value and "/" in name}
        assert logged == pytest.approx(measured.logged())
        assert {"old/first", "forgotten/first", "moved/embeddings", "moved/layers.2", "moved/head"} <= set(logged)


def test_model_checkpoint_can_watch_what_was_forgotten(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="forgotten/first", mode="min", every_n_train_steps=2, save_top_k=1)
    watching = monitor(every_n_steps=2)
    tiny.fit(tiny.Classifier(adamw), watching, best, data=tiny.batches(8), enable_checkpointing=True)
    least = min(row.forgotten["first"] for row in watching.history[1:])
    assert float(best.best_model_score) == pytest.approx(least)


def test_the_modules_own_forward_is_used_where_no_function_is_given() -> None:
    rows = [{"input_ids": x[0], "labels": y[0]} for x, y in old_loader(batch_size=1)]
    watching = monitor({"first": torch.utils.data.DataLoader(rows, batch_size=5)}, score=None)
    module = tiny.Classifier(adamw)
    start = accuracy_of(module.model, old_loader())
    tiny.fit(module, watching, data=tiny.batches(2))
    assert watching.history[0].old["first"] == pytest.approx(start, abs=1e-6)


def test_a_forward_made_by_exec_has_no_module_and_is_used() -> None:
    names: dict[str, Any] = {"tiny": tiny}
    exec(
        "class Own(tiny.Classifier):\n    def forward(self, input_ids):\n        return self.model(input_ids).logits",
        names,
    )
    module = names["Own"](adamw)
    assert type(module).forward.__module__ is None
    (inputs, labels), *_ = old_loader(batch_size=5)
    outputs, targets = outputs_and_labels(module, {"input_ids": inputs, "labels": labels})
    assert outputs.shape == (5, 2)
    assert torch.equal(targets, labels)


def test_a_layer_that_is_unfrozen_later_moves_from_then_on() -> None:
    class Unfreezes(L.Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            pl_module.model.bert.encoder.layer[0].requires_grad_(False)

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                pl_module.model.bert.encoder.layer[0].requires_grad_(True)

    watching = monitor(every_n_epochs=1)
    tiny.fit(tiny.Classifier(adamw), watching, Unfreezes(), data=tiny.batches(3), max_epochs=2)
    first, frozen, moved = watching.history
    assert "layers.0" not in first.moved
    assert "layers.0" not in frozen.moved
    assert 0 < moved.moved["layers.0"] < moved.moved["layers.1"]


def test_a_measurement_survives_as_plain_data() -> None:
    row = Measurement(3, 1, {"a": 0.5}, {"a": 0.1}, {"head": 0.2}, 0.01)
    assert Measurement.from_dict(row.to_dict()) == row


def test_without_movement_no_layers_are_needed() -> None:
    class Plain(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Sequential(torch.nn.Embedding(40, 8), torch.nn.Flatten(), torch.nn.Linear(56, 2))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return adamw(self)

    watching = monitor(score=None, movement=False)
    tiny.fit(Plain(), watching, data=tiny.batches(4))
    assert [row.moved for row in watching.history] == [{}] * 3
