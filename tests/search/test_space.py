"""The families against rates computed by hand, for a 3-layer and a 12-layer model."""

from __future__ import annotations

import json
import math
import pickle

import optuna
import pytest
from optuna.distributions import FloatDistribution

from lr_dist import LRDistribution, load_preset
from lr_dist.errors import ConfigurationError
from lr_dist.search.space import FAMILIES, Space
from lr_dist.search.space.space import is_flat

GROUPS = {"embeddings": 3e-7, **{f"g{i}": 10.0**-i for i in range(1, 9)}, "head": 7e-4}


def rates(space: Space, drawn: dict[str, float], layers: int) -> list[float]:
    return list(space.distribution(drawn).rates(layers).values())


def draw(space: Space, seed: int = 0) -> tuple[optuna.Trial, LRDistribution]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    return trial, space.suggest(trial)


def test_grouped_has_the_ten_groups_of_the_paper_on_12_layers():
    space = Space("grouped", low=1e-9, high=1)
    # ceil(12/8 i) = 0, 2, 3, 5, 6, 8, 9, 11, 12
    sizes = [2, 1, 2, 1, 2, 1, 2, 1]
    expected = [3e-7, *(10.0**-i for i, size in enumerate(sizes, start=1) for _ in range(size)), 7e-4]
    assert rates(space, GROUPS, 12) == pytest.approx(expected)


def test_grouped_is_interpolated_where_there_are_fewer_layers_than_groups():
    # Relative depths 0, 1/2, 1 of eight rates: the first, half way between the fourth and fifth, the last.
    assert rates(Space("grouped", low=1e-9, high=1), GROUPS, 3) == pytest.approx([3e-7, 1e-1, 10**-4.5, 1e-8, 7e-4])


def test_knots_are_interpolated_in_log_rate_over_relative_depth():
    space = Space("knots", knots=4)
    drawn = {"embeddings": 1e-6, "k1": 1e-7, "k2": 1e-4, "k3": 1e-5, "k4": 1e-3, "head": 5e-4}
    assert rates(space, drawn, 3) == pytest.approx([1e-6, 1e-7, 10**-4.5, 1e-3, 5e-4])
    twelve = rates(space, drawn, 12)
    # Layer j is at depth j/11, which is 3j/11 steps between knots.
    assert twelve[1 + 1] == pytest.approx(10 ** (-7 * 8 / 11 - 4 * 3 / 11))
    assert twelve[1 + 4] == pytest.approx(10 ** (-4 * 10 / 11 - 5 * 1 / 11))
    assert [twelve[0], twelve[1], twelve[12], twelve[13]] == pytest.approx([1e-6, 1e-7, 1e-3, 5e-4])


def test_one_knot_is_one_rate_for_all_layers():
    drawn = {"embeddings": 1e-6, "k1": 1e-4, "head": 1e-3}
    assert rates(Space("knots", knots=1), drawn, 3) == pytest.approx([1e-6, 1e-4, 1e-4, 1e-4, 1e-3])


@pytest.mark.parametrize(("layers", "lowest"), [(3, 1e-3 / 16), (12, 1e-3 / 2**13)])
def test_decay_halves_from_the_head_downwards(layers, lowest):
    found = rates(Space("decay"), {"lr": 1e-3, "factor": 0.5}, layers)
    assert len(found) == layers + 2
    assert found[-2:] == pytest.approx([5e-4, 1e-3])
    assert found[0] == pytest.approx(lowest)


@pytest.mark.parametrize("layers", [3, 12])
def test_flat_is_one_rate(layers):
    assert rates(Space("flat"), {"lr": 2e-5}, layers) == [2e-5] * (layers + 2)


@pytest.mark.parametrize("knots", [1, 2, 7])
def test_k_says_how_many_rates_are_drawn_over_the_layers(knots):
    assert Space("knots", knots=knots).names == ("embeddings", *(f"k{i + 1}" for i in range(knots)), "head")


GROUPED_NAMES = ("embeddings", "g1", "g2", "g3", "g4", "g5", "g6", "g7", "g8", "head")


@pytest.mark.parametrize(
    ("space", "written", "names"),
    [
        (Space(), '{"family": "knots", "low": 1e-07, "high": 0.001, "fixed": {}, "knots": 4}',
         ("embeddings", "k1", "k2", "k3", "k4", "head")),
        (Space("knots", low=1e-6, knots=2, fixed={"head": 5e-4}),
         '{"family": "knots", "low": 1e-06, "high": 0.001, "fixed": {"head": 0.0005}, "knots": 2}',
         ("embeddings", "k1", "k2", "head")),
        (Space("grouped", high=1e-2, knots=7, fixed={"embeddings": 0}),
         '{"family": "grouped", "low": 1e-07, "high": 0.01, "fixed": {"embeddings": 0}}', GROUPED_NAMES),
        (Space("decay", factor_low=0.5),
         '{"family": "decay", "low": 1e-07, "high": 0.001, "fixed": {}, "factor_low": 0.5, "factor_high": 1.0}',
         ("lr", "factor")),
        (Space("flat", factor_low=0.5), '{"family": "flat", "low": 1e-07, "high": 0.001, "fixed": {}}', ("lr",)),
    ],
    ids=lambda value: value.family if isinstance(value, Space) else "",
)  # fmt: skip
def test_studies_made_before_find_their_space_as_it_was_written(space, written, names):
    """Byte for byte, with the names of its parameters: any other text is another study's."""
    assert json.dumps(space.to_dict()) == written
    assert space.names == names
    assert Space(**json.loads(written)).to_dict() == space.to_dict()
    assert pickle.loads(pickle.dumps(space)) == space


@pytest.mark.parametrize("family", FAMILIES)
def test_a_space_is_found_by_the_names_of_its_parameters(family):
    names = Space(family, knots=6).names
    assert Space.with_names(names[::-1]) == Space(family, knots=6 if family == "knots" else 4)
    assert Space.with_names([*names, "other"]) is None
    assert Space.with_names([f"k{i}" for i in range(300)]) is None
    assert Space.with_names([]) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_optuna_knows_the_declared_bounds_as_log_uniform(family):
    space = Space(family, low=3e-6, high=2e-4, factor_low=0.4, factor_high=0.9)
    trial, _ = draw(space)
    expected = {name: FloatDistribution(3e-6, 2e-4, log=True) for name in space.names}
    if family == "decay":
        expected["factor"] = FloatDistribution(0.4, 0.9, log=True)
    if family == "shape":
        expected |= dict.fromkeys(("embeddings", "slope", "curvature", "head"), FloatDistribution(0.1, 10.0, log=True))
    assert trial.distributions == expected


def test_half_of_the_draws_are_below_the_middle_of_the_logarithms():
    space = Space("flat", low=1e-7, high=1e-3)
    drawn = [draw(space, seed)[0].params["lr"] for seed in range(200)]
    # A uniform draw would be below 1e-5 in one of a hundred.
    assert 80 <= sum(lr < 1e-5 for lr in drawn) <= 120
    assert all(1e-7 <= lr <= 1e-3 for lr in drawn)


def test_a_fixed_group_is_not_drawn_and_a_rate_of_0_freezes_it():
    space = Space("grouped", fixed={"embeddings": 0, "head": 5e-4})
    trial, distribution = draw(space)
    assert set(trial.params) == {f"g{i}" for i in range(1, 9)}
    found = distribution.rates(12)
    assert (found["embeddings"], found["head"]) == (0.0, 5e-4)
    assert found["layers.0"] == trial.params["g1"]


def test_a_change_of_the_callers_mapping_does_not_change_the_space():
    fixed = {"head": 1e-4}
    space = Space("knots", fixed=fixed)
    fixed["head"] = 1.0
    assert space.to_dict()["fixed"] == {"head": 1e-4}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [3, 12])
def test_what_is_drawn_survives_its_text_and_its_dictionary(family, layers):
    _, distribution = draw(Space(family), seed=3)
    assert LRDistribution.from_dict(distribution.to_dict()) == distribution
    again = LRDistribution.parse(str(distribution)).rates(layers)
    assert again == pytest.approx(distribution.rates(layers), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [3, 12])
def test_a_flat_rate_is_in_every_space(family, layers):
    space = Space(family)
    found = space.project(LRDistribution.flat(2e-5), layers)
    assert found is not None
    assert list(found) == list(space.searched)
    assert rates(space, found, layers) == pytest.approx([2e-5] * (layers + 2))


def test_the_published_profile_is_in_the_grouped_space_as_it_is():
    preset = load_preset("kenneweg2022")
    space = Space("grouped", low=1e-9)
    assert space.distribution(space.project(preset, 12)) == preset


def test_a_grouped_profile_with_an_edit_is_projected_with_it():
    edited = LRDistribution.grouped(GROUPS).override("layers.11", 4e-4)
    assert Space("grouped", low=1e-9).project(edited, 12)["g8"] == pytest.approx(4e-4)


def test_layers_of_one_group_are_averaged_in_log_rate():
    layers = [10.0 ** -(2 + j / 3) for j in range(12)]
    found = Space("grouped").project(LRDistribution.from_layers(1e-5, layers, 1e-4), 12)
    assert found["g1"] == pytest.approx(1e-3)  # its mean, 10^-(2 + 1/6), is above the bound
    assert found["g3"] == pytest.approx(10 ** -(2 + 3.5 / 3))
    assert found["g8"] == pytest.approx(10 ** -(2 + 11 / 3))


def test_knots_read_a_profile_at_their_depths():
    layers = [1e-6, 1e-5, 1e-4, 1e-4]
    found = Space("knots", knots=7).project(LRDistribution.from_layers(1e-6, layers, 1e-4), 4)
    assert [found[f"k{i}"] for i in (1, 2, 3, 5, 7)] == pytest.approx([1e-6, 10**-5.5, 1e-5, 1e-4, 1e-4])


def test_decay_holds_geometric_profiles_only():
    space = Space("decay")
    assert space.project(LRDistribution.decay(4e-4, 0.7), 6) == pytest.approx({"lr": 4e-4, "factor": 0.7})
    assert space.project(LRDistribution.linear(1e-5, 1e-4), 6) is None
    assert Space("flat").project(LRDistribution.decay(4e-4, 0.7), 6) is None


def test_rates_outside_are_brought_to_the_bound():
    assert Space("flat", low=5e-5).project(LRDistribution.flat(1e-5), 3) == {"lr": 5e-5}


def test_a_frozen_depth_is_near_only_where_it_is_fixed():
    frozen = LRDistribution.flat(1e-4).freeze("embeddings")
    assert Space("knots").project(frozen, 3) is None
    found = Space("knots", knots=2, fixed={"embeddings": 0}).project(frozen, 3)
    assert found == pytest.approx({"k1": 1e-4, "k2": 1e-4, "head": 1e-4})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "spline"}, "grouped, knots, decay, flat, shape, not 'spline'"),
        ({"family": ["knots"]}, "not \\['knots'\\]"),
        ({"low": 1e-3, "high": 1e-7}, "0 < low < high, not 0.001, 1e-07"),
        ({"low": 0.0}, "0 < low < high, not 0.0"),
        ({"high": math.inf}, "inf"),
        ({"low": math.nan}, "nan"),
        ({"low": "1e-7"}, "'1e-7'"),
        ({"family": "decay", "factor_low": 1.0}, "factor_low and factor_high"),
        ({"knots": 0}, "from 1 to 100, not 0"),
        ({"knots": 2.5}, "not 2.5"),
        ({"knots": True}, "not True"),
        ({"fixed": {"g1": 1e-5}}, "fixed names g1, but the space knots has the parameters embeddings, k1"),
        ({"fixed": {"head": -1e-5}}, "head=-1e-05"),
        ({"fixed": {"head": math.nan}}, "nan"),
        ({"fixed": {"head": "low"}}, "'low'"),
        ({"fixed": [("head", 1.0)]}, "must map parameters"),
        ({"family": "flat", "fixed": {"lr": 1e-5}}, "leave at least one to search"),
        ({"family": "decay", "fixed": {"factor": 0}}, "factor=0"),
    ],
)
def test_nonsense_is_refused_with_what_is_wrong(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        Space(**changes)


def test_a_shape_has_the_level_slope_and_curvature_that_its_numbers_say():
    drawn = {"embeddings": 0.5, "level": 1e-4, "slope": 4.0, "curvature": 3.0, "head": 2.0}
    found = rates(Space("shape"), drawn, 5)
    layers = found[1:-1]
    assert [found[0], found[-1]] == pytest.approx([5e-5, 2e-4])
    assert math.prod(layers) ** (1 / 5) == pytest.approx(1e-4)
    assert layers[-1] / layers[0] == pytest.approx(4)
    assert layers[2] / math.sqrt(layers[0] * layers[-1]) == pytest.approx(3)
    # By hand: x = -1/2, so log rate = log level - 1/4 log 4 + 1/4 log 3.
    assert layers[1] == pytest.approx(1e-4 * 4**-0.25 * 3**0.25)


@pytest.mark.parametrize("layers", [5, 9, 13])
def test_a_shape_is_read_back_and_a_flat_rate_is_one_of_them(layers):
    space = Space("shape")
    drawn = {"embeddings": 0.5, "level": 1e-4, "slope": 4.0, "curvature": 3.0, "head": 2.0}
    assert space.project(space.distribution(drawn), layers) == pytest.approx(drawn)
    flat = space.project(LRDistribution.flat(3e-5), layers)
    assert flat == pytest.approx({"embeddings": 1, "level": 3e-5, "slope": 1, "curvature": 1, "head": 1})
    assert is_flat(space.distribution(flat))
    assert not is_flat(space.distribution({**flat, "slope": 1.01}))


def test_a_shape_with_a_frozen_layer_is_none_but_embeddings_can_be_fixed_at_0():
    assert Space("shape").project(LRDistribution.flat(1e-4).freeze("layers.0"), 5) is None
    space = Space("shape", fixed={"embeddings": 0})
    assert rates(space, space.project(LRDistribution.flat(1e-4), 5), 5) == pytest.approx([0, *[1e-4] * 6])


def test_a_staged_space_scales_all_rates_from_the_second_stage_on():
    space = Space("decay", staged=True, later_low=0.2)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    plan = space.suggest_plan(trial := study.ask())
    assert trial.distributions["later"] == FloatDistribution(0.2, 1.0, log=True)
    first, second = (stage.rates(3) for stage in plan.stages)
    assert list(second.values()) == pytest.approx([rate * trial.params["later"] for rate in first.values()])
    # A distribution is queued with the factor 1, as it is.
    queued = space.project(LRDistribution.decay(1e-4, 0.5), 3)
    assert queued == pytest.approx({"lr": 1e-4, "factor": 0.5, "later": 1})
    assert len(space.plan(queued).stages) == 1
    assert Space(**space.to_dict()) == space
    assert Space.with_names(space.names) == Space("decay", staged=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"ratio": 1.0}, "ratio must be"), ({"staged": 1}, "staged must be"), ({"later_low": 2.0}, "later_low and later")],
)
def test_wrong_settings_of_shape_and_stages_are_refused(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        Space("shape", **wrong)
