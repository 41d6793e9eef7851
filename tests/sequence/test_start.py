"""`--start`: a fine-tuned classifier has learned the first task, and only the later ones are learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import FLAT, FROZEN, TASKS, Listener, config_of
from starts import bert_of, save_start, score_of, tokenizer_of

from lr_dist.errors import ConfigurationError, MissingWeightsError, StartMismatchError
from lr_dist.methods import Needs
from lr_dist.report.page import render_report
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.compare import compare
from lr_dist.sequence.observers import Observer, SequenceState, TestAfterStages
from lr_dist.sequence.result import ComparisonResult
from lr_dist.sequence.runner import SequenceRun, run_sequence
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.sequence.stage import Stage

THREE = (*TASKS, "demo-acceptability")
SETTINGS = SequenceSettings(epochs=1, batch_size=16, precision="32-true")


class Weights(Observer):
    """All weights after each stage."""

    needs = Needs(full_vocabulary=True)

    def __init__(self) -> None:
        self.backbones: list[dict[str, torch.Tensor]] = []
        self.heads: list[dict[str, torch.Tensor]] = []

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        self.backbones.append({n: w.clone() for n, w in run.module.backbone.state_dict().items()})
        self.heads.append({n: w.clone() for n, w in run.module.heads.state_dict().items()})

    def moved(self) -> float:
        """How far the second stage moved the backbone."""
        before, after = self.backbones[:2]
        return sum(float((after[name] - before[name]).square().sum()) for name in before) ** 0.5


def bench_of(model: str, start: str | None = None, tasks: tuple[str, ...] = TASKS) -> Bench:
    return Bench.prepare(model, tasks, SETTINGS, limit=96, start=start)


def run(bench: Bench, arm: str = FLAT, seed: int = 0) -> tuple[SequenceRun, Weights]:
    weights = Weights()
    return run_sequence(bench, Arm.parse(arm), seed, TestAfterStages(), [weights]), weights


@pytest.fixture(scope="module")
def unbroken(tiny_model: str) -> tuple[SequenceRun, Weights]:
    return run(bench_of(tiny_model, tasks=THREE))


@pytest.fixture(scope="module")
def start(tiny_model: str, unbroken: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model after the first stage of the unbroken run, with the outputs of its head in another order."""
    bench, weights = bench_of(tiny_model), unbroken[1]
    head = torch.nn.Linear(32, 2)
    with torch.no_grad():
        head.weight.copy_(weights.heads[0]["demo-sentiment.weight"].flip(0))
        head.bias.copy_(weights.heads[0]["demo-sentiment.bias"].flip(0))
    labels = tuple(reversed([name.upper() for name in bench.tasks[0].classes]))
    model = bert_of(tiny_model, labels, weights.backbones[0], head)
    return save_start(tmp_path_factory.mktemp("start"), model, tokenizer_of(tiny_model))


def test_it_goes_on_exactly_as_the_run_that_was_not_broken(unbroken: Any, start: str, tiny_model: str) -> None:
    whole, continued = unbroken, run(bench_of(tiny_model, start, THREE))
    for stage in range(3):
        assert all(torch.equal(whole[1].backbones[stage][n], w) for n, w in continued[1].backbones[stage].items())
    # The first head is another one: BERT's has a pooler. Its outputs are the same but for rounding.
    for name in ("demo-entailment.weight", "demo-acceptability.weight"):
        assert torch.equal(whole[1].heads[2][name], continued[1].heads[2][name])
    assert continued[0].matrix[1:] == whole[0].matrix[1:]
    assert continued[0].matrix[0] == continued[0].matrix[1]
    assert continued[0].train_steps == whole[0].train_steps - 6
    assert continued[0].tokens < whole[0].tokens


FAMILIES = {
    "bert": {"intermediate_size": 64},
    "roberta": {"intermediate_size": 64, "max_position_embeddings": 80},
    "electra": {"intermediate_size": 64, "embedding_size": 16},
    "albert": {"intermediate_size": 64, "embedding_size": 16},
    "deberta-v2": {"intermediate_size": 64, "pooler_hidden_size": 32, "relative_attention": True},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_score_is_exactly_the_folders_own(family: str, tiny_model: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = tokenizer_of(tiny_model)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2} if family != "distilbert" else {}
    named = {"num_labels": 2, "id2label": dict(enumerate(bench_of(tiny_model).tasks[0].classes))}
    # Larger weights than usual, so that texts get different outputs.
    sizes |= {"vocab_size": len(tokenizer), "initializer_range": 0.3, "pad_token_id": 0, **FAMILIES[family]}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **sizes, **named))
    folder = save_start(tmp_path, model, tokenizer)
    bench = bench_of(folder, folder)
    done, _ = run(bench)
    score = score_of(folder, bench)
    assert done.matrix[0][0] == done.matrix[1][0] == pytest.approx(score, abs=1e-9)
    assert 0.1 < score < 0.9


@pytest.mark.parametrize("arm", ["ewc:strength=1e9,examples=40", "mas:strength=1e7", "lwf:strength=30", "replay"])
def test_methods_learn_from_the_first_tasks_data(arm: str, start: str, tiny_model: str) -> None:
    bench = bench_of(tiny_model, start)
    _, plain = run(bench)
    _, weights = run(bench, f"{FLAT} + {arm}")
    _, again = run(bench, f"{FLAT} + {arm}")
    assert all(torch.equal(again.backbones[1][name], w) for name, w in weights.backbones[1].items())
    assert all(torch.equal(plain.backbones[0][name], w) for name, w in weights.backbones[0].items())
    assert any(not torch.equal(plain.backbones[1][name], w) for name, w in weights.backbones[1].items())
    if arm.startswith(("ewc", "mas")):
        assert weights.moved() < 0.8 * plain.moved()
    else:  # the earlier head is trained, too: the folder's own modules
        name = "demo-sentiment.classifier.bert.pooler.dense.weight"
        assert not torch.equal(weights.heads[1][name], weights.heads[0][name])
        assert torch.equal(plain.heads[1][name], plain.heads[0][name])


@pytest.mark.parametrize("method", ["lora:rank=2", "ema:decay=0.9", "freeze", "joint"])
def test_methods_that_act_in_training_leave_the_start_as_it_is(method: str, start: str, tiny_model: str) -> None:
    bench = bench_of(tiny_model, start)
    plain, weights = run(bench)
    done, acted = run(bench, f"{FLAT} + {method}")
    assert done.matrix[:2] == plain.matrix[:2]
    assert all(torch.equal(weights.backbones[0][name], w) for name, w in acted.backbones[0].items())
    assert any(not torch.equal(weights.backbones[1][name], w) for name, w in acted.backbones[1].items())
    assert done.train_steps == (12 if method == "joint" else 6)


def test_interpolation_goes_back_toward_the_start(start: str, tiny_model: str) -> None:
    _, plain = run(bench_of(tiny_model, start))
    _, half = run(bench_of(tiny_model, start), f"{FLAT} + interpolate:alpha=0.5")
    assert half.moved() == pytest.approx(plain.moved() / 2, rel=1e-4)


def test_a_method_that_must_see_the_training_is_refused(start: str, tiny_model: str, tmp_path: Path) -> None:
    config = config_of(tiny_model, start=start, distributions=(), arms=(f"{FLAT} + si:strength=1",))
    with pytest.raises(ConfigurationError, match=r"si.* measures what counts for a task while it is trained"):
        compare(config, tmp_path, listener=Listener(), command="test")


def test_a_comparison_learns_the_later_tasks_alone(start: str, tiny_model: str, tmp_path: Path) -> None:
    shutil.copytree(start, tmp_path / "model")
    config = config_of(tiny_model, start=str(tmp_path / "model"), tasks=THREE, epochs=1)
    listener, output = Listener(), tmp_path / "out"
    result = compare(config, output, listener=listener, command="test")
    # Two tasks of 6 steps in each of 4 runs.
    assert listener.steps == listener.announced[2] == 4 * 2 * 6
    score = score_of(start, bench_of(tiny_model, start))
    for done in result.runs:
        matrix = done["matrix"]
        assert matrix[1][0] == pytest.approx(score, abs=1e-9)
        assert done["metrics"]["forward_transfer"] is None
        lost = [max(matrix[1][task], matrix[2][task]) - matrix[3][task] for task in (0, 1)]
        assert done["metrics"]["forgetting"] == pytest.approx(sum(lost) / 2)
        assert done["train_steps"] == 12
    frozen = [done for done in result.runs if done["arm"] == FROZEN]
    assert all(done["matrix"][3][0] == done["matrix"][1][0] for done in frozen)
    assert result.model["start"]["folder"] == result.config["start"] == str(tmp_path / "model")
    assert ComparisonResult.load(output / "result.json") == result
    page = render_report(result)
    assert "learned by the start" in page
    assert "forward transfer" not in page

    (tmp_path / "model").rename(tmp_path / "moved")
    idle = Listener()
    moved = config_of(tiny_model, start=str(tmp_path / "moved"), tasks=THREE, epochs=1)
    again = compare(moved, output, listener=idle, command="test")
    assert idle.announced == (4, 4, 0)
    assert [done["matrix"] for done in again.runs] == [done["matrix"] for done in result.runs]

    _reweighted(tmp_path / "moved", "classifier.bias")
    with pytest.raises(ConfigurationError, match=r"holds another comparison.*head of the start"):
        compare(moved, output, listener=Listener(), command="test")


def _reweighted(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights[name] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _config_changed(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_shared_stages_from_a_start_give_the_same_results(start: str, tiny_model: str, tmp_path: Path) -> None:
    arms = (f"{FLAT} + interpolate:alpha=0.5", f"{FLAT} + interpolate:alpha=0.7")
    changes: dict[str, Any] = {"start": start, "arms": arms, "seeds": (0,), "epochs": 1}
    shared, each = Listener(), Listener()
    first = compare(config_of(tiny_model, **changes), tmp_path / "a", listener=shared, command="test")
    second = compare(config_of(tiny_model, **changes, keep_stages=False), tmp_path / "b", listener=each, command="test")
    assert [done["matrix"] for done in first.runs] == [done["matrix"] for done in second.runs]
    # Of FLAT and its two interpolations the second stage is trained once.
    assert any("2 of 4 stages are trained" in note for note in shared.notes)
    assert sum(bool(done["taken_over"]) for done in first.runs) == 2
    assert not (tmp_path / "a" / "stages").exists()


def test_a_folder_without_a_head_is_refused(tiny_model: str) -> None:
    with pytest.raises(MissingWeightsError, match=r"no fine-tuned classifier.*classifier\.bias"):
        bench_of(tiny_model, tiny_model)


def test_a_head_with_another_number_of_labels_is_refused(start: str, tiny_model: str, tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    save_start(tmp_path, BertForSequenceClassification.from_pretrained(tiny_model, num_labels=5), tokenizer_of(start))
    with pytest.raises(StartMismatchError, match=r"has 5 output.*demo-sentiment needs 2"):
        bench_of(tiny_model, str(tmp_path))


def test_labels_of_another_task_are_refused_and_unnamed_ones_are_taken_in_order(
    start: str, tiny_model: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(start, folder)
    _config_changed(folder, id2label={"0": "spam", "1": "ham"}, label2id={"spam": 0, "ham": 1})
    with pytest.raises(StartMismatchError, match=r"spam.*ham.*`id2label`"):
        bench_of(tiny_model, str(folder))
    _config_changed(folder, id2label={"0": "LABEL_0", "1": "LABEL_1"}, label2id={"LABEL_0": 0, "LABEL_1": 1})
    unnamed = bench_of(tiny_model, str(folder))
    named = bench_of(tiny_model, start)
    assert unnamed.start is not None
    assert named.start is not None
    assert unnamed.start.head.order == (0, 1)
    assert named.start.head.order == (1, 0)
    assert unnamed.start.fingerprint != named.start.fingerprint


def test_another_tokenizer_is_refused(start: str, tiny_model: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    without = tmp_path / "without"
    shutil.copytree(start, without)
    for path in without.glob("*token*"):
        path.unlink()
    with pytest.raises(StartMismatchError, match=r"holds no tokenizer.*save_pretrained"):
        bench_of(str(without), str(without))

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", *map(str, range(5000))])}
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")),
        model_max_length=64, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
    )  # fmt: skip
    larger = tmp_path / "larger"
    shutil.copytree(start, larger)
    other.save_pretrained(larger)
    with pytest.raises(StartMismatchError, match="5,003 words"):
        bench_of(str(larger), str(larger))
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    other.save_pretrained(base)
    with pytest.raises(StartMismatchError, match="is another one than that of --model"):
        bench_of(str(base), start)


def test_a_start_alone_has_nothing_left_to_learn(start: str, tiny_model: str) -> None:
    with pytest.raises(ConfigurationError, match="has learned demo-sentiment already"):
        bench_of(tiny_model, start, TASKS[:1])


def test_a_decoder_reads_its_last_token(tiny_model: str, tmp_path: Path) -> None:
    """GPT-2's tokenizers put no class token first; its head is a linear layer on the last state."""
    from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

    bert = tokenizer_of(tiny_model)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bert.backend_tokenizer, model_max_length=64, pad_token="[PAD]", unk_token="[UNK]"
    )
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(bert), n_embd=32, n_layer=2, n_head=2, n_positions=64, num_labels=2, pad_token_id=0,
        bos_token_id=3, eos_token_id=3,
        initializer_range=0.3, id2label=dict(enumerate(bench_of(tiny_model).tasks[0].classes)),
    )  # fmt: skip
    folder = save_start(tmp_path, GPT2ForSequenceClassification(config), tokenizer)
    bench = bench_of(folder, folder)
    done, _ = run(bench)
    assert done.matrix[1][0] == pytest.approx(score_of(folder, bench), abs=1e-9)
