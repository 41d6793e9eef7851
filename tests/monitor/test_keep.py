"""Which weights are kept, what stops the fit, and how the rules read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from monitor.watched import accuracy_of, adamw, monitor, old_loader
from safetensors.torch import load_file

from lr_dist.errors import ConfigurationError, NothingKeptWarning, ScoringError
from lr_dist.monitor.measurement import Measurement
from lr_dist.monitor.rule import Bounds, WeightedSum, parse_rule
from lr_dist.monitor.trade_off import TradeOff, values_of


class Scored(tiny.Classifier):
    """Validation gives one score after the other; the weights before each step are kept."""

    def __init__(self, new: list[float], dropout: float = 0.0) -> None:
        super().__init__(adamw, dropout=dropout)
        self.new, self.at = list(new), {}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("val_acc", self.new.pop(0))

    def on_train_batch_end(self, *_: Any) -> None:
        self.at[self.trainer.global_step] = tiny.weights(self)


def fit(module: Any, watching: Any, *callbacks: Any, **options: Any) -> Any:
    data = {"data": tiny.batches(4), **options}
    validation = {"check_val_every_n_epoch": 1, **data}
    run = tiny.trainer(watching, *callbacks, **{k: v for k, v in validation.items() if k != "data"})
    run.fit(module, data["data"], tiny.batches(1, seed=4))
    return run


def assert_weights(module: Any, expected: dict[str, torch.Tensor]) -> None:
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_the_best_new_score_within_the_bound_is_put_back() -> None:
    module = Scored([0.6, 0.8, 0.9, 0.7])
    watching = monitor(every_n_epochs=1, keep="forgotten <= 1", monitor="val_acc")
    fit(module, watching, max_epochs=4)
    assert watching.best_step == 12
    assert_weights(module, module.at[12])
    assert not torch.equal(module.at[12]["model.classifier.weight"], module.at[16]["model.classifier.weight"])


def test_a_lower_metric_is_better_under_mode_min() -> None:
    module = Scored([0.6, 0.4, 0.9, 0.7])
    watching = monitor(every_n_epochs=1, keep="forgotten <= 1", monitor="val_acc", mode="min")
    fit(module, watching, max_epochs=4)
    assert watching.best_step == 8


def test_what_is_out_of_bounds_is_not_kept_however_good() -> None:
    module = Scored([0.1, 0.5, 0.6, 0.9])
    watching = monitor(every_n_epochs=1, keep="forgotten <= 1 and moved/head <= 0.03", monitor="val_acc")
    fit(module, watching, max_epochs=4)
    within = [row.step for row in watching.history[1:] if row.moved["head"] <= 0.03]
    assert 0 < len(within) < 4
    assert watching.best_step == within[-1]
    assert_weights(module, module.at[within[-1]])


def test_validation_that_follows_the_measurement_judges_it() -> None:
    # Steps are measured before validation, which runs after every second batch: the first of its scores is step 2's.
    module = Scored([0.9, 0.1, 0.2, 0.3])
    watching = monitor(every_n_steps=2, keep="forgotten <= 1", monitor="val_acc")
    fit(module, watching, max_epochs=2, val_check_interval=2)
    assert watching.best_step == 2


def test_a_weighted_sum_is_maximised() -> None:
    module = Scored([0.5, 0.9, 0.1])
    watching = monitor(every_n_epochs=1, keep="0*old/first + val_acc")
    fit(module, watching, max_epochs=3)
    assert watching.best_step == 8
    worst = Scored([0.5, 0.9, 0.1])
    watching = monitor(every_n_epochs=1, keep="0*old/first - 2*val_acc")
    fit(worst, watching, max_epochs=3, num_sanity_val_steps=0)
    assert watching.best_step == 12


def test_without_a_metric_the_latest_within_the_bound_is_kept() -> None:
    module = tiny.Classifier(adamw)
    watching = monitor(every_n_steps=1, keep="moved/head <= 0.02")
    tiny.fit(module, watching)
    within = [row.step for row in watching.history if row.moved["head"] <= 0.02]
    assert 0 < within[-1] < 8
    assert watching.best_step == within[-1]


def test_kept_weights_can_be_left_out_of_the_model_and_saved(tmp_path: Path) -> None:
    module = Scored([0.9, 0.1])
    watching = monitor(every_n_epochs=1, keep="forgotten <= 1", monitor="val_acc", restore=False)
    fit(module, watching, max_epochs=2)
    assert_weights(module, module.at[8])
    saved = load_file(watching.save_best(tmp_path / "best.safetensors"))
    assert {name for name in saved if name in module.at[4]} == set(module.at[4])
    for name, expected in module.at[4].items():
        assert torch.equal(saved[name], expected)
    module.load_state_dict(watching.best_weights, strict=False)
    assert accuracy_of(module.model, old_loader()) == pytest.approx(watching.history[1].old["first"], abs=1e-6)


def test_checkpoints_of_the_fit_hold_the_weights_of_their_step(tmp_path: Path) -> None:
    module = Scored([0.9, 0.1])
    saved = ModelCheckpoint(tmp_path, save_last=True)
    watching = monitor(every_n_epochs=1, keep="forgotten <= 1", monitor="val_acc")
    fit(module, watching, saved, max_epochs=2, enable_checkpointing=True)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(last["model.classifier.weight"], module.at[8]["model.classifier.weight"])
    assert_weights(module, module.at[4])


def test_a_bound_that_nothing_fulfils_is_said_and_changes_nothing() -> None:
    module = Scored([0.9, 0.1])
    watching = monitor(every_n_epochs=1, keep="old/first > 2", monitor="val_acc")
    with pytest.warns(NothingKeptWarning, match="'old/first > 2'"):
        fit(module, watching, max_epochs=2)
    assert_weights(module, module.at[8])
    assert watching.best_step is None
    with pytest.raises(ConfigurationError, match="No weights were kept"):
        watching.save_best("nowhere.safetensors")


def test_the_start_is_never_what_is_kept() -> None:
    # Before the first step nothing is forgotten, and nothing learned.
    module = tiny.Classifier(adamw)
    with pytest.warns(NothingKeptWarning):
        tiny.fit(module, monitor(every_n_steps=1, keep="moved/head <= 0"))


@pytest.mark.parametrize(("patience", "stopped"), [(1, 2), (3, 4)])
def test_a_broken_bound_stops_the_fit(patience: int, stopped: int) -> None:
    watching = monitor(every_n_steps=1, stop_when="moved/head > 0.005", patience=patience)
    run = tiny.fit(tiny.Classifier(adamw), watching)
    over = [row.step for row in watching.history if row.moved["head"] > 0.005]
    assert run.global_step == over[0] + patience - 1
    assert run.global_step < 8


def test_a_metric_that_nobody_logs_is_named_after_the_first_epoch() -> None:
    watching = monitor(every_n_steps=1, keep="old >= 0.5", monitor="val_accuracy")
    module = Scored([0.5] * 9)
    with pytest.raises(ConfigurationError, match=r"val_accuracy, which was not logged.*Logged are: .*val_acc"):
        fit(module, watching, max_epochs=3)
    assert module.trainer.current_epoch == 1


def test_rules_are_read() -> None:
    assert parse_rule("keep", "old >= 0.98 and forgotten/a-b<1e-2") == Bounds(
        "old >= 0.98 and forgotten/a-b<1e-2", (("old", ">=", 0.98), ("forgotten/a-b", "<", 0.01))
    )
    assert parse_rule("keep", "0.5*old + 2 * val/acc - loss") == WeightedSum(
        "0.5*old + 2 * val/acc - loss", ((0.5, "old"), (2.0, "val/acc"), (-1.0, "loss"))
    )


@pytest.mark.parametrize(
    "text", ["", "old >=", "0.98 <= old", "old >= x", "old == 1", "2 + old", "old >= 1 or a > 2", 3]
)
def test_what_is_no_rule_is_refused(text: Any) -> None:
    with pytest.raises(ConfigurationError, match="keep must read like"):
        parse_rule("keep", text)


def test_old_is_the_smallest_share_and_forgotten_the_largest_loss() -> None:
    row = Measurement(5, 0, {"a": 0.45, "b": 0.8}, {"a": 0.05, "b": 0.1})
    values = values_of(row, {"a": 0.5, "b": 0.9}, ["old"])
    assert values["old"] == pytest.approx(0.8 / 0.9)
    assert values["forgotten"] == 0.1
    with pytest.raises(ScoringError, match="'a' was 0 when the fit began"):
        values_of(row, {"a": 0.0, "b": 0.9}, ["old"])


def test_a_score_of_nan_is_never_the_best() -> None:
    rule = TradeOff.of([], "forgotten <= 1", "new", "max", None, 1)
    assert rule.worth({"forgotten": 0.0, "new": float("nan")}, None) is None
    assert rule.worth({"forgotten": 0.0, "new": 0.5}, 0.5) is None  # the earlier one of two equals
    assert rule.worth({"forgotten": 0.0, "new": 0.6}, 0.5) == 0.6
    assert rule.worth({"forgotten": float("nan"), "new": 0.6}, None) is None


def test_an_interrupted_fit_leaves_the_best_weights() -> None:
    class Interrupts(L.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                raise RuntimeError("power cut")

    watching = monitor(every_n_steps=2, keep="forgotten <= 1")
    with pytest.raises(RuntimeError, match="power cut"):
        tiny.fit(tiny.Classifier(adamw), watching, Interrupts())
    assert watching.best_step == 4
    assert watching.best_weights is not None
