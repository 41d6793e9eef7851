"""Stages that arms share are trained once, and every arm has the results that it has alone."""

from __future__ import annotations

import gc
import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparison import TASKS
from safetensors.torch import load_file
from stage_methods import Halfway, Mean, Recall

from lr_dist.errors import KeptStageWarning
from lr_dist.methods import METHODS, Method, Needs
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.keep_stages import KeepStages
from lr_dist.sequence.observers import Observer, ReportProgress, TestAfterEpochs, TestAfterStages
from lr_dist.sequence.runner import SequenceRun, count_steps, needs_of, run_sequence
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.sequence.stage_key import StageKeys, bench_key, neighbours_first, stage_keys
from lr_dist.sequence.stage_store import StageStore

FLAT = "flat:lr=1e-3"


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """Every run collects garbage; what was imported before need not be looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    for method in (Halfway, Recall, Mean):
        monkeypatch.setitem(METHODS, method.name, method)


@pytest.fixture(scope="module")
def bench(tiny_model: str) -> Bench:
    settings = SequenceSettings(epochs=2, batch_size=16, precision="32-true", evaluate_on="dev")
    return Bench.prepare(tiny_model, (*TASKS, "demo-acceptability"), settings, limit=32, dev_size=40)


class Trained(Observer):
    """Numbers of the stages that were not taken over, and the weights after each stage."""

    needs_training = False

    def __init__(self) -> None:
        self.stages: list[int] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def stage_started(self, run, stage):
        self.stages.append(stage.index)

    def stage_taken_over(self, run, stage, steps):
        self.stages.remove(stage.index)

    def stage_ended(self, run, stage):
        self.weights.append({n: w.clone() for n, w in run.module.state_dict().items()})


def learn(bench, text, seed=0, store=None, matrix=None, observers=()) -> tuple[SequenceRun, Trained]:
    trained = Trained()
    run = run_sequence(bench, Arm.parse(text), seed, matrix or TestAfterStages(), [*observers, trained], store=store)
    return run, trained


def assert_same(ours: tuple[SequenceRun, Trained], theirs: tuple[SequenceRun, Trained]) -> None:
    assert ours[0].matrix == theirs[0].matrix
    assert ours[0].scores == theirs[0].scores
    for one, other in zip(ours[1].weights, theirs[1].weights, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


# Arm -> the stages that it trains when it follows the arms before it.
ARMS = {
    FLAT: [0, 1, 2],
    f"{FLAT} + halfway:alpha=0.7": [2],
    f"{FLAT} + recall": [1, 2],
    f"{FLAT} + halfway:alpha=0.2 + recall": [2],
    f"{FLAT} + l2-sp:alpha=10": [0, 1, 2],
    f"{FLAT} + l2-sp:alpha=10 + halfway:alpha=0.7": [2],
    f"{FLAT} + mean": [0, 1, 2],
    f"{FLAT} + mean + halfway": [2],
    f"{FLAT} + mean:from_stage=1": [1, 2],
    f"{FLAT} | flat:lr=3e-3": [1, 2],
    f"{FLAT} + interpolate:alpha=0.7": [2],
    f"{FLAT} + interpolate:alpha=auto,evaluations=2": [2],
    f"{FLAT} + replay:size=16": [1, 2],
    "flat:lr=3e-3,freeze=embeddings..layers.1 + halfway:alpha=0.7": [0, 1, 2],
    "flat:lr=3e-3,freeze=embeddings..layers.1 + l2-sp:alpha=10 + recall": [0, 1, 2],
    f"{FLAT} + der:size=12,ratio=0.5": [1, 2],
    f"{FLAT} + der:size=12,ratio=0.5 + halfway": [2],
    f"{FLAT} + der:size=12,ratio=0.5 + replay:size=8,policy=balanced": [1, 2],
}


@pytest.mark.parametrize(
    ("matrix", "seeds", "arms"), [(TestAfterStages, (0,), 4), (TestAfterStages, (1,), 18), (TestAfterEpochs, (1,), 8)]
)
def test_every_arm_has_the_results_that_it_has_alone_and_trains_only_what_no_other_has(
    bench, tmp_path, matrix, seeds, arms
):
    store = StageStore(tmp_path / "stages")
    for seed in seeds:
        for text, stages in list(ARMS.items())[:arms]:
            alone = learn(bench, text, seed, matrix=matrix())
            shared = learn(bench, text, seed, store, matrix())
            assert_same(shared, alone)
            assert shared[1].stages == stages, text
            assert shared[0].taken_over == tuple(sorted({0, 1, 2} - set(stages)))


ANCHORED = {
    FLAT: [0, 1, 2],
    f"{FLAT} + ewc:strength=1e6,examples=20": [1, 2],
    f"{FLAT} + ewc:strength=1e6,examples=20 + halfway:alpha=0.7": [2],
    f"{FLAT} + mas:strength=100 + lwf": [1, 2],
    f"{FLAT} + si:strength=100": [0, 1, 2],
    f"{FLAT} + si:strength=100 + halfway:alpha=0.7": [2],
    f"{FLAT} + rec-adam:t0=3": [0, 1, 2],
    f"{FLAT} + rec-adam:t0=3 + halfway:alpha=0.7": [2],
}


def test_anchored_arms_have_the_results_that_they_have_alone(bench, tmp_path):
    """Importances are learned from stages that were taken over, and SI's path is kept with the stage."""
    store = StageStore(tmp_path / "stages")
    for text, stages in ANCHORED.items():
        shared = learn(bench, text, 0, store)
        assert_same(shared, learn(bench, text, 0))
        assert shared[1].stages == stages, text


def test_a_second_time_every_stage_is_taken_over_and_methods_learn_at_the_borders(bench, tmp_path):
    store = StageStore(tmp_path)
    for text in list(ARMS)[3::3]:
        first = learn(bench, text, store=store)
        again = learn(bench, text, store=store)
        assert again[1].stages == []
        assert_same(again, first)


def test_the_costs_are_those_of_an_arm_that_trains_everything(bench, tmp_path):
    store = StageStore(tmp_path)
    first, _ = learn(bench, FLAT, store=store)
    second, _ = learn(bench, f"{FLAT} + halfway", store=store)
    assert first.taken_over_seconds == 0
    assert 0 < second.taken_over_seconds < first.train_seconds
    assert second.train_seconds > second.taken_over_seconds
    assert second.train_steps == first.train_steps == count_steps(bench.tokens, bench.settings)
    steps = []
    learn(bench, f"{FLAT} + halfway", 0, store, observers=[ReportProgress(lambda p: steps.append((p.phase, p.steps)))])
    assert steps == [("take over", 4), ("take over", 4), ("take over", 4)]


def test_what_methods_hold_is_counted_whether_a_stage_is_trained_or_taken_over(bench, tmp_path):
    store = StageStore(tmp_path)
    assert learn(bench, FLAT, store=store)[0].held_bytes == 0
    for text in (f"{FLAT} + replay:size=16", f"{FLAT} + l2-sp:alpha=10"):
        first, again = (learn(bench, text, store=store)[0] for _ in range(2))
        assert again.taken_over == (0, 1, 2)
        assert (first.held_bytes, first.held_examples) == (again.held_bytes, again.held_examples)
        assert first.held_examples == (16 if "replay" in text else 0)
    backbone = bench.view().backbone
    # L2-SP: one copy of the weights below the head (here the pooler is part of the head).
    assert first.held_bytes == 4 * sum(p.numel() for n, p in backbone.named_parameters() if "pooler" not in n)


def test_a_run_that_was_killed_goes_on_after_the_stages_that_it_had_trained(bench, tmp_path):
    class Killed(Exception):
        pass

    class Kill(Observer):
        needs_training = False

        def stage_ended(self, run, stage):
            if stage.index == 1:
                raise Killed

    text = f"{FLAT} + l2-sp:alpha=10 + recall"
    with pytest.raises(Killed):
        learn(bench, text, store=StageStore(tmp_path), observers=[Kill()])
    resumed = learn(bench, text, store=StageStore(tmp_path))
    assert resumed[1].stages == [2]
    assert_same(resumed, learn(bench, text))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))


def _other_seconds(path: Path) -> None:
    data = path.read_bytes()
    at = data.index(b'"seconds":"') + len(b'"seconds":"')
    path.write_bytes(data[:at] + (b"9" if data[at : at + 1] != b"9" else b"8") + data[at + 1 :])


def _foreign(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weights/a": torch.zeros(2)}, path)


def _of_another_key(path: Path) -> None:
    others = [other for other in path.parent.glob("*.safetensors") if other != path]
    path.write_bytes(others[0].read_bytes())


def _text(path: Path) -> None:
    path.write_text("no tensors")


@pytest.mark.parametrize("damage", [_cut, _flip, _other_seconds, _foreign, _of_another_key, _text])
def test_a_file_that_is_damaged_or_foreign_is_named_and_the_stage_trained_again(bench, tmp_path, damage):
    store = StageStore(tmp_path)
    first = learn(bench, FLAT, store=store)
    key = stage_keys(bench_key(bench, Needs()), bench, Arm.parse(FLAT), 0)[0].trained
    damage(tmp_path / f"{key}.safetensors")
    with pytest.warns(KeptStageWarning, match=key):
        again = learn(bench, FLAT, store=store)
    assert again[1].stages == [0]
    assert_same(again, first)
    assert learn(bench, FLAT, store=store)[1].stages == []  # it was written anew


def test_weights_of_another_model_under_the_right_key_are_refused(bench, tmp_path):
    store = StageStore(tmp_path)
    learn(bench, FLAT, store=store)
    key = stage_keys(bench_key(bench, Needs()), bench, Arm.parse(FLAT), 0)[0].trained
    with pytest.warns(KeptStageWarning, match="another model"):
        assert store.load(key, {"other": torch.zeros(1)}) is None


@pytest.mark.parametrize("failing", ["full", "few bytes", "no folder"])
def test_without_space_every_stage_is_trained_with_a_warning(bench, tmp_path, monkeypatch, failing):
    folder = tmp_path / "stages"
    store = StageStore(folder, max_bytes=1000 if failing == "few bytes" else 2**30)
    if failing == "full":
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20})())
    if failing == "no folder":
        folder.write_text("a file in its place")
    with pytest.warns(KeptStageWarning, match="cannot be kept"):
        first = learn(bench, FLAT, store=store)
    with pytest.warns(KeptStageWarning, match="cannot be kept"):
        second = learn(bench, f"{FLAT} + halfway", store=store)
    assert second[1].stages == [0, 1, 2]
    assert_same(first, learn(bench, FLAT))
    assert_same(second, learn(bench, f"{FLAT} + halfway"))


def test_the_files_stay_within_the_bound_and_the_oldest_are_deleted_first(bench, tmp_path):
    probe = StageStore(tmp_path / "probe")
    learn(bench, FLAT, store=probe)
    count, size = probe.size()
    assert count == 3
    store = StageStore(tmp_path / "stages", max_bytes=int(size * 2.5 / 3))
    learn(bench, FLAT, store=store)
    assert store.size()[0] == 2
    assert store.size()[1] <= store.max_bytes
    assert learn(bench, FLAT, store=store)[1].stages[0] == 0  # the first stage's file was the oldest


def test_only_wanted_stages_are_kept_and_others_deleted(bench, tmp_path):
    store = StageStore(tmp_path / "stages")
    keys = stage_keys(bench_key(bench, Needs()), bench, Arm.parse(FLAT), 0)
    store.want_only([keys[0].trained])
    learn(bench, FLAT, store=store)
    assert [path.stem for path in (tmp_path / "stages").iterdir()] == [keys[0].trained]
    assert learn(bench, f"{FLAT} + halfway", store=store)[1].stages == [1, 2]
    store.want_only([])
    assert not (tmp_path / "stages").exists()


def test_what_a_killed_process_left_of_a_file_is_deleted(tmp_path):
    store = StageStore(tmp_path / "stages")
    store.folder.mkdir()
    (store.folder / ".lr-dist-abc.tmp").write_bytes(b"half a stage")
    store.want_only(())
    assert not store.folder.exists()


def test_an_observer_that_needs_the_training_has_it(bench, tmp_path):
    class Steps(Observer):
        def __init__(self):
            self.count = 0

        def step_ended(self, run, stage):
            self.count += 1

    store = StageStore(tmp_path)
    learn(bench, FLAT, store=store)
    steps = Steps()
    run, _ = learn(bench, FLAT, store=store, observers=[steps])
    assert steps.count == run.train_steps
    assert run.taken_over == ()


def test_whole_embeddings_are_kept_for_users_while_stages_are_shared(bench, tmp_path):
    store = StageStore(tmp_path / "stages", needs=Needs(full_vocabulary=True))
    learn(bench, FLAT, store=store)
    text = f"{FLAT} + halfway"
    kept, alone = tmp_path / "kept", tmp_path / "alone"
    shared = learn(bench, text, store=store, observers=[KeepStages(kept)])
    assert shared[1].stages == [2]
    learn(bench, text, observers=[KeepStages(alone)])
    for index in (1, 2, 3):
        ours, theirs = (load_file(folder / f"stage-{index}.safetensors") for folder in (kept, alone))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_runs_that_compute_otherwise_share_nothing(bench, tmp_path, tiny_model):
    def first(bench: Bench, needs: Needs = Needs(), seed: int = 0, text: str = FLAT) -> str:  # noqa: B008
        return stage_keys(bench_key(bench, needs), bench, Arm.parse(text), seed)[0].trained

    def prepared(*tasks, limit=32, dev_size=40, **changes) -> Bench:
        settings = replace(bench.settings, **changes)
        names = tasks or (*TASKS, "demo-acceptability")
        return Bench.prepare(tiny_model, names, settings, limit=limit, dev_size=dev_size)

    assert first(prepared()) == first(bench)
    keys = [
        first(bench),
        first(bench, Needs(plain_modules=True)),
        first(bench, Needs(full_vocabulary=True)),
        first(bench, seed=1),
        first(bench, text="flat:lr=2e-3"),
        first(bench, text=f"{FLAT} + l2-sp:alpha=0.1"),
        first(bench, text=f"{FLAT} + l2-sp:alpha=0.2"),
        first(prepared(epochs=1)),
        first(prepared(weight_decay=0.1)),
        first(bench.in_precision(replace(bench.precision, chosen="bf16-mixed"))),
        first(prepared(limit=64)),
        first(prepared(dev_size=50)),
        first(prepared(*TASKS)),  # other heads, other words
        first(prepared(*reversed(TASKS))),
    ]
    assert len(set(keys)) == len(keys)


def test_arms_that_share_stages_follow_each_other(bench):
    texts = [FLAT, "flat:lr=2e-3", f"{FLAT} + recall", "flat:lr=2e-3 + recall", f"{FLAT} + halfway"]
    shared = bench_key(bench, Needs())
    runs = [(text, seed) for seed in (3, 4) for text in texts]
    keys: dict[tuple[str, int], tuple[StageKeys, ...]] = {
        (text, seed): stage_keys(shared, bench, Arm.parse(text), seed) for text, seed in runs
    }
    order = [FLAT, f"{FLAT} + halfway", f"{FLAT} + recall", "flat:lr=2e-3", "flat:lr=2e-3 + recall"]
    assert neighbours_first(runs, keys) == [(text, seed) for seed in (3, 4) for text in order]


def text_of(method: type[Method]) -> str:
    """An arm with a method, which keeps no more examples than the first task has."""
    few = [f"{name}=16" for name in ("size", "examples") if name in inspect.signature(method.__init__).parameters]
    return f"{FLAT} + {method.name}{':' if few else ''}{','.join(few)}"


@pytest.mark.parametrize("method", list(METHODS.values()), ids=lambda method: method.name)
def test_every_method_goes_on_from_taken_over_stages_as_from_its_own(bench, tmp_path, method):
    """The first two of three stages are taken over, the last is trained: what the method learned has to be the same."""
    needs = needs_of(Arm.parse(text_of(method)))
    alone = learn(bench, text_of(method))
    store = StageStore(tmp_path, needs=needs)
    learn(bench, text_of(method), store=store)
    last = stage_keys(bench_key(bench, needs), bench, Arm.parse(text_of(method)), 0)[2].trained
    (tmp_path / f"{last}.safetensors").unlink()
    shared = learn(bench, text_of(method), store=store)
    assert shared[1].stages == [2]
    assert_same(shared, alone)
    again = learn(bench, text_of(method), store=store)
    assert again[1].stages == []
    assert_same(again, alone)


@pytest.mark.parametrize("method", list(METHODS.values()), ids=lambda method: method.name)
def test_every_method_tells_the_truth_about_what_it_changes(bench, method, monkeypatch):
    """In a stage that it says it does not train in, or whose weights it says it does not change, nothing differs."""
    text = text_of(method)
    pair = bench.only([0, 1])
    keys, plain_keys = (stage_keys("", pair, Arm.parse(each), 0) for each in (text, FLAT))
    if keys[0] != plain_keys[0]:
        return  # it trains in, or changes, the first stage
    needs = needs_of(Arm.parse(text))

    class WithNeeds(Trained):
        pass

    WithNeeds.needs = needs
    ours, plain = WithNeeds(), WithNeeds()
    run_sequence(pair, Arm.parse(text), 0, TestAfterStages(), [ours])
    run_sequence(pair, Arm.parse(FLAT), 0, TestAfterStages(), [plain])
    assert all(torch.equal(ours.weights[0][name], weight) for name, weight in plain.weights[0].items())
