"""What scores are worth, against values computed by hand."""

from __future__ import annotations

import math

import optuna
import pytest

from lr_dist.errors import ConfigurationError
from lr_dist.search.trials.config import Goal, SearchConfig
from lr_dist.search.trials.objective import Reference, p_o, p_s, partial, value, violation
from lr_dist.search.trials.summary import best_trial

# As seen with mrpc: two thirds are of one class, and hardly anything is learned; and a task that is learned well.
LEARNED = Reference(baseline=(0.5, 0.68), alone=(0.9, 0.78), flat_p_s=0.75)


def test_relative_is_0_for_the_majority_class_and_1_for_a_task_alone():
    # (0.8 - 0.5) / 0.4 + (0.73 - 0.68) / 0.1
    assert value(Goal("relative"), LEARNED, [0.8, 0.73]) == pytest.approx((0.75 + 0.5,))
    assert value(Goal("relative"), LEARNED, [0.5, 0.68]) == pytest.approx((0.0,))
    assert value(Goal("relative"), LEARNED, [0.9, 0.78]) == pytest.approx((2.0,))


def test_below_the_majority_class_counts_against():
    assert value(Goal("relative"), LEARNED, [0.9, 0.63]) == pytest.approx((1.0 - 0.5,))


def test_a_task_that_no_flat_rate_learns_counts_as_it_is():
    nothing = Reference(baseline=(0.5, 0.68), alone=(0.9, 0.69))
    assert value(Goal("relative"), nothing, [0.9, 0.69]) == pytest.approx((1.0 + 0.01,))
    worse = Reference(baseline=(0.5, 0.68), alone=(0.9, 0.66))
    assert value(Goal("relative"), worse, [0.9, 0.73]) == pytest.approx((1.0 + 0.05,))


def test_the_sum_rewards_not_learning_and_relative_does_not():
    learns_nothing, learns_both = [0.838, 0.683], [0.77, 0.74]
    assert value(Goal("sum"), LEARNED, learns_nothing) > value(Goal("sum"), LEARNED, learns_both)
    assert value(Goal("relative"), LEARNED, learns_nothing) < value(Goal("relative"), LEARNED, learns_both)


def test_the_sum_is_the_papers():
    assert value(Goal("sum"), LEARNED, [0.8, 0.7]) == pytest.approx((1.5,))
    three = Reference(baseline=(0.5, 0.5, 0.5))
    # p_o is the mean over the earlier tasks.
    assert value(Goal("sum"), three, [0.6, 0.8, 0.9]) == pytest.approx((0.7 + 0.9,))


def test_constrained_maximises_p_o_under_the_flat_rates_p_s():
    goal = Goal("constrained", tolerance=0.01)
    assert value(goal, LEARNED, [0.8, 0.70]) == (0.8,)
    assert violation(goal, LEARNED, [0.8, 0.70]) == pytest.approx(0.75 - 0.01 - 0.70)
    assert violation(goal, LEARNED, [0.8, 0.75]) == pytest.approx(-0.01)
    assert all(violation(Goal(mode), LEARNED, [0.8, 0.7]) is None for mode in ("relative", "sum", "pareto"))


def test_pareto_keeps_both():
    assert value(Goal("pareto"), LEARNED, [0.8, 0.7]) == (0.8, 0.7)


@pytest.mark.parametrize("mode", ["relative", "sum", "constrained"])
def test_the_partial_value_of_all_tasks_is_the_value(mode):
    assert partial(Goal(mode), LEARNED, [0.8, 0.7]) == value(Goal(mode), LEARNED, [0.8, 0.7])[0]


@pytest.mark.parametrize(("mode", "expected"), [("relative", 0.75), ("sum", 0.8), ("constrained", 0.8)])
def test_after_the_first_task_only_its_score_counts(mode, expected):
    assert partial(Goal(mode), LEARNED, [0.8]) == pytest.approx(expected)


@pytest.mark.parametrize("mode", ["relative", "sum", "constrained"])
def test_equally_far_the_better_learner_has_the_higher_partial_value(mode):
    reference = Reference(baseline=(0.5, 0.5, 0.5), alone=(0.9, 0.9, 0.9), flat_p_s=0.8)
    for begun in (1, 2, 3):
        better, worse = [0.8] * begun, [0.6] * begun
        assert partial(Goal(mode), reference, better) > partial(Goal(mode), reference, worse)


def test_p_o_and_p_s():
    assert p_o([0.2, 0.4, 0.9]) == pytest.approx(0.3)
    assert p_s([0.2, 0.4, 0.9]) == 0.9


def test_a_trial_that_breaks_a_constraint_is_not_the_best_for_optuna_and_for_us():
    study = optuna.create_study(direction="maximize")
    for score, final in ((0.9, [0.9, 0.6]), (0.7, [0.7, 0.76]), (0.8, [0.8, 0.74])):
        trial = study.ask()
        trial.set_user_attr("slot", trial.number)
        trial.set_constraint("p_s", violation(Goal("constrained", tolerance=0.01), LEARNED, final))
        study.tell(trial, score)
    assert study.best_trial.number == 2
    assert best_trial(study, study.trials).number == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "product"}, "relative, sum, constrained, pareto, retention, not 'product'"),
        ({"tolerance": -0.01}, "from 0 to 1, not -0.01"),
        ({"tolerance": math.nan}, "nan"),
        ({"tolerance": "much"}, "'much'"),
        ({"reference_rates": ()}, "one or more"),
        ({"reference_rates": (1e-5, 0.0)}, "learning rates from 1e-09 to 1"),
        ({"reference_rates": (1e-5, math.nan)}, "nan"),
        ({"reference_rates": (1e-5, 1e-5)}, "duplicates"),
        ({"reference_rates": ("1e-5",)}, "'1e-5'"),
    ],
)
def test_a_goal_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Goal(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequences": ()}, "Nothing to learn"),
        ({"sequences": (("sst2",),), "goal": Goal("pareto")}, "give two tasks or a shift"),
        (
            {"sequences": (({"name": "my", "path": "/data/a@b"},),), "goal": Goal("constrained")},
            "give two tasks or a shift",
        ),
        ({"trials": 0}, "whole number from 1, not 0"),
        ({"trials": 1.5}, "not 1.5"),
        ({"seeds": ()}, "one or more"),
        ({"seeds": (0, -1)}, "from 0"),
        ({"seeds": (0, 0)}, "duplicates"),
        ({"seeds": ("0",)}, "'0'"),
        ({"sampler_seed": -1}, "sampler_seed must be"),
        ({"sampler_seed": 2**32}, "sampler_seed must be"),
    ],
)
def test_a_search_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        SearchConfig(**{"model": "minilm", "sequences": (("sst2", "qqp"),), **changes})
