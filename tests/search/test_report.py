"""The page of a study: what it says is what its trials say, whatever state the study is in."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from studies import BASELINE, complete_trial, config_of, empty_study, ended, study_of

from lr_dist.cli import main
from lr_dist.distribution import LRDistribution
from lr_dist.errors import InvalidTrialsError, LayerCountError, UnwritableFileError
from lr_dist.search.combining.preset import combine_sources
from lr_dist.search.combining.sources import from_study
from lr_dist.search.engine.slots import ERROR, REASON
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.page.figures import MOST_LINES, MOST_POINTS
from lr_dist.search.page.findings import Findings, front_of
from lr_dist.search.page.importance import LEAST_TRIALS, importances
from lr_dist.search.page.report import DEFAULT_LAYERS, render_report, write_report
from lr_dist.search.space import FAMILIES, Space
from lr_dist.search.trials.config import Goal, SearchConfig
from lr_dist.search.trials.study import IDENTITY
from lr_dist.sequence.settings import SequenceSettings

URL = "sqlite:////somewhere/study.db"


class Page(HTMLParser):
    """What a page shows: its text outside of figures, its tables, its figures' titles, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.boxes: list[str] = []
        self._svg = 0
        self._words: list[str] = []
        self.feed(text)
        self.text = " ".join("".join(self._words).split())
        self.boxes = [box.strip() for box in self.boxes]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._space(tag)
        self._svg += tag == "svg"
        if tag == "pre":
            self.boxes.append("")
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:")):
                self.fetched.append(value)

    def handle_endtag(self, tag: str) -> None:
        self._svg -= tag == "svg"
        self._space(tag)

    def _space(self, tag: str) -> None:
        """Words in different cells and lines are apart; the pieces of a name are not."""
        if tag not in ("span", "wbr"):
            self._words.append(" ")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] in (["style"], ["script"]):
            return
        if not self._svg:
            self._words.append(data)
        if self.tags[-1:] == ["pre"] and self.boxes:
            self.boxes[-1] += data


def page_of(study: optuna.Study, **options: Any) -> Page:
    return Page(render_report(study, storage=URL, **options))


def with_trials(config: SearchConfig, *trials: tuple[dict[str, float], Sequence[Sequence[float]]]) -> optuna.Study:
    study = empty_study(config)
    study.add_trials([complete_trial(config, slot, *trial) for slot, trial in enumerate(trials)])
    return study


KNOT = Space("knots", knots=1)


def rates(embeddings: float, k1: float, head: float) -> dict[str, float]:
    return {"embeddings": embeddings, "k1": k1, "head": head}


# What a search leaves behind ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, optuna.Study]:
    """(storage, study) of a search that really ran: three flat rates, then one that the sampler drew."""
    from lr_dist.search.engine.worker import drain
    from lr_dist.search.trials.references import run_references
    from lr_dist.search.trials.session import identity, load_benches
    from lr_dist.search.trials.study import open_study
    from lr_dist.search.trials.trial import SequenceObjective

    config = SearchConfig(
        tiny_model,
        (("demo-sentiment", "demo-entailment"),),
        Space("knots", knots=2),
        Goal("relative", reference_rates=(1e-3,)),
        trials=4,
        seeds=(0, 1),
        limit=32,
        settings=SequenceSettings(epochs=1, batch_size=16, evaluate_on="validation"),
    )
    url = f"sqlite:///{tmp_path_factory.mktemp('searched')}/study.db"
    storage = open_storage(url)
    benches = load_benches(config)
    study = open_study(storage, "searched", config, identity(config, benches))
    references = run_references(storage, config, benches)
    assert references is not None
    slots = [
        {"params": dict.fromkeys(config.space.searched, lr), "attrs": {"label": f"flat {lr:g}"}}
        for lr in (1e-4, 1e-3, 1e-5)
    ]
    drain(study, SequenceObjective(config, benches, references), [*slots, {"params": {}, "attrs": {}}])
    return url, study


def test_the_command_writes_a_page_of_a_search_that_ran(
    searched: tuple[str, optuna.Study], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, study = searched
    file = tmp_path / "new" / "page.html"
    assert main(["search", "report", "searched", "--storage", url, "--output-file", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    page = Page(file.read_text(encoding="utf-8"))
    best = study.best_trial
    assert f"best trial {best.number}" in page.text
    assert f"value {best.value:.4f} ± {best.user_attrs['value_sd'][0]:.4f}" in page.text
    written = LRDistribution.parse(page.boxes[0]).rates(12)
    assert written == pytest.approx(LRDistribution.from_dict(best.user_attrs["distribution"]).rates(12))
    assert "demo-sentiment>demo-entailment" in page.text
    # The sampler's own trial may be pruned.
    pruned = sum(trial.state == TrialState.PRUNED for trial in study.trials)
    assert f"4: {4 - pruned} complete, {pruned} pruned, 0 failed" in page.text
    # Drawn for the layers of the model that was searched.
    assert "For a model of 3 layers" in page.text
    assert f"torch {best.user_attrs['environment']['versions']['torch']}" in page.text
    # The same study by the other spelling.
    assert main(["search", "report", "--study", "searched", "--storage", url, "--output-file", str(file)]) == 0


def test_the_studies_of_these_tests_have_the_attributes_that_a_search_writes(
    searched: tuple[str, optuna.Study],
) -> None:
    real = searched[1].get_trials()[0].user_attrs
    config = config_of(space=Space("knots", knots=2), seeds=(0, 1))
    params = dict.fromkeys(config.space.searched, 1e-4)
    made = complete_trial(config, 0, params, [[0.8, 0.7]], label="flat 0.0001").user_attrs
    assert set(made) == set(real)
    for key in ("environment",):
        assert set(made[key]) == set(real[key])
    for key in ("sequences", "runs"):
        assert [set(entry) for entry in made[key]] == [set(entry) for entry in real[key]]
    assert len(made["value_sd"]) == len(real["value_sd"])
    assert len(made["values_by_seed"]) == len(real["values_by_seed"])


# Numbers --------------------------------------------------------------------------------------------------


def test_the_mean_weighs_the_second_best_trial_1_8_times_less() -> None:
    config = config_of("sum", space=KNOT)
    study = with_trials(
        config,
        (rates(1e-6, 1e-5, 1e-4), [[0.7, 0.7]]),
        (rates(1e-5, 1e-5, 1e-6), [[0.8, 0.8]]),
    )
    # log10: (-5 - 6/1.8) / (1 + 1/1.8) = -5.357..., and (-6 - 4/1.8) / (1 + 1/1.8) = -5.285...
    found = Findings.of(study)
    assert found.mean == {"embeddings": 4.39397e-06, "k1": 1e-05, "head": 5.17947e-06}
    # Standard deviation of log10 (-6, -5) and (-4, -6): 1/sqrt(2) and sqrt(2).
    assert found.spread == pytest.approx({"embeddings": 10**0.5**0.5, "k1": 1.0, "head": 10**2**0.5})
    page = page_of(study)
    assert "embeddings 1e-5 4.39e-6 x/ 5.09" in page.text
    assert "head 1e-6 5.18e-6 x/ 25.95" in page.text
    assert "from_layers:embeddings=4.39397e-6,layers=1e-5,head=5.17947e-6" in page.boxes


@pytest.mark.parametrize("mode", ["relative", "constrained"])
def test_the_mean_is_the_one_that_combine_writes(mode: str) -> None:
    study = study_of(config_of(mode), 25)
    combined = combine_sources([from_study(study)], "any", base=1.8, command="")
    assert str(combined.preset.distribution) in page_of(study).boxes


def test_values_spread_scores_and_distances_stand_in_the_table() -> None:
    config = config_of("sum", space=KNOT, seeds=(0, 1))
    page = page_of(with_trials(config, (rates(1.23456e-6, 1e-5, 1e-4), [[0.8, 0.72]])))
    # The second seed is 0.01 better in both: means .805 and .725, standard deviations 0.01 / sqrt(2) and twice that.
    row = "0 1.5300 ± 0.0141 .805 ± .007 .725 ± .007 sst2 +.305, qqp +.225 21.0"
    assert row in page.text
    assert "from_layers:embeddings=1.23e-6,layers=1e-5,head=1e-4" in page.text


def test_the_best_trials_are_ranked_and_limited_to_twenty() -> None:
    study = study_of(config_of(), 30)
    page = page_of(study)
    ranked = sorted(study.get_trials(), key=lambda t: -t.value)
    values = re.findall(r"(\d+)(?: flat \S+)? (-?\d\.\d{4}) \.\d{3} ", page.text)
    assert [(int(number), value) for number, value in values] == [(t.number, f"{t.value:.4f}") for t in ranked[:20]]
    assert "20 of 30 complete trials" in page.text


def test_the_front_holds_what_no_other_trial_beats() -> None:
    config = config_of("sum", space=KNOT)
    # (p_o, p_s); 1 is beaten by 2, and 4 by 0.
    scores = [(0.9, 0.6), (0.7, 0.7), (0.8, 0.75), (0.6, 0.8), (0.85, 0.6)]
    text = render_report(
        with_trials(config, *[(rates(1e-5, 1e-5, 1e-5), [list(pair)]) for pair in scores]), storage=URL
    )
    assert "<desc>On the front: trials 0, 2, 3.</desc>" in text


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_that_of_the_definition(points: list[tuple[int, int]]) -> None:
    beaten = {i for i, (x, y) in enumerate(points) for a, b in points if a >= x and b >= y and (a, b) != (x, y)}
    front = front_of(points)
    assert set(front) == set(range(len(points))) - beaten
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_with_two_objectives_the_front_is_the_result() -> None:
    config = config_of("pareto", space=KNOT)
    scores = [(0.9, 0.6), (0.7, 0.7), (0.8, 0.75), (0.6, 0.8)]
    heads = (1e-4, 1e-3, 1e-5, 1e-6)
    study = with_trials(config, *[(rates(1e-5, 1e-5, head), [list(s)]) for head, s in zip(heads, scores, strict=True)])
    assert [trial.number for trial in Findings.of(study).front] == [3, 2, 0]
    page = page_of(study)
    assert "Pareto front of 3 trials" in page.text
    assert "3 of 3 on the front" in page.text
    assert "best trial" not in page.text
    # Without a rank the mean is geometric: 10^-5 is that of 1e-4, 1e-5 and 1e-6.
    assert "from_layers:embeddings=1e-5,layers=1e-5,head=1e-5" in page.boxes
    assert [t.number for t in study.best_trials] == [0, 2, 3]


def test_a_parameter_that_decides_is_the_most_important() -> None:
    config = config_of("sum", space=KNOT)
    some = [10 ** (-7 + 4 * ((i * 0.618) % 1)) for i in range(40)]
    other = [10 ** (-7 + 4 * ((i * 0.414) % 1)) for i in range(40)]
    study = with_trials(
        config,
        *[(rates(b, b, a), [[0.5 + 0.05 * (math.log10(a) + 7)] * 2]) for a, b in zip(some, other, strict=True)],
    )
    found = importances(study.get_trials(), config.space.searched)
    assert list(found.values) == ["embeddings", "k1", "head"]
    assert found.values["head"] > 0.8
    assert sum(found.values.values()) == pytest.approx(1)


def test_trials_that_break_the_constraint_do_not_make_a_parameter_important() -> None:
    config = config_of("constrained", space=KNOT)
    # p_o rises with k1 where p_s is too low, and with the head where it is kept (.89 and more).
    trials = []
    for i in range(40):
        a, b = (10 ** (-7 + 4 * ((i * step) % 1)) for step in (0.618, 0.414))
        trials.append((rates(1e-5, a, b), [[0.5 + 0.05 * (math.log10(b) + 7), 0.9]]))
        trials.append((rates(1e-5, b, a), [[0.8 + 0.04 * (math.log10(b) + 7), 0.5]]))
    found = importances(with_trials(config, *trials).get_trials(), config.space.searched)
    assert found.values["head"] > 2 * found.values["k1"]


@pytest.mark.parametrize(
    ("config", "trials", "says"),
    [
        (config_of(), LEAST_TRIALS - 1, f"at least {LEAST_TRIALS} complete trials; there are {LEAST_TRIALS - 1}"),
        (config_of(family="flat"), 30, "Only one parameter"),
    ],
)
def test_importances_that_cannot_be_told_are_explained(config: SearchConfig, trials: int, says: str) -> None:
    assert says in page_of(study_of(config, trials)).text


# Warnings -------------------------------------------------------------------------------------------------


def test_a_best_trial_that_learned_nothing_is_a_warning_at_the_top() -> None:
    config = config_of("sum", space=KNOT)
    flat = rates(1e-5, 1e-5, 1e-5)
    page = page_of(with_trials(config, (flat, [[0.95, BASELINE + 0.01]]), (flat, [[0.7, 0.7]])))
    assert "WARNING: the best trial did not learn." in page.text.partition("Summary")[0]
    assert "after the whole sequence: sst2>qqp: qqp" in page.text
    assert "sst2>qqp: sst2 in 0 of 2 complete trials sst2>qqp: qqp in 1 of 2 complete trials" in page.text
    good = page_of(with_trials(config, (flat, [[0.9, BASELINE + 0.01]]), (flat, [[0.8, 0.8]])))
    assert "WARNING" not in good.text


def test_a_front_with_trials_that_learned_nothing_is_a_warning() -> None:
    config = config_of("pareto", space=KNOT)
    flat = rates(1e-5, 1e-5, 1e-5)
    page = page_of(with_trials(config, (flat, [[0.95, BASELINE]]), (flat, [[0.7, 0.7]])))
    assert "1 of 2 trials on the front did not learn a task" in page.text


def test_a_study_in_which_nothing_keeps_the_constraint_has_no_best_trial() -> None:
    config = config_of("constrained", space=KNOT)
    page = page_of(with_trials(config, (rates(1e-5, 1e-5, 1e-5), [[0.9, 0.6]])))
    assert (
        "No trial satisfies the constraints: p_s too far below that of the tuned flat rate in 1 of 1 complete trials. "
        "There is no best trial"
    ) in page.text
    assert "p_o; constrained: p_s at most 0.01 below that of the tuned flat rate." in page.text
    assert "best trial" not in page.text.replace("There is no best trial", "")


@pytest.mark.parametrize("mode", ["sum", "constrained"])
def test_trials_that_lose_too_much_of_the_pre_training_are_named_as_such(mode: str) -> None:
    config = config_of(mode, space=KNOT, most_lost=0.25)
    study = empty_study(config)
    identity = study.user_attrs[IDENTITY]
    study.set_user_attr(IDENTITY, {**identity, "retention": {"most_lost": config.most_lost, "text": {}}})
    # p_s is .8 and above its bound; the second trial keeps the pre-training.
    for slot, lost in enumerate((0.3, 0.2, 0.9)):
        study.add_trial(complete_trial(config, slot, rates(1e-5, 1e-5, 10.0 ** -(slot + 3)), [[0.9, 0.8]], lost))
        if slot == 0:
            page = page_of(study)
            assert "No trial satisfies the constraints: too much of the pre-training lost in 1 of 1" in page.text
            assert "flat rate in 1 of 1" not in page.text
    page = page_of(study)
    assert "constrained: " in page.text
    assert "at most 0.25 nats a token of the pre-training lost." in page.text
    assert "too much of the pre-training lost in 2 of 3 complete trials" in page.text
    assert ("below that of the tuned flat rate in 0 of 3" in page.text) == (mode == "constrained")
    assert "No trial satisfies" not in page.text
    assert "1 of 1 complete trials that satisfy the constraints" in page.text


def test_trials_under_other_versions_are_a_warning_that_counts_them() -> None:
    config = config_of(space=KNOT)
    study = study_of(config, 3)
    assert "All trials ran with the same versions" in page_of(study).text
    late = complete_trial(config, 3, rates(1e-5, 1e-5, 1e-5), [[0.7, 0.7]])
    environment = late.user_attrs["environment"]
    late.user_attrs["environment"] = {**environment, "versions": {**environment["versions"], "torch": "2.12.0"}}
    study.add_trial(late)
    text = page_of(study).text
    assert "in environments with different values of: torch. " in text
    assert "2.13.0+cpu (3 trials); 2.12.0 (1 trials)" in text


# Every kind of study --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["relative", "sum", "constrained", "pareto"])
def test_every_mode_and_space_has_a_page_that_fetches_nothing(mode: str, family: str) -> None:
    config = config_of(mode, family, sequences=(("sst2", "qqp"), ("qqp", "sst2", "mnli")))
    text = render_report(study_of(config, 16, pruned=2, failed=1), storage=URL)
    page = Page(text)
    assert page.fetched == []
    # History, two sequences twice, the rates (for each objective), importances where there are several, depth.
    expected = 1 + 2 * 2 + (2 if mode == "pareto" else 1) + (family != "flat") + 1
    assert page.tags.count("svg") == expected
    assert len(re.findall(r'<svg role="img"[^>]*><title>[^<]+</title>', text)) == expected
    assert not re.search(r"\bnan\b|\binf\b|None|Undefined", page.text)
    assert "sst2>qqp" in page.text
    assert "qqp>sst2>mnli" in page.text
    assert "The loss of sst2 became NaN" in page.text


def test_what_is_lost_of_the_pre_training_is_drawn_against_the_score() -> None:
    sequences = (("sst2", "qqp"), ("qqp", "sst2", "mnli"))
    study = study_of(config_of("retention", sequences=sequences, retention="text.txt"), 16)
    page = Page(render_report(study, storage=URL))
    # History, two sequences twice, what is lost, the rates for each objective, importances, depth.
    assert page.tags.count("svg") == 1 + 2 * 2 + 1 + 2 + 1 + 1
    assert "two objectives, minus the nats a token that are lost of the pre-training, and the sum" in page.text
    assert "on the front, by ascending score" in page.text
    assert "score, minus nats lost" in page.text
    assert not re.search(r"\bnan\b|None|Undefined", page.text)


def test_a_study_without_a_trial_has_a_page() -> None:
    page = page_of(empty_study(config_of()))
    assert "No complete trial. There is nothing to show yet." in page.text
    assert "svg" not in page.tags


def test_a_study_of_failed_trials_only_shows_their_reasons() -> None:
    config = config_of()
    study = study_of(config, 0, failed=2)
    lost = ended(config, 0, dict.fromkeys(config.space.searched, 1e-3), TrialState.FAIL, **{ERROR: "OSError: no space"})
    study.add_trial(lost)
    page = page_of(study)
    assert "No complete trial. All finished trials failed or were pruned" in page.text
    assert "0 complete, 0 pruned, 2 failed" in page.text
    assert "1 attempts were queued again" in page.text
    assert page.text.count("The loss of sst2 became NaN") == 2
    assert "queued again OSError: no space" in page.text


def test_a_single_complete_trial_has_no_spread() -> None:
    page = page_of(study_of(config_of(), 1))
    assert "embeddings 1e-5 1e-5 -" in page.text


def test_fixed_parameters_are_named_and_frozen_ones_leave_a_gap() -> None:
    config = config_of(space=replace(Space("knots"), fixed={"embeddings": 0.0}))
    page = page_of(study_of(config, 5))
    assert "embeddings fixed at 0" in page.text
    assert any(box.startswith("from_layers:embeddings=0,layers=") for box in page.boxes)


def test_an_unfinished_study_says_so() -> None:
    config = config_of()
    study = study_of(config, 2)
    study.enqueue_trial({}, user_attrs={"slot": 2})
    assert "Not complete: 0 running, 1 waiting" in page_of(study).text


def test_a_large_study_draws_a_sample_and_says_so() -> None:
    config = config_of("sum", space=KNOT)
    best = complete_trial(config, 0, rates(2e-5, 1e-5, 1e-5), [[0.99, 0.99]])
    study = empty_study(config)
    study.add_trial(best)
    for slot in range(1, MOST_POINTS + 1000):
        final = [0.5 + 0.0001 * (slot % 2000), 0.7]
        study.add_trial(complete_trial(config, slot, rates(1e-5, 1e-5, 1e-5), [final]))
    text = render_report(study, storage=URL)
    page = Page(text)
    assert "best trial 0, value 1.9800" in page.text
    assert f"An even sample of about {MOST_POINTS:,} trials is drawn" in page.text
    assert f"{MOST_LINES} in all, are drawn" in page.text
    assert len(text) < 2_500_000


# Hostile texts, commands, errors --------------------------------------------------------------------------


def test_texts_of_a_study_are_escaped_everywhere() -> None:
    evil = "<b>&\"'<script>alert(1)</script>$x^$ {{7*7}}"
    config = config_of(space=KNOT, sequences=((evil, "qqp"),))
    study = empty_study(config, name=evil)
    study.add_trial(complete_trial(config, 0, rates(1e-5, 1e-5, 1e-5), [[0.9, 0.9]], label=evil))
    failed = {REASON: evil}
    study.add_trial(ended(config, 1, rates(1e-5, 1e-5, 1e-5), TrialState.FAIL, **failed))
    text = render_report(study, storage=URL)
    # The page's own script.
    assert Page(text).tags.count("script") == 1
    assert "<b>" not in text
    assert "<script>alert" not in text
    assert f"<h1>Study {html.escape(evil).replace('&quot;', '&#34;').replace('&#x27;', '&#39;')}</h1>" in text
    assert "{{7*7}}" in text


def test_the_commands_name_the_study_but_not_the_password() -> None:
    config = config_of(limit=1500)
    study = study_of(config, 5, name="it's mine")
    text = render_report(study, storage="postgresql://me:secret@host/db")
    assert "secret" not in text
    boxes = Page(text).boxes
    assert (
        "lr-dist combine 'it'\"'\"'s mine' --storage 'postgresql://me:***@host/db' --output-file combined.yaml" in boxes
    )
    best = Findings.of(study).best
    assert best is not None
    compare = next(box for box in boxes if box.startswith("lr-dist compare"))
    # The best one is a queued flat rate, which needs no other one beside it.
    assert LRDistribution.from_dict(best.user_attrs["distribution"]).rates(3)["layers.1"] == pytest.approx(1e-4)
    assert "--model no-such-model --tasks sst2 qqp --distributions flat:lr=1e-4 --seeds" in compare
    assert "--seeds 0 1 2 3 4 --limit 1500 --epochs 3" in compare


def test_the_compare_command_is_one_that_compare_understands() -> None:
    import shlex

    from lr_dist.cli import compare

    study = study_of(config_of(limit=1500), 8)
    command = next(box for box in page_of(study).boxes if box.startswith("lr-dist compare"))
    settings = compare.parser().parse_args(shlex.split(command)[2:])
    assert settings.limit == 1500
    for text in settings.distributions:
        LRDistribution.parse(text)


def test_the_rates_to_copy_have_three_digits() -> None:
    config = config_of(space=KNOT, limit=1500)
    study = empty_study(config)
    found = rates(1.887069673022376e-5, 7.419317328047978e-5, 4.6780494761341433e-4)
    study.add_trial(complete_trial(config, 0, found, [[0.9, 0.9]]))
    text = "from_layers:embeddings=1.89e-5,layers=7.42e-5,head=4.68e-4"
    page = page_of(study)
    assert f'LayerwiseLR("{text}")' in page.boxes
    assert any(box.startswith("lr-dist compare") and text in box for box in page.boxes)


def test_rates_are_drawn_for_the_layers_that_were_asked_for() -> None:
    study = study_of(config_of(), 2)
    assert f"For a model of {DEFAULT_LAYERS} layers" in page_of(study).text
    assert "For a model of 24 layers" in page_of(study, num_layers=24).text


def test_what_cannot_be_shown_or_written_is_a_named_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="other", storage=open_storage(url))
    with pytest.raises(InvalidTrialsError, match="'other' is not a study of `lr-dist search`"):
        write_report(optuna.load_study(study_name="other", storage=url), tmp_path / "page.html", storage=url)
    assert main(["search", "report", "other", "--storage", url, "--output-file", str(tmp_path / "page.html")]) == 2
    assert "InvalidTrialsError" in capsys.readouterr().err
    assert main(["search", "report", "none", "--storage", url]) == 2
    assert "UnknownStudyError: The storage has no study 'none'. It has: other." in capsys.readouterr().err
    with pytest.raises(UnwritableFileError, match="cannot be written"):
        write_report(study_of(config_of(), 1), tmp_path, storage=url)
    with pytest.raises(LayerCountError, match="not 0"):
        page_of(study_of(config_of(), 1), num_layers=0)
