"""The machinery of the datamodeling score; the score itself takes minutes: `python tests/influence_lds.py`."""

from __future__ import annotations

import influence_lds as lds
import numpy as np
import torch


def test_halves_are_halves_and_seeds_are_paired() -> None:
    halves = lds.halves(5, 0)
    assert halves.shape == (5, lds.SENTENCES // 2)
    assert all(len(set(half.tolist())) == lds.SENTENCES // 2 for half in halves)
    assert len({tuple(half.tolist()) for half in halves}) == 5
    data = lds.make_data()
    ids, labels = lds.masked(data.sentences, 3)
    assert ((labels != -100).sum(1) >= 1).all()
    assert torch.equal(torch.where(labels == -100, ids, labels), data.sentences)
    half = torch.from_numpy(halves[0])
    one, again = (lds.train(data, half, 0, steps=2, fine_steps=1)[1] for _ in range(2))
    other = lds.train(data, half, 1, steps=2, fine_steps=1)[1]
    asked = data.queries, data.query_labels
    assert torch.equal(lds.margins(one, *asked), lds.margins(again, *asked))
    assert not torch.equal(lds.margins(one, *asked), lds.margins(other, *asked))


def test_the_score_is_1_for_outcomes_that_are_sums_of_influences() -> None:
    draw = np.random.default_rng(0)
    influences, halves = draw.normal(size=(3, lds.SENTENCES)), lds.halves(12, 0)
    outcomes = np.stack([influences[:, half].sum(1) for half in halves])
    assert lds.datamodeling_score(influences, halves, outcomes) == 1
    assert lds.datamodeling_score(influences, halves, -outcomes) == -1
    low, high = lds.interval(influences, halves, draw.normal(size=outcomes.shape), draws=50)
    assert low < 0 < high


def test_every_method_is_scored(monkeypatch) -> None:
    monkeypatch.setattr(lds, "MASKS", 1)
    monkeypatch.setattr(lds, "PULLS", (1.0,))
    result = lds.measure(subsets=5, tuning=3, seeds=2, steps=4, fine_steps=2, models=1)
    assert set(result["scores"]) == {"gradient products", "ekfac, pull 1"}
    assert all(-1 <= value <= 1 for value in result["scores"].values())
    assert result["chosen_on_other_subsets"] == "ekfac, pull 1"
