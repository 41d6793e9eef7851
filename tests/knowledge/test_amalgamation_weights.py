"""Teachers from the stages of a sequence, and baselines that merge teachers' weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comparison import TASKS
from knowledge.amalgamating import bert, distilbert, letter_tokenizer, pretrained, sentences, teacher, word_tokenizer
from safetensors.torch import load_file, save_file

from lr_dist import LRDistribution
from lr_dist.errors import ConfigurationError, ModelLoadError, ModelMismatchError, TeacherError
from lr_dist.knowledge.amalgamation.load import load_teacher
from lr_dist.knowledge.amalgamation.merging import add_task_vectors, average_teachers, merged_probabilities
from lr_dist.knowledge.amalgamation.scores import score_texts
from lr_dist.knowledge.amalgamation.texts import Texts
from lr_dist.models import load_new_classifier
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.keep_stages import KeepStages
from lr_dist.sequence.observers import TestAfterStages
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.tasks.task import column_values

TEXTS = Texts.of(sentences(12)[0])


def test_a_stage_of_a_sequence_is_a_teacher_with_the_scores_of_its_matrix(tiny_model: str, tmp_path: Path) -> None:
    settings = SequenceSettings(epochs=1, batch_size=16, precision="32-true")
    bench = Bench.prepare(tiny_model, TASKS, settings, limit=48)
    run = run_sequence(bench, Arm.of(LRDistribution.flat(1e-3)), 0, TestAfterStages(), [KeepStages(tmp_path)])
    task = bench.tasks[0]
    texts = Texts.of_task(task, "validation")
    labels = torch.tensor(column_values(task.validation, "label"))
    # After the second stage, the file's own task is the second one; the first one's head is in it, too.
    for spec, after in ((f"{tmp_path}/stage-1.safetensors", 1), (f"{TASKS[0]}={tmp_path}/stage-2.safetensors", 2)):
        loaded = load_teacher(spec, model=tiny_model)
        assert loaded.labels == task.classes
        predicted = score_texts(loaded, texts, passes=0, batch_size=64).logits.argmax(dim=1)
        assert (predicted == labels).float().mean().item() == pytest.approx(run.matrix[after][0], abs=1e-6)
    # Its dropout is on in the passes: BERT's, and that before the head.
    assert score_texts(loaded, texts.rows_at(range(4)), passes=3).passes is not None
    assert score_texts(loaded, texts.rows_at(range(4)), passes=3, top_layers=1).passes is not None

    stage = f"{tmp_path}/stage-1.safetensors"
    with pytest.raises(ConfigurationError, match="demo-sentiment"):
        load_teacher(f"sst2={stage}", model=tiny_model)
    with pytest.raises(ModelMismatchError, match="--teacher-model"):
        load_teacher(stage, model=pretrained(tmp_path / "other"))
    save_file(load_file(stage), tmp_path / "anonymous.safetensors")
    with pytest.raises(ConfigurationError, match="TASK="):
        load_teacher(f"{tmp_path}/anonymous.safetensors", model=tiny_model)
    cut = load_file(stage)
    cut["backbone.embeddings.word_embeddings.weight"] = cut["backbone.embeddings.word_embeddings.weight"][:9]
    save_file(cut, tmp_path / "cut.safetensors")
    with pytest.raises(ModelMismatchError, match="KeepStages"):
        load_teacher(f"{TASKS[0]}={tmp_path}/cut.safetensors", model=tiny_model)
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelLoadError, match="broken"):
        load_teacher(f"{tmp_path}/broken.safetensors", model=tiny_model)


def test_averaged_teachers_have_the_mean_body_and_their_own_heads() -> None:
    first, second = teacher(bert(("a", "b"), seed=1), name="first"), teacher(bert(("b", "c"), seed=2), name="second")
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    merged = average_teachers([first, second])
    ours, one, other = (dict(each.model.named_parameters()) for each in (merged[0], first, second))
    for name, value in ours.items():
        in_head = name.startswith(("classifier", "bert.pooler"))
        expected = one[name] if in_head else (one[name] + other[name]) / 2
        torch.testing.assert_close(value, expected)
    body = dict(merged[1].model.named_parameters())
    assert torch.equal(
        body["bert.encoder.layer.0.output.dense.weight"], ours["bert.encoder.layer.0.output.dense.weight"]
    )
    assert all(torch.equal(value, before[name]) for name, value in first.model.state_dict().items())
    # A label that both know sums its columns.
    probabilities = merged_probabilities(merged, TEXTS)
    assert probabilities.shape == (12, 3)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(12))
    # The names are only for messages.
    first.name = second.name = "model"
    torch.testing.assert_close(merged_probabilities(average_teachers([first, second]), TEXTS), probabilities)


def test_task_vectors_are_added_to_the_pretrained_body(tmp_path: Path) -> None:
    start = load_new_classifier(pretrained(tmp_path / "pretrained"), ("a", "b"))
    teachers = [teacher(bert(("a", "b"), seed=k), name=str(k)) for k in (1, 2)]
    (first, *_) = add_task_vectors(teachers, start, scale=0.7)
    zero = dict(start.named_parameters())
    one, two = (dict(each.model.named_parameters()) for each in teachers)
    name = "bert.encoder.layer.1.attention.self.query.weight"
    expected = zero[name] + 0.7 * ((one[name] - zero[name]) + (two[name] - zero[name]))
    torch.testing.assert_close(dict(first.model.named_parameters())[name], expected)
    half, mean = add_task_vectors(teachers, start, scale=0.5), average_teachers(teachers)
    torch.testing.assert_close(merged_probabilities(half, TEXTS), merged_probabilities(mean, TEXTS), atol=1e-5, rtol=0)
    (untouched, _) = add_task_vectors(teachers, start, scale=0.0)
    assert torch.equal(dict(untouched.model.named_parameters())[name], zero[name])


def test_teachers_that_cannot_be_merged_are_refused() -> None:
    first = teacher(bert(("a", "b")), name="first")
    with pytest.raises(ModelMismatchError, match="one architecture"):
        average_teachers([first, teacher(distilbert(("c", "d")), letter_tokenizer(), name="second")])
    with pytest.raises(ModelMismatchError, match="tokenizers"):
        average_teachers([first, teacher(bert(("c", "d")), word_tokenizer(backwards=True), name="second")])
    with pytest.raises(TeacherError, match="at least two"):
        average_teachers([first])
