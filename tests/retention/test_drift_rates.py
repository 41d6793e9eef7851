"""Rates from one short flat run, inversely to what each layer's movement cost."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch

from lr_dist import LRDistribution
from lr_dist.errors import InvalidRateError
from lr_dist.retention.drift_rates import drift_rates
from lr_dist.retention.layer_probe import layer_probe


def test_rates_follow_the_layer_probe_of_a_real_run() -> None:
    old, new = tiny.batches(8), tiny.batches(8, seed=3)
    module = tiny.Classifier(lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2))
    tiny.fit(module, data=old, max_epochs=5)
    before = copy.deepcopy(module.model)
    # Of the new task the second token decides.
    tokens = new.dataset.tensors[0]
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tokens, (tokens[:, 1] > 20).long()), batch_size=4)
    tiny.fit(module, data=data)

    def score(model: Any) -> float:
        model.eval()
        with torch.no_grad():
            return -float(model(input_ids=old.dataset.tensors[0], labels=old.dataset.tensors[1]).loss)

    probe = layer_probe(module.model, before, score)
    assert probe.all_exchanged > probe.score  # it has forgotten
    rates = drift_rates(module.model, before, score, 1e-4, power=1.0, limit=1e3)
    assert rates == LRDistribution.from_drift(probe.gain, 1e-4, power=1.0, limit=1e3)
    by_cost = sorted(list(probe.gain)[:-1], key=lambda layer: probe.gain[layer])
    found = rates.rates(3)
    assert [found[layer] for layer in by_cost] == sorted((found[layer] for layer in by_cost), reverse=True)
    assert found["head"] == 1e-4
    control = drift_rates(module.model, before, score, 1e-4, power=1.0, limit=1e3, permuted=1)
    assert control != rates
    with pytest.raises(InvalidRateError, match="cost anything"):
        drift_rates(before, copy.deepcopy(before), score, 1e-4)
