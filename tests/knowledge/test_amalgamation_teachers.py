"""Teachers: passes with dropout that is really on, flags restored, scores by id, kept and resumed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from knowledge.amalgamating import bert, distilbert, letter_tokenizer, save, sentences, teacher, word_tokenizer
from torch import nn
from transformers import AlbertConfig, AlbertForSequenceClassification, BartConfig, BartForSequenceClassification

from lr_dist.errors import (
    ConfigurationError,
    DropoutOffError,
    EmptyTextError,
    NonFiniteScoresError,
    TeacherError,
    UnreadableFileError,
    UnusableScoresWarning,
)
from lr_dist.knowledge.amalgamation.dropout import TopLayers, dropout_on, layer_modules, mean_of_passes, shares_draws
from lr_dist.knowledge.amalgamation.layer_error import top_layers_errors
from lr_dist.knowledge.amalgamation.load import load_teacher
from lr_dist.knowledge.amalgamation.scores import score_texts
from lr_dist.knowledge.amalgamation.teacher import FunctionTeacher, ModelTeacher
from lr_dist.knowledge.amalgamation.texts import Texts, tokenise

TEXTS = Texts.of(sentences(40)[0])


def inputs(texts: Texts = TEXTS) -> dict[str, torch.Tensor]:
    encoded = word_tokenizer()([first for first, _ in texts.pairs], padding=True, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


# Dropout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_dropout_of_a_real_bert_is_on(attention: str) -> None:
    """No nn.Dropout of this model drops anything; what is left is the attention's, which has a flag of its own."""
    model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        with dropout_on(model):
            first, second = (model(**inputs()).logits for _ in range(2))
        # Only nn.Dropout in training mode, as is often done: the attention drops nothing.
        for module in model.modules():
            module.training = isinstance(module, nn.Dropout)
        third, fourth = (model(**inputs()).logits for _ in range(2))
    assert (first - second).abs().max() > 0.01
    assert torch.equal(third, fourth)
    teacher(model).check_passes(teacher(model).prepare(TEXTS), None)


def test_flags_are_restored_and_running_statistics_stay() -> None:
    model = bert()
    model.add_module("norm", nn.BatchNorm1d(3))
    model.bert.encoder.layer[1].train()
    before = {name: module.training for name, module in model.named_modules()}
    statistics = {name: value.clone() for name, value in model.named_buffers()}

    def stopped() -> None:
        with dropout_on(model):
            assert model.bert.encoder.layer[0].attention.self.training
            assert not model.norm.training
            model.norm(torch.randn(8, 3))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())


def test_a_buffer_that_training_changes_is_restored() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.seen += 1
            return x

    model = nn.Sequential(Counting(), nn.Dropout()).eval()
    with torch.inference_mode(), dropout_on(model):
        model(torch.ones(2))
        assert model[0].seen == 1
    assert model[0].seen == 0


def test_passes_computed_together_have_the_mean_of_passes_one_by_one() -> None:
    """Each row draws for itself: the mean over many passes is the same, and no two rows of a batch are equal."""
    model, few = bert(dropout=0.3), inputs(TEXTS.rows_at([0, 1]))

    def forward(batch: Any) -> torch.Tensor:
        return model(**batch).logits

    with torch.inference_mode():
        torch.manual_seed(0)
        together = mean_of_passes(forward, model, few, 2000, rows=4000)
        torch.manual_seed(1)
        one_by_one = mean_of_passes(forward, model, few, 400, rows=2)
        plain = torch.softmax(forward(few), -1)
        with dropout_on(model):
            rows = forward({key: value[:1].repeat(4, 1) for key, value in few.items()})
    assert (together - one_by_one).abs().max() < 0.04
    assert (together - plain).abs().max() > 0.01
    assert len({tuple(row.tolist()) for row in rows}) == 4


def test_top_layers_compute_the_lower_ones_once_and_are_exact_without_dropout() -> None:
    model = bert(dropout=0.0, num_hidden_layers=3)
    calls = dict.fromkeys(range(3), 0)
    for index, layer in enumerate(layer_modules(model)):
        layer.attention.register_forward_hook(lambda *_, index=index: calls.update({index: calls[index] + 1}))
    few = inputs()
    with torch.inference_mode():
        whole = model(**few).logits
        calls.update(dict.fromkeys(calls, 0))
        with TopLayers(model, 1).lower_layers_kept():
            first = model(**few).logits
            again = model(**{key: value.repeat(3, 1) for key, value in few.items()}).logits
        assert calls == {0: 1, 1: 1, 2: 2}
        torch.testing.assert_close(first, whole)
        torch.testing.assert_close(again, whole.repeat(3, 1))
        torch.testing.assert_close(model(**few).logits, whole)  # afterwards all layers compute again
    assert calls == {0: 2, 1: 2, 2: 3}


@pytest.mark.parametrize("top", [1, 2])
def test_top_layers_draw_as_a_model_whose_lower_dropout_is_off(top: int) -> None:
    """With dropout in the embeddings and lower layers set to 0, dropout everywhere is dropout in the top layers."""
    model = bert(dropout=0.3)
    some = ModelTeacher("some", model, word_tokenizer(), ("fish", "bird"))
    prepared = some.prepare(TEXTS)
    torch.manual_seed(0)
    means = torch.stack([some.score(prepared, [0, 1, 2], 400, top)[1] for _ in range(3)]).mean(0)
    for module in (model.bert.embeddings, *model.bert.encoder.layer[: 2 - top]):
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    expected = torch.stack([some.score(prepared, [0, 1, 2], 400, None)[1] for _ in range(3)]).mean(0)
    assert (means - expected).abs().max() < 0.04


def test_top_layers_of_another_architecture() -> None:
    some = teacher(distilbert(dropout=0.3), letter_tokenizer())
    scores = score_texts(some, TEXTS, passes=4, top_layers=1)
    torch.testing.assert_close(scores.logits, score_texts(some, TEXTS, passes=0).logits)
    assert (scores.passes - torch.softmax(scores.logits, -1)).abs().max() > 1e-3


def test_layers_that_are_one_module_and_counts_out_of_range_are_refused() -> None:
    config = AlbertConfig(
        vocab_size=40,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
    )
    with pytest.raises(ConfigurationError, match="separate modules"):
        TopLayers(AlbertForSequenceClassification(config), 1)
    for count in (0, 3, True, 1.0):
        with pytest.raises(ConfigurationError, match="top_layers must be a whole number from 1 to 2"):
            TopLayers(bert(), count)


def test_layer_drop_is_drawn_pass_by_pass() -> None:
    sizes = {"vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    dropping = BartForSequenceClassification(BartConfig(**sizes, **heads, encoder_layerdrop=0.5))
    assert shares_draws(dropping)
    assert not shares_draws(BartForSequenceClassification(BartConfig(**sizes, **heads)))
    assert not shares_draws(bert())


@pytest.mark.parametrize("top", [None, 1])
def test_no_dropout_is_refused_when_passes_are_asked_for(top: int | None) -> None:
    with pytest.raises(DropoutOffError, match="passes=0"):
        score_texts(teacher(bert(dropout=0.0)), TEXTS, passes=4, top_layers=top)
    assert score_texts(teacher(bert(dropout=0.0)), TEXTS, passes=0).passes is None


@pytest.mark.parametrize("passes", [1, -1, 2.0, True])
def test_numbers_of_passes_without_a_spread_are_refused(passes: Any) -> None:
    with pytest.raises(DropoutOffError, match="passes must be"):
        score_texts(teacher(bert()), TEXTS, passes=passes)


# Scores ----------------------------------------------------------------------------------------------------


def test_shuffled_and_repeated_texts_keep_their_scores(tmp_path: Path) -> None:
    some = teacher(bert(dropout=0.2))
    scores = score_texts(some, TEXTS, passes=4, folder=tmp_path)
    order = list(range(len(TEXTS))) * 2
    random.Random(1).shuffle(order)
    shuffled = score_texts(some, TEXTS.rows_at(order), passes=4)  # computed anew, in this order
    kept = score_texts(some, TEXTS.rows_at(order), passes=4, folder=tmp_path)  # read
    assert (shuffled.computed, kept.computed) == (40, 0)
    for other in (shuffled, kept):
        assert torch.equal(other.logits, scores.logits[order])
        assert torch.equal(other.passes, scores.passes[order])
    # They are the scores of these very texts, one by one.
    direct = torch.cat([some.score(some.prepare(TEXTS.rows_at([row])), [0], 0, None)[0] for row in range(5)])
    torch.testing.assert_close(scores.logits[:5], direct)


def test_a_call_goes_on_where_an_earlier_one_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lr_dist.knowledge.amalgamation.scores._CHUNK", 16)
    some, seen = teacher(bert(dropout=0.2)), []
    whole = score_texts(some, TEXTS, passes=4)

    def stop(count: int) -> None:
        seen.append(count)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_texts(some, TEXTS, passes=4, folder=tmp_path, progress=stop)
    counts: list[int] = []
    resumed = score_texts(some, TEXTS, passes=4, folder=tmp_path, progress=counts.append)
    assert resumed.computed == 24
    assert counts[0] == 16
    assert sum(counts) == 40
    assert torch.equal(resumed.logits, whole.logits)
    assert torch.equal(resumed.passes, whole.passes)  # as if it had not been stopped


def test_damaged_files_are_scored_again_and_others_are_not_used(tmp_path: Path) -> None:
    some = teacher(bert(dropout=0.2))
    scores = score_texts(some, TEXTS, passes=4, folder=tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UnusableScoresWarning, match="scored again"):
        again = score_texts(some, TEXTS, passes=4, folder=tmp_path)
    assert again.computed == 40
    assert torch.equal(again.passes, scores.passes)
    # Another teacher, other passes, another seed: other scores.
    for changed, options in ((teacher(bert(seed=1)), {}), (some, {"passes": 5}), (some, {"seed": 1})):
        assert score_texts(changed, TEXTS, **{"passes": 4, **options}, folder=tmp_path).computed == 40


def test_scoring_leaves_random_numbers_and_model_alone() -> None:
    model = bert(dropout=0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    score_texts(teacher(model), TEXTS, passes=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


# Teachers --------------------------------------------------------------------------------------------------


def test_any_function_is_a_teacher() -> None:
    generator = torch.Generator().manual_seed(0)

    def length(texts: list[Any]) -> list[list[float]]:
        return [[float(len(text)), 10.0] for text in texts]

    def noisy(texts: list[Any]) -> torch.Tensor:
        return torch.tensor(length(texts)) + torch.randn(len(texts), 2, generator=generator)

    plain = FunctionTeacher("length", length, ("long", "short"))
    scores = score_texts(plain, TEXTS, passes=0)
    assert scores.logits[:, 0].tolist() == [len(first) for first, _ in TEXTS.pairs]
    with pytest.raises(DropoutOffError, match="sample"):
        score_texts(plain, TEXTS, passes=4)
    assert (
        score_texts(FunctionTeacher("noisy", length, ("long", "short"), sample=noisy), TEXTS, passes=4).passes
        is not None
    )
    with pytest.raises(DropoutOffError, match="all the same"):
        score_texts(FunctionTeacher("not noisy", length, ("long", "short"), sample=length), TEXTS, passes=4)
    with pytest.raises(TeacherError, match="shape"):
        score_texts(FunctionTeacher("three", length, ("a", "b", "c")), TEXTS, passes=0)


def test_logits_that_are_not_numbers_are_refused() -> None:
    model = bert()
    with torch.no_grad():
        model.classifier.bias[1] = float("nan")
    with pytest.raises(NonFiniteScoresError, match="teacher returned"):
        score_texts(teacher(model), TEXTS, passes=0)


def test_a_folder_is_loaded_with_its_tokenizer_and_labels(tmp_path: Path) -> None:
    folder = save(distilbert(), tmp_path / "good", letter_tokenizer())
    loaded = load_teacher(folder)
    assert loaded.labels == ("tree", "tool")
    expected = score_texts(teacher(distilbert(), letter_tokenizer()), TEXTS, passes=0)
    torch.testing.assert_close(score_texts(loaded, TEXTS, passes=0).logits, expected.logits)
    unnamed = bert()
    unnamed.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    with pytest.raises(TeacherError, match="id2label"):
        load_teacher(save(unnamed, tmp_path / "unnamed"))
    assert load_teacher(str(tmp_path / "unnamed"), labels=("a", "b")).labels == ("a", "b")
    with pytest.raises(TeacherError, match="one label"):
        load_teacher(save(bert(("only",)), tmp_path / "one"))
    bert().save_pretrained(tmp_path / "without")
    with pytest.raises(TeacherError, match="no tokenizer"):
        load_teacher(str(tmp_path / "without"))


# Texts -----------------------------------------------------------------------------------------------------


def test_pairs_and_single_texts_are_tokenised_in_their_order() -> None:
    texts = Texts.of(["the oak", ("a trout", "the old eel"), "owl and owl"])
    tokens = tokenise(texts, word_tokenizer(), 32)
    ids = [tokens[row]["input_ids"].tolist() for row in range(3)]
    expected = [
        word_tokenizer()(*each)["input_ids"] for each in (("the oak",), ("a trout", "the old eel"), ("owl and owl",))
    ]
    assert ids == expected
    assert [int(tokens[row]["label"]) for row in range(3)] == [0, 1, 2]
    assert len(set(texts.ids)) == 3
    assert Texts.of([("a b", "c")]).ids != Texts.of([("a", "b c")]).ids


def test_texts_that_tokenise_to_nothing_are_refused() -> None:
    with pytest.raises(EmptyTextError, match=r"2 of 3 texts become no tokens of .*: ';', ';;'. Remove"):
        tokenise(Texts.of(["the oak", ";", ";;"]), word_tokenizer(), 32)
    with pytest.raises(EmptyTextError, match="1 of 40"):
        score_texts(teacher(bert()), Texts((*TEXTS.pairs[:39], (";", None))), passes=0)
    with pytest.raises(EmptyTextError, match="no texts"):
        Texts.of([])
    with pytest.raises(EmptyTextError, match="white space"):
        Texts.of(["the oak", " \n"])


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("the oak\n\n a\ttrout \r\nowl", encoding="utf-8")
    assert Texts.of_file(tmp_path / "plain.txt").plain() == ["the oak", "a\ttrout", "owl"]
    (tmp_path / "pairs.tsv").write_text("the oak\tan elm\nowl\n", encoding="utf-8")
    assert Texts.of_file(tmp_path / "pairs.tsv").plain() == [("the oak", "an elm"), "owl"]
    # Characters at which str.splitlines ends a line, and an editor does not.
    (tmp_path / "inner.tsv").write_text("one\u2028two\x85\tthree\n", encoding="utf-8")
    assert Texts.of_file(tmp_path / "inner.tsv").plain() == [("one\u2028two", "three")]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for path in ("latin.txt", "missing.txt", "."):
        with pytest.raises(UnreadableFileError):
            Texts.of_file(tmp_path / path)


def test_held_out_texts_do_not_depend_on_the_order_and_are_no_copies() -> None:
    doubled = TEXTS + TEXTS.rows_at(range(10))
    train, held = doubled.split(0.25, seed=3)
    assert not set(train.ids) & set(held.ids)
    assert len(set(held.ids)) == pytest.approx(len(set(TEXTS.ids)) / 4, abs=1)
    order = list(range(len(doubled)))
    random.Random(0).shuffle(order)
    assert set(doubled.rows_at(order).split(0.25, seed=3)[1].ids) == set(held.ids)
    assert set(doubled.split(0.25, seed=4)[1].ids) != set(held.ids)
    assert TEXTS.drawn(7, seed=0).ids == Texts(TEXTS.drawn(39, seed=0).pairs).drawn(7, seed=0).ids


def test_the_error_of_top_layers_is_measured_against_dropout_everywhere() -> None:
    some = teacher(bert(dropout=0.3, num_hidden_layers=3))
    rows = top_layers_errors(some, TEXTS, [1, 3], passes=64)
    chance, one, three = rows
    assert [row.top_layers for row in rows] == [None, 1, 3]
    # The fewer layers, the further from dropout everywhere; all three layers leave out the embeddings' alone.
    assert one.certainty > three.certainty
    assert one.certainty > chance.certainty
    assert all(0.5 < row.order <= 1 for row in rows)
    with pytest.raises(ConfigurationError, match="top_layers"):
        top_layers_errors(some, TEXTS, [4], passes=2)
    with pytest.raises(ConfigurationError, match="passes is 0"):
        top_layers_errors(some, TEXTS, [1], passes=0)
