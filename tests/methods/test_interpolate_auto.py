"""`alpha=auto`: what is chosen, on which examples, and that the run is otherwise unchanged."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.loggers import CSVLogger

from lr_dist.errors import ConfigurationError, InvalidAlphaError
from lr_dist.methods import Interpolate, StageContext, build_method, layer_alphas
from lr_dist.methods.alpha_search import AlphaScore, choose_alphas
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.observers import TestAfterStages
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.settings import SequenceSettings

WORDS = "model.bert.embeddings.word_embeddings.weight"
GROUPS = ("embeddings", "layers.0", "layers.1", "layers.2")


def peak(at: Mapping[str, float]) -> Any:
    """Scores that are highest, 1, where every group has its coefficient of `at`."""

    def score(alphas: Mapping[str, float]) -> AlphaScore:
        loss = sum((alphas[group] - at[group]) ** 2 for group in at)
        return AlphaScore(1 - loss, 1 - loss)

    return score


def test_one_coefficient_is_the_best_of_the_grid() -> None:
    choice = choose_alphas(peak(dict.fromkeys(GROUPS, 0.62)), GROUPS)
    assert choice.single == 0.6
    assert choice.alphas == dict.fromkeys(GROUPS, 0.6)
    assert (choice.layerwise, choice.evaluations, len(choice.curve)) == (False, 11, 11)
    assert choice.curve[0.6].old == pytest.approx(1 - 4 * 0.02**2)


def test_the_weight_moves_the_choice_between_old_and_new() -> None:
    score = lambda alphas: AlphaScore(1 - alphas["embeddings"], alphas["embeddings"] ** 0.5)  # noqa: E731
    chosen = [choose_alphas(score, GROUPS, weight=weight).single for weight in (0, 0.4, 0.5, 1)]
    # The maximum of w (1 - a) + (1 - w) a^.5 is at ((1 - w) / 2w)^2.
    assert chosen == [1.0, 0.6, 0.3, 0.0]


def test_layer_wise_coefficients_are_found_and_kept_where_they_are_better_on_other_examples() -> None:
    at = dict(zip(GROUPS, (0.2, 0.5, 0.8, 1.0), strict=True))
    choice = choose_alphas(peak(at), GROUPS, check=peak(at))
    assert choice.layerwise
    assert all(abs(choice.alphas[group] - at[group]) <= 0.15 for group in GROUPS)
    assert choice.evaluations <= 11 + 36
    single, layerwise = choice.checked
    assert layerwise.old > single.old > 0


def test_layer_wise_coefficients_that_are_not_better_there_are_dropped() -> None:
    at = dict(zip(GROUPS, (0.2, 0.5, 0.8, 1.0), strict=True))
    choice = choose_alphas(peak(at), GROUPS, check=peak(dict.fromkeys(GROUPS, 0.6)))
    assert not choice.layerwise
    assert set(choice.alphas.values()) == {choice.single}
    assert choice.checked[1].old < choice.checked[0].old


@pytest.mark.parametrize("evaluations", [0, 1, 5])
def test_no_more_is_scored_than_was_allowed(evaluations: int) -> None:
    seen = []

    def score(alphas: Mapping[str, float]) -> AlphaScore:
        seen.append(dict(alphas))
        return peak(dict(zip(GROUPS, (0.2, 0.5, 0.8, 1.0), strict=True)))(alphas)

    choice = choose_alphas(score, GROUPS, check=peak(dict.fromkeys(GROUPS, 0.5)), evaluations=evaluations)
    assert len(seen) == choice.evaluations == 11 + evaluations
    assert all(0 <= alpha <= 1 for alphas in seen for alpha in alphas.values())


def test_many_layers_are_chosen_at_fewer_depths_with_straight_lines_between() -> None:
    groups = [f"layers.{k}" for k in range(29)]
    at = {group: index / 28 for index, group in enumerate(groups)}
    choice = choose_alphas(peak(at), groups, check=peak(at), evaluations=100)
    alphas = list(choice.alphas.values())
    assert choice.layerwise
    # 29 groups, 8 knots: one every 4.
    for knot in range(7):
        low, high = alphas[4 * knot], alphas[4 * knot + 4]
        assert alphas[4 * knot + 1] == pytest.approx(low + (high - low) / 4, abs=1e-5)


# In a Trainer --------------------------------------------------------------------------------------------


def adamw(module: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def near(start: torch.Tensor, end: torch.Tensor, at: float) -> Any:
    """A score that is highest where the word embeddings are at this share of the way."""

    def score(module: L.LightningModule) -> float:
        torch.rand(1)  # leaves no trace
        assert not module.training
        goal = start + at * (end - start)
        return -float((module.get_parameter(WORDS) - goal).norm() / (end - start).norm())

    return score


def ends() -> tuple[tiny.Classifier, torch.Tensor, torch.Tensor]:
    module = tiny.Classifier(adamw)
    plain = tiny.Classifier(adamw)
    tiny.fit(plain)
    return module, tiny.weights(module)[WORDS], tiny.weights(plain)[WORDS]


def test_in_a_users_trainer_the_best_weights_are_left_and_logged(tmp_path) -> None:
    module, start, end = ends()
    method = Interpolate("auto", held_out={"old": near(start, end, 0.4), "new": near(start, end, 0.4)})
    tiny.fit(module, method, logger=CSVLogger(tmp_path))
    assert method.choice.single == 0.4
    assert not method.choice.layerwise
    torch.testing.assert_close(tiny.weights(module)[WORDS], torch.lerp(start, end, 0.4))
    assert module.training
    logged = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "interpolate/alpha/embeddings" in logged
    assert method.choice.to_dict()["curve"][4] == {
        "alpha": 0.4,
        "old": pytest.approx(0, abs=1e-6),
        "new": pytest.approx(0, abs=1e-6),
    }


def test_pairs_of_functions_choose_by_depth_and_check_on_the_other() -> None:
    module, start, end = ends()
    pair = near(start, end, 0.15), near(start, end, 0.15)
    method = Interpolate("auto", held_out={"old": pair, "new": pair})
    tiny.fit(module, method)
    # Only the embeddings count here, so the best single coefficient is .1 or .2, and a step of .15 does not help.
    alphas = method.choice.alphas
    torch.testing.assert_close(tiny.weights(module)[WORDS], torch.lerp(start, end, alphas["embeddings"]))
    assert abs(alphas["embeddings"] - 0.15) < 0.06
    assert method.choice.checked[0] is not None


@pytest.mark.parametrize(
    ("held_out", "says"),
    [(None, "was given none"), ({"new": lambda module: 1.0}, "was given new")],
)
def test_without_scores_of_old_and_new_it_is_refused_before_the_first_step(held_out: Any, says: str) -> None:
    module = tiny.Classifier(adamw)
    before = tiny.weights(module)
    with pytest.raises(ConfigurationError, match=says):
        tiny.fit(module, Interpolate("auto", held_out=held_out))
    assert torch.equal(tiny.weights(module)[WORDS], before[WORDS])


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "high", None])
def test_a_score_that_is_no_number_is_named(score: Any) -> None:
    with pytest.raises(ConfigurationError, match="score of old"):
        tiny.fit(
            tiny.Classifier(adamw),
            Interpolate("auto", held_out={"old": lambda module: score, "new": lambda module: 1.0}),
        )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"alpha": "auto", "weight": 2}, InvalidAlphaError),
        ({"alpha": "auto", "evaluations": -1}, ConfigurationError),
        ({"alpha": "auto", "evaluations": 1.5}, ConfigurationError),
        ({"alpha": 0.5, "held_out": {"old": len, "new": len}}, ConfigurationError),
    ],
)
def test_invalid_settings_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Interpolate(**arguments)


def test_the_text_form_has_the_settings_that_matter() -> None:
    assert str(build_method("interpolate:alpha=auto,evaluations=5")) == (
        "interpolate:alpha=auto,head=learned,weight=0.5,evaluations=5"
    )
    assert build_method("interpolate:alpha=auto").needs.held_out
    assert not build_method("interpolate:alpha=0.5").needs.held_out


# In a sequence -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tiny_model: str) -> Bench:
    settings = SequenceSettings(epochs=1, batch_size=16, lr=2e-3)
    return Bench.prepare(tiny_model, ["demo-sentiment", "demo-acceptability"], settings, limit=64, dev_size=60)


def test_a_sequence_chooses_on_halves_of_dev_and_is_otherwise_the_same(bench: Bench) -> None:
    parts: list[tuple[str, int | None]] = []

    class Spied(Interpolate):
        def enter(self, context: StageContext) -> None:
            def noted(task: str, score: Any, module: Any, *, part: int | None = None) -> float:
                parts.append((task, part))
                return score(module, part=part)

            held_out = {task: functools.partial(noted, task, each) for task, each in context.held_out.items()}
            super().enter(StageContext(context.index, context.task, context.head, context.seed, held_out))

    method = Spied("auto", evaluations=6)

    class WithSpy(Arm):
        def build_methods(self) -> list[Any]:
            return [method]

    arm = Arm.parse("flat:lr=2e-3")
    learned = run_sequence(bench, arm, 0, TestAfterStages())
    outcome = run_sequence(bench, WithSpy(arm.label, arm.plan), 0, TestAfterStages())
    assert outcome.matrix[:2] == learned.matrix[:2]  # before, and after the first stage
    choice = method.choice
    assert choice is not None
    scored = [task for task, part in parts if part == 0]
    assert len(scored) >= 22
    assert scored[:2] == ["demo-sentiment", "demo-acceptability"]
    assert {part for _, part in parts} == {0, 1}
    repeated = run_sequence(
        bench, Arm.parse("flat:lr=2e-3 + interpolate:alpha=auto,evaluations=6"), 0, TestAfterStages()
    )
    assert repeated.matrix == outcome.matrix
    assert outcome.methods == [{}, {"interpolate": choice.to_dict()}] == repeated.methods
    assert learned.methods == [{}, {}]


def test_the_halves_of_dev_are_other_rows_and_together_all(bench: Bench) -> None:
    dev = bench.tokens[0].dev
    halves = [dev.rows_at(range(part, len(dev), 2)) for part in (0, 1)]
    rows = [half[index] for index in range(30) for half in halves]
    assert len(dev) == 60
    for index, row in enumerate(rows):
        assert row["input_ids"].tolist() == dev[index]["input_ids"].tolist()
        assert row["label"] == dev[index]["label"]
    assert [len(half) for half in halves] == [30, 30]
    assert (halves[0].lengths == dev.lengths[::2]).all()


def test_groups_of_a_choice_become_alphas_by_name() -> None:
    alphas = layer_alphas(tiny.bert(), {"embeddings": 0.1, "layers.1": 0.5})
    assert alphas["bert.embeddings.word_embeddings.weight"] == 0.1
    assert alphas["bert.encoder.layer.1.output.dense.weight"] == 0.5
    assert alphas["bert.encoder.layer.0.output.dense.weight"] == alphas["classifier.weight"] == 1
