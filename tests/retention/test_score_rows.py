"""Many texts at once: the same numbers as one at a time, a line a text, and going on after a stop."""

from __future__ import annotations

import json
import statistics

import pytest
import torch
from tiny_mlm import masked_lm, sentences, tokenizer

from lr_dist.errors import InvalidMasksError, InvalidResultError
from lr_dist.retention.marginal_likelihood import marginal_likelihood
from lr_dist.retention.masked_lm import MaskedLM
from lr_dist.retention.score_rows import (
    ScoreSettings,
    curve_by_share,
    lost_per_token,
    per_token,
    score_rows,
)
from lr_dist.retention.texts import token_rows


@pytest.fixture(scope="module")
def lm() -> MaskedLM:
    return MaskedLM.of(masked_lm(), tokenizer())


@pytest.fixture(scope="module")
def rows():
    # 40 texts in three groups, of two lengths.
    texts = sentences(40)
    texts[::3] = [f"{text} the old garden leaves ." for text in texts[::3]]
    return token_rows(texts, tokenizer())


def totals(scores) -> list[float]:
    return [score.total for score in scores]


def test_every_text_has_the_estimate_that_it_has_alone(lm, rows) -> None:
    settings = ScoreSettings(masks=3, sizes=4, batch_size=7, seed=5)
    scores = score_rows(lm, rows, settings)["head"]
    assert len(scores) == len(rows)
    for index in (0, 1, 17, 39):
        row = rows[index]
        alone = marginal_likelihood(
            lm.conditional_log_prob(row), len(row), masks=3, sizes=4, seed=5 * 1_000_003 + index
        )
        assert scores[index].total == pytest.approx(alone.total, abs=1e-4)
        assert scores[index].standard_error == pytest.approx(alone.standard_error, abs=1e-4)
        assert [point.size for point in scores[index].curve] == [point.size for point in alone.curve]


def test_no_batch_is_larger_than_asked(lm, rows) -> None:
    seen = []
    handle = lm.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    score_rows(lm, rows[:5], ScoreSettings(batch_size=6))
    handle.remove()
    assert max(seen) == 6
    assert sum(seen) <= 5 * 2 * 8


def test_a_text_shorter_than_the_number_of_sizes_has_all_of_its_sizes(lm) -> None:
    row = token_rows(["the old river ."], tokenizer(), least=4)[0]
    score = score_rows(lm, [row], ScoreSettings(sizes=9))["head"][0]
    assert [point.size for point in score.curve] == [1, 2, 3, 4]


def test_heads_share_masks(lm, rows) -> None:
    other = MaskedLM.of(masked_lm(seed=1), tokenizer()).head
    both = score_rows(lm, rows[:6], heads={"one": lm.head, "two": other})
    assert totals(both["one"]) == pytest.approx(totals(score_rows(lm, rows[:6])["head"]), abs=1e-5)
    alone = score_rows(lm.with_head(other), rows[:6])["head"]
    assert totals(both["two"]) == pytest.approx(totals(alone), abs=1e-5)


def test_a_stopped_measurement_goes_on_with_the_same_numbers(lm, rows, tmp_path) -> None:
    whole = score_rows(lm, rows, store=tmp_path / "whole.jsonl")["head"]
    path = tmp_path / "stopped.jsonl"

    def stop(done: int, total: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_rows(lm, rows, store=path, progress=stop)
    # As a killed process leaves it: a line without its end.
    text = path.read_text()
    assert len(text.splitlines()) == 1 + 16
    path.write_text(text + '{"text": 16, "scor')
    calls = []
    handle = lm.encoder.register_forward_hook(lambda *args: calls.append(1))
    resumed = score_rows(lm, rows, store=path)["head"]
    first = len(calls)
    again = score_rows(lm, rows, store=path)["head"]
    handle.remove()
    assert resumed == whole
    assert again == whole
    assert len(calls) == first  # all of it was read
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["schema_version"] == 1
    assert [line["text"] for line in lines[1:]] == list(range(40))
    assert lines[1]["scores"]["head"]["per_token"] == pytest.approx(whole[0].per_token)


def test_another_measurement_is_not_continued(lm, rows, tmp_path) -> None:
    path = tmp_path / "scores.jsonl"
    score_rows(lm, rows[:3], store=path)
    with pytest.raises(InvalidResultError, match="other settings"):
        score_rows(lm, rows[:3], ScoreSettings(masks=3), store=path)
    with pytest.raises(InvalidResultError, match="other text"):
        score_rows(lm, rows[:4], store=path)
    with pytest.raises(InvalidResultError, match="other encoder"):
        score_rows(lm.with_encoder(MaskedLM.of(masked_lm(seed=1), tokenizer()).encoder), rows[:3], store=path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"text": 0, "scores": {"head": {"curve": 3}}}', *lines[2:]]) + "\n")
    with pytest.raises(InvalidResultError, match="line 2, was altered"):
        score_rows(lm, rows[:3], store=path)
    path.write_text("no json\n")
    with pytest.raises(InvalidResultError, match="line 1, is no JSON"):
        score_rows(lm, rows[:3], store=path)


def test_the_error_over_texts_is_the_spread_over_draws(lm, rows) -> None:
    """Texts are fixed here, so the spread over seeds is the part of the error that masks and sizes make."""
    draws = [score_rows(lm, rows[:4], ScoreSettings(seed=seed))["head"] for seed in range(60)]
    sds = [statistics.stdev(score.total for score in text) for text in zip(*draws, strict=True)]
    errors = [statistics.fmean(score.standard_error**2 for score in text) ** 0.5 for text in zip(*draws, strict=True)]
    assert statistics.fmean(errors) == pytest.approx(statistics.fmean(sds), rel=0.25)


def test_the_loss_of_a_changed_model_is_paired(lm, rows) -> None:
    changed = masked_lm()
    with torch.no_grad():
        changed.bert.encoder.layer[1].output.dense.weight.mul_(0.9)
    after = score_rows(MaskedLM.of(changed, tokenizer()), rows)["head"]
    before = score_rows(lm, rows)["head"]
    lost = lost_per_token(before, after)
    tokens = sum(map(len, rows))
    assert lost.mean == pytest.approx((sum(totals(before)) - sum(totals(after))) / tokens)
    assert lost.mean == pytest.approx(per_token(before).mean - per_token(after).mean)
    # The same masks: the difference is known better than either.
    assert 0 < lost.error < per_token(before).error
    assert lost_per_token(before, before).mean == 0
    assert lost_per_token(before, before).error == 0


def test_the_curve_has_a_point_for_each_tenth(lm, rows) -> None:
    scores = score_rows(lm, rows, ScoreSettings(sizes=8))["head"]
    curve = curve_by_share(scores)
    assert len(curve) == 10
    assert all(value is not None and value < 0 for value in curve)


def test_a_point_of_the_curve_is_in_the_tenth_up_to_its_share(lm, rows) -> None:
    [score] = score_rows(lm, rows[:1])["head"]
    shares = [(10 * point.size / score.tokens, point.mean) for point in score.curve]
    for tenth, value in enumerate(curve_by_share([score])):
        inside = [mean for share, mean in shares if tenth < share <= tenth + 1]
        assert value == (pytest.approx(sum(inside) / len(inside)) if inside else None)


@pytest.mark.parametrize(("values", "says"), [({"masks": 1}, "standard error"), ({"sizes": 1}, "standard error")])
def test_settings_without_a_standard_error_are_refused(values, says: str) -> None:
    with pytest.raises(InvalidMasksError, match=says):
        ScoreSettings(**values)
