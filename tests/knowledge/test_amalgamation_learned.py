"""How much of its targets a student has learned: against hand computations, and for real tiny students."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from lr_dist.errors import UndertrainedStudentWarning
from lr_dist.knowledge.amalgamation.labels import LabelUnion
from lr_dist.knowledge.amalgamation.learned import Learned, label_groups, warn_if_little, what_was_learned
from lr_dist.knowledge.amalgamation.targets import Objective, divergence, make_objective

UNION = LabelUnion((("a", "b"), ("c", "d")))
# Two texts of each teacher, which is known; within it, one text for each label with .8.
TARGETS = torch.tensor([[0.8, 0.2, 0, 0], [0.2, 0.8, 0, 0], [0, 0, 0.8, 0.2], [0, 0, 0.2, 0.8]])
ROWS = torch.arange(4)
ROUTING, LABEL = math.log(2), math.log(2) + 0.8 * math.log(0.8) + 0.2 * math.log(0.2)


def of(outputs: torch.Tensor, weights: torch.Tensor | None = None, kind: str = "soft") -> Learned:
    objective = Objective(TARGETS, torch.ones(4) if weights is None else weights, divergence)
    return what_was_learned(kind, objective, ROWS, outputs, UNION)


def test_a_student_that_only_tells_the_teachers_apart() -> None:
    right = torch.tensor([[0.0, 0, -50, -50], [0, 0, -50, -50], [-50, -50, 0, 0], [-50, -50, 0, 0]])
    learned = of(right)
    assert learned.between == pytest.approx(1)
    assert learned.within == pytest.approx(0, abs=1e-6)
    assert learned.between_nats == pytest.approx(ROUTING)
    assert learned.within_nats == pytest.approx(LABEL)


def test_a_student_that_only_knows_the_labels() -> None:
    learned = of(TARGETS.clamp_min(1e-9).log().where(TARGETS > 0, 0.25) + torch.zeros(4, 4))
    # Within each teacher's labels right, and between the teachers whatever 0.25 for the others comes to.
    assert learned.within == pytest.approx(1)
    share = 1 / (1 + 2 * math.exp(0.25))
    assert learned.between == pytest.approx(1 + math.log(share) / ROUTING)


def test_constant_and_perfect_students() -> None:
    constant = of(torch.zeros(4, 4))
    assert constant.between == pytest.approx(0)
    assert constant.within == pytest.approx(0)
    perfect = of(TARGETS.clamp_min(1e-30).log())
    assert perfect.between == pytest.approx(1)
    assert perfect.within == pytest.approx(1)
    assert of(-TARGETS.clamp_min(1e-3).log()).within < 0  # worse than a constant


def test_weights_of_the_texts_count() -> None:
    outputs = torch.zeros(4, 4)
    outputs[0] = TARGETS[0].clamp_min(1e-30).log()  # right about the first text only
    heavy = of(outputs, torch.tensor([100.0, 1, 1, 1]))
    light = of(outputs, torch.tensor([1.0, 100, 1, 1]))
    assert heavy.within is not None
    assert light.within is not None
    assert heavy.within > light.within


def test_labels_that_both_teachers_know_are_a_group_of_their_own() -> None:
    union = LabelUnion((("a", "b", "both"), ("both", "c", "d")))
    assert label_groups(union).tolist() == [0, 0, 1, 2, 2]
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(6, 3, generator=generator) for _ in range(2)]
    for kind in ("soft", "hard", "vkd", "uhc"):
        objective = make_objective(kind, logits, union)
        outputs = torch.randn(6, 5, generator=generator, dtype=torch.float64)
        learned = what_was_learned(kind, objective, torch.arange(6), outputs, union)
        # The parts of the loss, put together again from the shares, are the loss.
        left = 0.0
        for share, nats in ((learned.between, learned.between_nats), (learned.within, learned.within_nats)):
            left += 0.0 if share is None else (1 - share) * nats
        loss = objective(outputs, torch.arange(6)) * 6 / objective.weights.sum()
        assert left == pytest.approx(loss.item(), rel=1e-5)
        assert (learned.between is None) == (kind == "uhc")


def test_a_student_at_chance_within_the_labels_is_named() -> None:
    with pytest.warns(UndertrainedStudentWarning, match="learned 3% of what its targets say .* --target vkd or uhc"):
        warn_if_little("soft", Learned(0.95, 0.03, 0.6, 0.1), 3)
    with pytest.warns(UndertrainedStudentWarning) as given:
        warn_if_little("uhc", Learned(None, -0.2, 0.0, 0.1), 3)
    assert "--target" not in str(given[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_little("soft", Learned(0.95, 0.4, 0.6, 0.1), 3)
        warn_if_little("soft", Learned(0.95, None, 0.6, 0.0), 3)
