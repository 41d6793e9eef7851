"""When each layer starts and how its factor grows, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import exact
import pytest
import tiny
from exact import Case, Saver, assert_same

from lr_dist import LayerSchedule, LayerwiseLR
from lr_dist.errors import InvalidScheduleError, ResumeMismatchError
from lr_dist.layer_schedule import layer_factor
from lr_dist.names import group_names

LAYERS = group_names(3)


def run(schedule: LayerSchedule, epochs: list[int], layers: list[str] = LAYERS) -> list[dict[str, float]]:
    """The factors of each step, `epochs` holding the epoch of each."""
    started: dict[str, int] = {}
    warmup = schedule.warmup(3)
    factors = []
    for step, epoch in enumerate(epochs):
        started = schedule.started(layers, started, step=step, epoch=epoch)
        factors.append({layer: layer_factor(started, warmup, layer, step) for layer in layers})
    return factors


def test_the_head_starts_first_and_the_embeddings_last() -> None:
    starts = {"embeddings": 20, "layers.0": 15, "layers.1": 10, "layers.2": 5, "head": 0}
    assert LayerSchedule(every_n_steps=5).starts(LAYERS) == starts
    assert LayerSchedule(every_n_epochs=5).starts(LAYERS) == starts
    assert set(LayerSchedule(warmup_steps=5).starts(LAYERS).values()) == {0}


def test_groups_that_never_train_take_no_turn() -> None:
    assert LayerSchedule(every_n_epochs=2).starts(["layers.0", "layers.2"]) == {"layers.0": 2, "layers.2": 0}


def test_every_n_steps_opens_one_layer_after_the_other() -> None:
    open_at = [[layer for layer, f in step.items() if f] for step in run(LayerSchedule(every_n_steps=2), [0] * 9)]
    assert open_at == [LAYERS[4 - n :] for n in (0, 0, 1, 1, 2, 2, 3, 3, 4)]


def test_every_n_epochs_counts_epochs_whatever_their_length() -> None:
    factors = run(LayerSchedule(every_n_epochs=1), [0, 1, 1, 1, 2, 4])
    assert [sum(step.values()) for step in factors] == [1, 2, 2, 2, 3, 5]


def test_each_layer_warms_up_over_its_own_steps() -> None:
    factors = run(LayerSchedule(every_n_steps=3, warmup_steps=4), [0] * 8)
    assert [step["head"] for step in factors] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert [step["layers.2"] for step in factors] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [step["layers.1"] for step in factors] == [0, 0, 0, 0, 0, 0, 0.25, 0.5]
    assert [step["layers.0"] for step in factors] == [0] * 8


def test_with_epochs_a_layers_steps_count_from_the_first_of_its_epoch() -> None:
    factors = run(LayerSchedule(every_n_epochs=1, warmup_steps=2), [0, 0, 0, 1, 1, 1])
    assert [step["head"] for step in factors] == [0.5, 1, 1, 1, 1, 1]
    assert [step["layers.2"] for step in factors] == [0, 0, 0, 0.5, 1, 1]


def test_a_warm_up_alone_starts_every_layer_at_once() -> None:
    factors = run(LayerSchedule(warmup_steps={"embeddings": 4, "head": 0}), [0] * 5)
    # By depth 4, 3, 2, 1, 0 steps.
    assert list(factors[0].values()) == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1, 1])
    assert list(factors[2].values()) == pytest.approx([3 / 4, 1, 1, 1, 1])
    assert list(factors[3].values()) == [1] * 5


def test_warm_up_steps_are_interpolated_between_the_groups_that_are_named() -> None:
    named = LayerSchedule(warmup_steps={"layers.-1": 7, "layers.0": 100})
    assert list(named.warmup(5).values()) == [100, 100, 77, 54, 30, 7, 7]  # 76.75, 53.5, 30.25
    assert list(LayerSchedule(warmup_steps={"layers.1": 9}).warmup(3).values()) == [9] * 5
    three = LayerSchedule(warmup_steps={"head": 10, "embeddings": 0, "layers.1": 4})
    assert list(three.warmup(3).values()) == [0, 2, 4, 7, 10]
    assert list(LayerSchedule().warmup(3).values()) == [0] * 5


def test_only_a_schedule_with_options_is_one() -> None:
    assert not LayerSchedule()
    assert LayerSchedule(warmup_steps=3)
    assert LayerSchedule(every_n_epochs=1).unfreezes
    assert not LayerSchedule(warmup_steps=3).unfreezes


def test_equal_schedules_have_equal_data() -> None:
    left = LayerSchedule(every_n_steps=3, warmup_steps={"head": 1, "embeddings": 2})
    right = LayerSchedule(every_n_steps=3, warmup_steps={"embeddings": 2, "head": 1})
    assert str(left.to_dict()) == str(right.to_dict())
    assert left.to_dict() != LayerSchedule(every_n_epochs=3).to_dict()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs must be a whole number of at least 1, not 0"),
        ({"every_n_steps": -3}, "every_n_steps.*-3"),
        ({"every_n_steps": 1.5}, r"every_n_steps.*1\.5"),
        ({"every_n_epochs": True}, "every_n_epochs.*True"),
        ({"every_n_epochs": "2"}, "every_n_epochs.*'2'"),
        ({"every_n_epochs": 1, "every_n_steps": 2}, "exclude each other"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number of steps.*-1"),
        ({"warmup_steps": [1, 2]}, r"warmup_steps.*\[1, 2\]"),
        ({"warmup_steps": {}}, "empty map"),
        ({"warmup_steps": {"layer.1": 2}}, "names 'layer.1', which is not a group"),
        ({"warmup_steps": {3: 2}}, "names 3, which is not a group"),
        ({"warmup_steps": {"head": 0.5}}, r"warmup_steps of head.*0\.5"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidScheduleError, match=match):
        LayerSchedule(**options)


def test_a_layer_that_the_model_lacks_or_that_is_named_twice_is_refused() -> None:
    with pytest.raises(InvalidScheduleError, match=r"names layers\.3, but the model has 3 layers.*layers\.2"):
        LayerSchedule(warmup_steps={"layers.3": 5}).warmup(3)
    with pytest.raises(InvalidScheduleError, match=r"names layers\.2 twice, once as layers\.-1"):
        LayerSchedule(warmup_steps={"layers.2": 5, "layers.-1": 6}).warmup(3)


# As arguments of LayerwiseLR -----------------------------------------------------------------------------

SCHEDULE = LayerSchedule(every_n_steps=2, warmup_steps={"head": 0, "embeddings": 4})
OPTIONS: dict[str, Any] = {"unfreeze_every_n_steps": 2, "layer_warmup_steps": {"head": 0, "embeddings": 4}}


def test_a_schedule_and_the_options_that_stand_for_it_are_the_same_to_a_checkpoint() -> None:
    one, other = LayerwiseLR(tiny.EXPLICIT, schedule=SCHEDULE), LayerwiseLR(tiny.EXPLICIT, **OPTIONS)
    assert one.schedule == other.schedule == SCHEDULE
    assert one.state_dict() == other.state_dict()
    assert one.state_dict()["schedule"] == SCHEDULE.to_dict()
    # No schedule at all is none in the checkpoint, too.
    assert LayerwiseLR(tiny.EXPLICIT, schedule=LayerSchedule()).state_dict()["schedule"] is None


def test_a_run_with_the_options_is_resumed_with_the_schedule(tmp_path: Path) -> None:
    def run(folder: Path, ckpt: Path | None, **options: Any) -> tuple[Any, Saver]:
        saver = Saver(folder, "on_train_batch_end")
        case = Case(options={"max_epochs": 2})
        layerwise = LayerwiseLR(tiny.EXPLICIT, verbose=False, **options)
        return exact.run(case, layerwise, saver, layerwise=False, ckpt=ckpt, seed=1 if ckpt is None else 2), saver

    unbroken, saver = run(tmp_path / "old", None, **OPTIONS)
    path = saver.paths["on_train_batch_end", 5]
    assert_same(run(tmp_path / "new", path, schedule=SCHEDULE)[0], unbroken)
    with pytest.raises(ResumeMismatchError, match="schedule"):
        run(tmp_path / "other", path, schedule=LayerSchedule(every_n_steps=3))


def test_the_callback_takes_a_schedule_or_the_options() -> None:
    with pytest.raises(InvalidScheduleError, match=r"LayerSchedule.* and layer_warmup_steps=0 exclude each other"):
        LayerwiseLR(tiny.EXPLICIT, schedule=SCHEDULE, layer_warmup_steps=0)
    with pytest.raises(InvalidScheduleError, match=r"must be a LayerSchedule, not \{'every_n_steps': 2\}"):
        LayerwiseLR(tiny.EXPLICIT, schedule={"every_n_steps": 2})  # type: ignore[arg-type]
    with pytest.raises(InvalidScheduleError, match=r"stacks"):
        LayerwiseLR(tiny.EXPLICIT, schedule=SCHEDULE, stacks=("a", "b"))


def test_an_option_of_the_callback_is_named_as_it_was_given() -> None:
    with pytest.raises(InvalidScheduleError, match=r"^unfreeze_every_n_epochs=0: every_n_epochs must be"):
        LayerwiseLR(tiny.EXPLICIT, unfreeze_every_n_epochs=0)
    with pytest.raises(InvalidScheduleError, match=r"^unfreeze_every_n_epochs=1, unfreeze_every_n_steps=2: .*exclude"):
        LayerwiseLR(tiny.EXPLICIT, unfreeze_every_n_epochs=1, unfreeze_every_n_steps=2)
    with pytest.raises(InvalidScheduleError, match=r"layer_warmup_steps="):
        LayerwiseLR(tiny.EXPLICIT, layer_warmup_steps={"nose": 2})
