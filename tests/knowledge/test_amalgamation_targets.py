"""The targets and losses of amalgamation: exact numbers, invariances, and a Monte-Carlo mean against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from lr_dist.errors import ConfigurationError, NonFiniteScoresError, TeacherError
from lr_dist.knowledge.amalgamation.certainties import certainty, entropy, margin_weights
from lr_dist.knowledge.amalgamation.labels import LabelUnion
from lr_dist.knowledge.amalgamation.targets import (
    divergence,
    hard_targets,
    make_objective,
    soft_targets,
    uhc_loss,
    vkd_targets,
)

DISJOINT = LabelUnion.of([("a", "b"), ("c", "d")])
OVERLAP = LabelUnion.of([("a", "b", "c"), ("c", "d")])
SURE, UNSURE = torch.tensor([[0.9, 0.1]], dtype=torch.float64), torch.tensor([[0.5, 0.5]], dtype=torch.float64)


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_exact_numbers() -> None:
    certainties = torch.stack([certainty(SURE), certainty(UNSURE)], dim=1)
    assert certainties[0].tolist() == pytest.approx([0.531004, 0.0], abs=1e-6)
    assert torch.softmax(certainties / 0.2, dim=1)[0].tolist() == pytest.approx([0.934320, 0.065680], abs=1e-6)
    q = soft_targets([SURE, UNSURE], certainties, DISJOINT)
    assert q[0].tolist() == pytest.approx([0.840888, 0.093432, 0.032840, 0.032840], abs=1e-6)
    uniform = torch.zeros(1, 4, dtype=torch.float64)
    assert divergence(uniform, q).item() == pytest.approx(0.794718, abs=1e-6)
    weight = margin_weights(certainties)
    assert weight.item() == pytest.approx(0.531004 + 1e-6, abs=5e-7)
    assert ((weight - 1e-6) * divergence(uniform, q)).item() == pytest.approx(0.421999, abs=1e-6)
    # The same through the objective that a student is trained with.
    objective = make_objective("soft", [SURE.log(), UNSURE.log()], DISJOINT)
    assert objective(uniform, torch.tensor([0])).item() == pytest.approx(0.421999 + 1e-6 * 0.794718, abs=1e-6)


def test_the_hard_target_is_the_most_certain_teachers() -> None:
    certainties = torch.tensor([[0.2, 0.1], [0.1, 0.2], [0.3, 0.3]], dtype=torch.float64)
    first, second = torch.softmax(logits(3, 3), -1), torch.softmax(logits(3, 2, seed=1), -1)
    q = hard_targets([first, second], certainties, OVERLAP)
    assert torch.equal(q[0], torch.cat([first[0], torch.zeros(1, dtype=torch.float64)]))
    assert torch.equal(q[1], torch.tensor([0.0, 0.0, second[1, 0], second[1, 1]], dtype=torch.float64))
    assert torch.equal(q[2, :3], first[2])  # of equally certain ones the first


def test_a_shared_label_sums_its_mass() -> None:
    first, second = torch.softmax(logits(5, 3), -1), torch.softmax(logits(5, 2, seed=1), -1)
    certainties = torch.rand(5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    w = torch.softmax(certainties / 0.2, dim=1)
    q = soft_targets([first, second], certainties, OVERLAP)
    torch.testing.assert_close(q[:, 2], w[:, 0] * first[:, 2] + w[:, 1] * second[:, 0])
    torch.testing.assert_close(q.sum(1), torch.ones(5, dtype=torch.float64))
    joined = torch.softmax(torch.cat([logits(5, 3), logits(5, 2, seed=1)], -1), -1)
    vkd = vkd_targets([logits(5, 3), logits(5, 2, seed=1)], OVERLAP)
    torch.testing.assert_close(vkd[:, 2], joined[:, 2] + joined[:, 3])
    torch.testing.assert_close(vkd[:, [0, 1, 3]], joined[:, [0, 1, 4]])


def test_labels_are_joined_by_name_and_not_by_number() -> None:
    swapped = LabelUnion.of([("a", "b"), ("b", "a")])
    assert swapped.labels == ("a", "b")
    p = torch.tensor([[0.8, 0.2]], dtype=torch.float64)
    same = torch.tensor([[0.2, 0.8]], dtype=torch.float64)  # the same opinion, in the other order
    q = soft_targets([p, same], torch.zeros(1, 2, dtype=torch.float64), swapped)
    torch.testing.assert_close(q, p)


@pytest.mark.parametrize("union", [DISJOINT, OVERLAP])
@pytest.mark.parametrize("kind", ["soft", "hard", "uhc", "vkd"])
def test_a_constant_added_to_one_teachers_logits_changes_vkd_only(kind: str, union: LabelUnion) -> None:
    both = [logits(6, len(labels), seed=k) for k, labels in enumerate(union.teachers)]
    shifted = [both[0] + 3.0, both[1]]
    outputs, rows = logits(6, len(union), seed=9), torch.arange(6)
    before, after = (make_objective(kind, each, union)(outputs, rows).item() for each in (both, shifted))
    assert (abs(before - after) < 1e-12) == (kind != "vkd")
    assert kind != "vkd" or abs(before - after) > 0.05


def test_uhc_renormalises_the_student_within_each_teachers_labels() -> None:
    both, outputs = [logits(4, 3), logits(4, 2, seed=1)], logits(4, 4, seed=2)
    student = torch.softmax(outputs, -1)
    expected = torch.zeros(4, dtype=torch.float64)
    for teacher, columns in zip(both, ([0, 1, 2], [2, 3]), strict=True):
        p = torch.softmax(teacher, -1)
        own = student[:, columns] / student[:, columns].sum(1, keepdim=True)
        expected += (p * (p / own).log()).sum(1)
    stacked = torch.cat([torch.softmax(each, -1) for each in both], -1)
    torch.testing.assert_close(uhc_loss(outputs, stacked, OVERLAP), expected)
    # Mass between the label sets is free: only within them is anything compared.
    moved = outputs + torch.tensor([5.0, 5.0, 5.0, 0.0], dtype=torch.float64)
    first = torch.softmax(both[0], -1)
    split = uhc_loss(moved, stacked, OVERLAP) - divergence(moved[:, [2, 3]], torch.softmax(both[1], -1))
    torch.testing.assert_close(split, divergence(outputs[:, :3], first))


def test_the_divergence_is_torchs_and_takes_zeros() -> None:
    outputs, q = logits(5, 4), torch.softmax(logits(5, 4, seed=1), -1)
    torch.testing.assert_close(divergence(outputs, q), kl_div(log_softmax(outputs, -1), q, reduction="none").sum(1))
    sure = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    value = divergence(zero, sure.detach())
    assert value.item() == pytest.approx(math.log(4), abs=1e-12)
    value.sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_temperature_divides_logits_and_its_square_scales_the_loss() -> None:
    both, outputs, rows = [logits(3, 2), logits(3, 2, seed=1)], logits(3, 4, seed=2), torch.arange(3)
    warm = make_objective("vkd", both, DISJOINT, temperature=2.0)(outputs, rows)
    cold = make_objective("vkd", [each / 2 for each in both], DISJOINT)(outputs / 2, rows)
    torch.testing.assert_close(warm, 4 * cold)
    # Certainties are those of the softmax itself, whatever the temperature of the targets.
    a, b = (make_objective("soft", both, DISJOINT, temperature=t) for t in (1.0, 5.0))
    torch.testing.assert_close(a.weights, b.weights)
    assert not torch.allclose(a.targets, b.targets)


def test_certainty_of_a_sure_teacher_is_one() -> None:
    sure = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert entropy(sure)[0] == 0
    assert certainty(sure).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert (certainty(sure) >= 0).all()


def test_the_mean_over_passes_converges_to_all_masks_as_one_over_the_root() -> None:
    """A linear teacher whose d inputs are dropped with probability 1/2: the mean over all 2^d masks is known."""
    d, p = 8, 0.5
    weight, x = logits(3, d, seed=3) / 2, logits(1, d, seed=4)[0]
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=d)), dtype=torch.float64)
    exact = torch.softmax((masks * x / (1 - p)) @ weight.T, -1).mean(0)  # every mask has probability 2^-d
    generator = torch.Generator().manual_seed(5)

    def error(passes: int, repeats: int = 400) -> float:
        drawn = (torch.rand(repeats, passes, d, generator=generator, dtype=torch.float64) > p).double()
        means = torch.softmax((drawn * x / (1 - p)) @ weight.T, -1).mean(1)
        return ((means - exact) ** 2).sum(-1).mean().sqrt().item()

    errors = [error(m) for m in (4, 16, 64)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)
    # The mean over masks is not the pass without dropout, whose softmax takes the mean input.
    assert (exact - torch.softmax(weight @ x, -1)).abs().max() > 0.02


@pytest.mark.parametrize(
    ("teachers", "words"),
    [
        ([("a",), ("b", "c")], "one label"),
        ([(), ("b", "c")], "no label"),
        ([("LABEL_0", "LABEL_1"), ("b", "c")], "no names"),
        ([("a", " "), ("b", "c")], "no names"),
        ([("a", "a"), ("b", "c")], "twice"),
        ([("Not duplicate", "b"), ("not_duplicate", "c")], "differ only"),
        ([], "no teacher"),
    ],
)
def test_labels_that_cannot_be_joined_are_refused(teachers: list[tuple[str, ...]], words: str) -> None:
    with pytest.raises(TeacherError, match=words):
        LabelUnion.of(teachers)


def test_wrong_scores_are_refused() -> None:
    good, bad = logits(2, 2), torch.tensor([[0.0, math.nan], [0.0, 1.0]], dtype=torch.float64)
    for kind in ("soft", "vkd"):
        with pytest.raises(NonFiniteScoresError, match="teacher 2"):
            make_objective(kind, [good, bad], DISJOINT)
    with pytest.raises(NonFiniteScoresError):
        certainty(torch.tensor([[1.1, -0.1]]))
    with pytest.raises(TeacherError, match="at least two"):
        certainty(torch.ones(3, 1))
    with pytest.raises(TeacherError, match="at least two"):
        make_objective("soft", [good], LabelUnion.of([("a", "b")]))
    with pytest.raises(TeacherError, match="shapes"):
        make_objective("soft", [good, logits(3, 2)], DISJOINT)
    with pytest.raises(ConfigurationError, match="soft, hard, vkd, uhc"):
        make_objective("best", [good, good], DISJOINT)
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigurationError, match="tau"):
            make_objective("soft", [good, good], DISJOINT, tau=value)
        with pytest.raises(ConfigurationError, match="temperature"):
            make_objective("uhc", [good, good], DISJOINT, temperature=value)


def test_every_public_name_is_what_its_module_defines() -> None:
    from lr_dist.knowledge import amalgamation

    assert dir(amalgamation) == sorted(amalgamation.__all__)
    for name in amalgamation.__all__:
        # A module of the same name would take its place as soon as it is imported.
        assert getattr(amalgamation, name).__module__.startswith("lr_dist.knowledge.amalgamation.")
