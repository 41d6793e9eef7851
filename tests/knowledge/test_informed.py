"""The parts of the experiment: draws, training sets, what is carried over, noise, and the arithmetic of the result."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import bert
from tiny_folder import save_tiny_model

from lr_dist.errors import ConfigurationError, InvalidResultError, KnowledgeError
from lr_dist.knowledge.informed import noise
from lr_dist.knowledge.informed.config import InformedConfig
from lr_dist.knowledge.informed.experiment import Experiment, Job
from lr_dist.knowledge.informed.fits import first_stage, learn_task
from lr_dist.knowledge.informed.material import NEEDS, Material, class_names
from lr_dist.knowledge.informed.result import InformedResult, summarise
from lr_dist.knowledge.informed.transfer import groups_of, transfer
from lr_dist.report.informed import verdict
from lr_dist.runs.numbers import number, signed
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.tasks import load_task


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    model = save_tiny_model(tmp_path_factory.mktemp("model"))
    settings = SequenceSettings(batch_size=8, epochs=2, precision="32-true")
    config = InformedConfig(
        model=str(model),
        knowledge="polarity",
        task="demo-sentiment",
        limits=(6, 20),
        seeds=("0..2",),
        tuning_seeds=(9,),
        per_class=40,
        stage_epochs=2,
        min_steps=7,
        dev_size=40,
        settings=settings,
    )
    return Material.prepare(config)


def rows_of(material: Material, limit: int, seed: int) -> list[tuple[int, ...]]:
    split = material.task_tokens(limit, seed).train
    return sorted((*split[index]["input_ids"].tolist(), int(split[index]["label"])) for index in range(len(split)))


def test_draws_are_those_of_the_limit_of_other_commands(material: Material) -> None:
    whole = load_task("demo-sentiment", dev_size=40)
    for limit, seed in ((6, 0), (20, 2)):
        wanted = load_task("demo-sentiment", limit=limit, seed=seed, dev_size=40).train
        drawn = [material.task.train[int(row)]["text_a"] for row in material.rows[limit, seed]]
        assert sorted(drawn) == sorted(wanted["text_a"])
    assert len(whole.train) > len(material.task.train)
    assert rows_of(material, 6, 0) != rows_of(material, 6, 1)


def test_other_draws_and_arms_leave_finished_runs_valid(material: Material) -> None:
    job = Job("results", "informed", "all", 6, 1, "flat:lr=1e-3", "flat:lr=1e-3")
    first = Experiment(material.config)
    others = {"limits": (6, 12), "seeds": (1, 5), "unrelated": "demo-acceptability", "rates": ("flat:lr=1e-5",)}
    assert Experiment(replace(material.config, **others)).identity(job) == first.identity(job)
    # The same examples in that draw, and the same rates in other words.
    assert first.identity(replace(job, rates="flat:lr=0.001")) == first.identity(job)
    for change in ({"seed": 2}, {"limit": 20}, {"arm": "shuffled"}, {"carried": "head"}, {"rates": "flat:lr=2e-3"}):
        assert first.identity(replace(job, **change)) != first.identity(job)
    changed = Experiment(replace(material.config, stage_epochs=3))
    assert changed.identity(job) != first.identity(job)
    assert changed.identity(replace(job, arm="none")) == first.identity(replace(job, arm="none"))


def test_mixed_has_the_steps_of_both_stages_and_the_share_of_the_task(material: Material) -> None:
    train = material.mixed_tokens(6, 0).train
    prototypes, steps = material.stage_steps("informed"), material.steps(6, 0)
    assert prototypes == 2 * -(-len(material.bench.tokens[0].train) // 8)
    assert steps == 7
    assert len(train) == 8 * (prototypes + steps)
    examples = {row[:-1] for row in rows_of(material, 6, 0)}
    of_task = [tuple(train[index]["input_ids"].tolist()) in examples for index in range(len(train))]
    assert sum(of_task) == 8 * steps
    # Each example about as often as any other.
    counts = Counter(tuple(train[index]["input_ids"].tolist()) for index in range(len(train)) if of_task[index])
    assert max(counts.values()) - min(counts.values()) <= 1


def test_controls_differ_from_the_prototypes_in_one_thing(material: Material) -> None:
    informed, shuffled, unrelated = (
        material.stage_tokens(arm, 0).train for arm in ("informed", "shuffled", "unrelated")
    )
    assert np.array_equal(informed.rows.features["input_ids"], shuffled.rows.features["input_ids"])
    assert informed.labels.tolist() != shuffled.labels.tolist()
    assert sorted(informed.labels.tolist()) == sorted(shuffled.labels.tolist())
    assert material.stage_tokens("shuffled", 1).train.labels.tolist() != shuffled.labels.tolist()
    assert len(unrelated) == len(informed)


def test_unrelated_text_that_is_shorter_than_the_prototypes_is_repeated_for_as_many_steps(material: Material) -> None:
    tokens = list(material.bench.view(NEEDS).tokens)
    tokens[2] = replace(tokens[2], train=tokens[2].train.rows_at(range(5)))
    view = replace(material.bench.view(NEEDS), tokens=tuple(tokens))
    few = replace(material, bench=material.bench.with_view(view, NEEDS))
    unrelated = few.stage_tokens("unrelated", 0).train
    assert len(unrelated) == len(few.stage_tokens("informed", 0).train) > 5
    texts = Counter(tuple(unrelated[row]["input_ids"]) for row in range(len(unrelated)))
    assert len(texts) == 5
    assert max(texts.values()) - min(texts.values()) <= 1


@pytest.mark.parametrize(
    ("part", "groups"),
    [
        ("head", ["head"]),
        ("backbone", ["embeddings", "layers.0", "layers.1", "layers.2"]),
        ("lowest-0", ["embeddings"]),
        ("lowest-2", ["embeddings", "layers.0", "layers.1"]),
        ("lowest-half", ["embeddings", "layers.0"]),
        ("highest-0", ["head"]),
        ("highest-2", ["layers.1", "layers.2", "head"]),
        ("highest-half", ["layers.2", "head"]),
        ("all", ["embeddings", "layers.0", "layers.1", "layers.2", "head"]),
    ],
)
def test_a_part_is_some_groups(part: str, groups: list[str]) -> None:
    assert groups_of(part, 3) == groups


def test_only_the_part_is_carried_over() -> None:
    module, trained = bert(seed=0), bert(seed=1)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    transfer(module, trained.state_dict(), "highest-1")
    changed = {name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])}
    assert any(name.startswith("bert.encoder.layer.2.") for name in changed)
    assert "classifier.weight" in changed
    assert not any(".layer.0." in name or ".layer.1." in name or "embeddings" in name for name in changed)
    # A head of another name stays as it is.
    backbone_only = {name: weight for name, weight in trained.state_dict().items() if name.startswith("bert.encoder")}
    assert all(name.startswith("bert.encoder.layer.2.") for name in transfer(module, backbone_only, "highest-1"))


def test_the_task_begins_where_the_prototypes_ended(material: Material) -> None:
    """Where nothing can change on the task, its score is the zero-shot score of the prototypes."""
    stage = first_stage(material, "informed", "flat:lr=3e-3", 0)
    assert stage.zero_shot is not None
    # So low a rate that the head does not change either.
    frozen = "flat:lr=1e-30,freeze=embeddings..layers.-1"
    outcome = learn_task(material, "informed", 6, frozen, 0, stage.weights, "all", tuning=False)
    assert outcome["score"] == stage.zero_shot
    assert outcome["curve"][0][0] == 0
    assert [step for step, _ in outcome["curve"]][-1] == outcome["steps"] == 7
    assert set(outcome["noise"]) == {"characters", "words"}
    again = learn_task(material, "informed", 6, frozen, 0, stage.weights, "all", tuning=False)
    assert again["score"] == outcome["score"]
    assert again["curve"] == outcome["curve"]
    none = learn_task(material, "none", 6, frozen, 0, None, "all", tuning=False)
    assert none["curve"][0][1] != outcome["curve"][0][1]


def test_noise_changes_a_share_of_the_text_and_is_the_same_again() -> None:
    text = "the film was a wonderful and touching story about a long journey " * 20
    letters = sum(letter.isalpha() for letter in text)
    for share in (0.05, 0.2):
        noisy = noise.character_noise(text, share, "0")
        assert noisy == noise.character_noise(text, share, "0")
        assert noisy != noise.character_noise(text, share, "1")
        lost = letters - len([letter for letter in noisy if letter.isalpha()])
        assert abs(lost) < share * letters / 2
        kept = len(noise.word_drop(text, share, "0").split()) / len(text.split())
        assert kept == pytest.approx(1 - share, abs=0.07)
    assert noise.character_noise(text, 0, "0") == text
    assert noise.word_drop("one word", 1, "0") == "one"
    assert noise.character_noise("a", 1, "0").strip()


def run(label: str, seed: int, score: float, curve: list[float], limit: int = 10) -> dict:
    points = list(zip((0, 5, 10), curve, strict=True))
    noisy = {"characters": score - 0.1, "words": score - 0.2}
    return {"label": label, "limit": limit, "seed": seed, "status": "done", "score": score, "zero_shot": None} | {
        "noise": noisy,
        "curve": points,
    }


def test_the_summary_is_what_one_computes_by_hand() -> None:
    runs = [
        run("none", 0, 0.60, [0.5, 0.55, 0.6]),
        run("none", 1, 0.64, [0.5, 0.57, 0.62]),
        run("informed", 0, 0.70, [0.6, 0.65, 0.7]),
        run("informed", 1, 0.70, [0.5, 0.63, 0.7]),
        run("informed", 2, 0.99, [0.5, 0.63, 0.7]),  # without a partner
        {"label": "none", "limit": 10, "seed": 2, "status": "diverged"},
    ]
    none, informed = summarise(runs)
    assert none["mean"] == pytest.approx(0.62)
    assert none["n"] == 2
    assert none["reached"] == 10
    # .65, .63, .63 in the middle; none ends at .61.
    assert informed["reached"] == 5
    assert informed["noise"]["words"] == pytest.approx(0.7966667 - 0.2)
    difference = informed["against"]["none"]
    assert difference["n"] == 2
    assert difference["mean"] == pytest.approx(0.08)
    # Student's t with one degree of freedom, 12.7062, times the standard error of .10 and .06.
    assert difference["half"] == pytest.approx(12.7062 * 0.02, rel=1e-4)


def test_a_score_of_zero_is_no_divergence_and_a_diverged_run_no_score() -> None:
    config = InformedConfig(
        knowledge="polarity", task="cola", limits=(10,), arms=("none",), parts=("none",), rates=("a", "b", "c")
    )
    experiment = Experiment.__new__(Experiment)
    experiment.config = config

    def tuned(scores: dict[str, list[float | None]]) -> tuple[str, float, int]:
        runs = [
            {"arm": "none", "limit": 10, "rates": rates, "stage_rates": "", "seed": seed}
            | ({"status": "diverged"} if score is None else {"status": "done", "score": score})
            for rates, each in scores.items()
            for seed, score in enumerate(each)
        ]
        (choice,) = experiment._choose(runs)
        return choice.rates, choice.score, choice.tried

    # Matthews, which is 0 for one class alone, and can be negative.
    assert tuned({"a": [0.0, 0.0], "b": [-0.1, 0.1], "c": [-0.1, -0.1]}) == ("a", 0.0, 3)
    assert tuned({"a": [None, None], "b": [-0.2, -0.1], "c": [-0.1, -0.1]}) == ("c", -0.1, 3)
    assert tuned({"a": [0.9, None], "b": [0.2, 0.4], "c": [None, None]}) == ("b", pytest.approx(0.3), 3)
    with pytest.raises(ConfigurationError, match="Every rate of the arm none diverged"):
        tuned({"a": [None], "b": [None], "c": [None]})


def test_class_names_are_joined_by_name() -> None:
    assert class_names(("a", "b"), ("b", "a")) == {"a": "a", "b": "b"}
    three = ("entailment", "neutral", "contradiction")
    assert class_names(three, ("entailment", "not_entailment"))["contradiction"] == "not_entailment"
    assert class_names(("false", "true"), ("negative", "positive")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knowledge": ""}, "No knowledge"),
        ({"task": ""}, "Nothing to learn"),
        ({"arms": ("informed",)}, "add it to arms"),
        ({"arms": ("none", "inform")}, "not 'inform'. Did you mean informed"),
        ({"parts": ("lowest",)}, "no part 'lowest'"),
        ({"arms": ("none", "mixed")}, "Parts are those of"),
        ({"limits": (10, 10)}, "each once"),
        ({"limits": (1,)}, "at least 2"),
        ({"seeds": ("0-4",)}, "spans as 0..4"),
        ({"seeds": (0, "0..2")}, "must be distinct"),
        ({"word_drop": 1.5}, "from 0 to 1"),
        ({"kind": "words"}, "kind must be"),
    ],
)
def test_wrong_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        InformedConfig(**{"knowledge": "polarity", "task": "sst2", **changes})


def test_pairs_are_not_learned_as_single_texts(material: Material) -> None:
    values = {**vars(material.config), "task": "demo-entailment", "unrelated": "demo-sentiment", "kind": "polarity"}
    with pytest.raises(KnowledgeError, match="on pairs of texts"):
        Material.prepare(InformedConfig(**values))


def test_a_result_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"kind": "informed", "schema_version": 99}')
    with pytest.raises(InvalidResultError, match="schema_version 99"):
        InformedResult.load(path)
    path.write_text('{"kind": "compare"}')
    with pytest.raises(InvalidResultError, match="not a result file"):
        InformedResult.load(path)


@pytest.mark.parametrize("name", ["informed-sst2", "informed-sst2-more", "informed-wordnet"])
def test_a_published_result_is_read_and_says_what_the_docs_say(name: str) -> None:
    root = Path(__file__).parents[2]
    result = InformedResult.load(root / "configs" / "evidence" / f"{name}.json")

    def rounded(summary: list[dict]) -> list[dict]:
        return json.loads(json.dumps(summary), parse_float=lambda text: round(float(text), 9))

    assert rounded(result.summary) == rounded(summarise(result.runs))
    docs = (root / "docs" / "knowledge.md").read_text()
    for cell in result.summary:
        assert number(cell["mean"]) in docs
        for difference in cell["against"].values():
            if cell["label"] != "none":
                assert f"{signed(difference['mean'])} ± {number(difference['half'])}" in docs
    assert "(not clear)" in verdict(result)
