"""The machinery of the datamodeling score; the score itself takes minutes: `python tests/influence_lds.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import influence_lds as lds
import numpy as np
import torch

HOW = lds.Training(damping=1.0, pull=1.0, steps=2, polish=2, fine_steps=2)


def test_halves_are_halves_and_each_word_is_masked_once() -> None:
    halves = lds.halves(5, 0)
    assert halves.shape == (5, lds.SENTENCES // 2)
    assert all(len(set(half.tolist())) == lds.SENTENCES // 2 for half in halves)
    assert len({tuple(half.tolist()) for half in halves}) == 5
    data = lds.make_data()
    ids, labels = lds.masked(data.sentences)
    assert ((labels != -100).sum(1)[:, 1:] == 1).all()
    assert torch.equal(torch.where(labels == -100, ids, labels), data.sentences[:, None].expand_as(ids))
    assert (ids[labels != -100] == lds.MASK).all()


def test_training_has_no_randomness_but_the_first_weights() -> None:
    data, half = lds.make_data(), torch.from_numpy(lds.halves(1, 0)[0])
    one, again, other = (lds.train_second(data, lds.train_first(data, half, seed, HOW), HOW) for seed in (0, 0, 1))
    asked = data.queries, data.query_labels
    assert torch.equal(lds.margins(one, *asked), lds.margins(again, *asked))
    assert not torch.equal(lds.margins(one, *asked), lds.margins(other, *asked))


def test_stage_1_trains_the_loss_that_its_influence_is_of() -> None:
    data, model = lds.make_data(), lds.TwoHeads(0)
    ids, labels = (each.flatten(0, 1) for each in lds.masked(data.sentences))
    stage, _ = lds.stages_of(model, model, data)
    batches = [stage.objective.losses(model, batch) for batch in stage.batches()]
    expected = torch.cat(batches).mean().detach()
    torch.testing.assert_close(lds.mean_masked_loss(model, ids, labels)().detach(), expected, rtol=1e-5, atol=0)


def test_the_pull_is_in_the_objective() -> None:
    data = lds.make_data()
    first = lds.train_first(data, torch.arange(lds.SENTENCES), 0, HOW)
    free, held = (lds.train_second(data, first, replace(HOW, pull=pull, fine_steps=12)) for pull in (0.0, 10.0))
    moved = [float((model.embed.weight - first.embed.weight).detach().norm()) for model in (free, held)]
    assert 0 < moved[1] < moved[0] / 2
    loss = lambda: (parameter**2).sum()  # noqa: E731
    parameter = torch.nn.Parameter(torch.tensor([3.0]))
    # The minimum of x^2 + (4/2) (x - 3)^2.
    assert lds.minimise([parameter], loss, 4.0, 0, 5) < 1e-5
    assert abs(float(parameter.detach()) - 2) < 1e-5
    # With few steps something of the gradient is left.
    parameter = torch.nn.Parameter(torch.tensor([3.0]))
    assert lds.minimise([parameter], loss, 4.0, 10) > 1


def test_the_score_is_1_for_outcomes_that_are_sums_of_influences() -> None:
    draw = np.random.default_rng(0)
    influences, halves = draw.normal(size=(3, lds.SENTENCES)), lds.halves(12, 0)
    outcomes = np.stack([influences[:, half].sum(1) for half in halves])
    assert lds.datamodeling_score(influences, halves, outcomes) == 1
    assert lds.datamodeling_score(influences, halves, -outcomes) == -1
    noise = draw.normal(size=outcomes.shape)
    score = lambda pick: lds.paired_score([influences], halves[pick], [noise[pick]])  # noqa: E731
    low, high = lds.interval(score, 12, draws=50)
    assert low < 0 < high


def test_every_method_is_scored_and_a_stopped_run_goes_on(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lds, "SETTINGS", ((0.3, 1.0), (1.0, 2.0)))
    asked = {"subsets": 4, "tuning": 3, "steps": 4, "fine_steps": 2, "keep": tmp_path / "kept.jsonl"}
    result = lds.measure(**asked)
    assert set(result["scores"]) == {lds.EKFAC, lds.PRODUCTS}
    assert all(-1 <= value <= 1 for value in result["scores"].values())
    tried = result["on_other_subsets"]
    assert result["chosen"]["pull"] == max(tried, key=lambda each: each[lds.EKFAC] - each[lds.PRODUCTS])["pull"]
    monkeypatch.setattr(lds, "train_first", None)
    again = lds.measure(**asked)
    assert {**again, "cpu_seconds_of_this_process": 0} == {**result, "cpu_seconds_of_this_process": 0}
