"""`optimize`: a program of one's own is searched, and the commands work on its study."""

from __future__ import annotations

import html
import importlib.util
import math
from pathlib import Path

import optuna
import pytest
import tiny
import torch
import yaml
from optuna.trial import TrialState
from tiny_trainer import layerwise, rows

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist.cli import main
from lr_dist.errors import ConfigurationError, StudyMismatchError, TrialError
from lr_dist.search import Space, optimize
from lr_dist.search.engine.slots import LABEL, REASON, SLOT
from lr_dist.search.page.findings import named
from lr_dist.search.trials.summary import StudySummary, distribution_of, plan_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_search.py"
SPACE = Space("shape", low=1e-6, high=1e-2)


def score(trial: optuna.Trial) -> float:
    """Best at 1e-4 everywhere."""
    rates = SPACE.suggest(trial).rates(6).values()
    return -sum(abs(math.log10(rate) + 4) for rate in rates)


def test_every_trial_has_the_rates_that_the_program_got_and_queued_ones_come_first():
    study = optimize(score, SPACE, trials=7, queued=["flat:lr=1e-4", "decay:lr=1e-3,factor=0.7"], num_layers=5)
    assert [t.user_attrs[SLOT] for t in study.trials] == list(range(7))
    assert {t.state for t in study.trials} == {TrialState.COMPLETE}
    for trial in study.trials:
        assert distribution_of(trial) == SPACE.distribution(trial.params)
        assert trial.value == score(optuna.trial.FixedTrial(trial.params))
    assert distribution_of(study.trials[0]).rates(5) == pytest.approx(LRDistribution.flat(1e-4).rates(5))
    assert study.trials[1].user_attrs[LABEL] == "decay:lr=1e-3,factor=0.7"
    assert study.best_trial.number == 0


def test_a_study_is_continued_to_the_total_and_one_of_another_space_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    first = [trial.params for trial in optimize(score, SPACE, trials=3, storage=url, seed=1).trials]
    again = optimize(score, SPACE, trials=5, storage=url, seed=1)
    assert [t.params for t in again.trials[:3]] == first
    assert len(again.trials) == len(optimize(score, SPACE, trials=5, storage=url).trials) == 5
    with pytest.raises(StudyMismatchError, match="is another one"):
        optimize(score, Space("flat"), trials=5, storage=url)


def test_a_score_that_is_not_finite_fails_for_good_and_pruning_is_the_programs_affair():
    def objective(trial: optuna.Trial) -> float:
        SPACE.suggest(trial)
        if trial.number == 0:
            return math.nan
        if trial.number == 1:
            raise optuna.TrialPruned
        return 0.5

    study = optimize(objective, SPACE, trials=3)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE]
    assert "nan" in study.trials[0].user_attrs[REASON]


@pytest.mark.parametrize("wrong", [None, "0.9", [0.9], True])
def test_an_objective_that_returns_no_number_is_named(wrong):
    with pytest.raises(TrialError, match="must return one number"):
        optimize(lambda trial: wrong, SPACE, trials=1)


def test_an_error_of_the_program_is_named_and_the_trial_is_tried_again(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"

    def broken(trial: optuna.Trial) -> float:
        raise ValueError("no such column: label")

    with pytest.raises(TrialError, match="ValueError: no such column: label"):
        optimize(broken, SPACE, trials=2, storage=url)
    study = optimize(score, SPACE, trials=2, storage=url)
    assert [t.state for t in study.trials].count(TrialState.COMPLETE) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"trials": 0}, "trials must be"),
        ({"study": "reference/x"}, "not a valid study name"),
        ({"queued": ["decay:lr=2,factor=0.7,relative=true"]}, "give it as lr="),
        ({"queued": ["flat:lr=1e-4"] * 2, "trials": 1}, "increase trials"),
        ({"queued": ["flat:lr=0"]}, "cannot represent the queued flat:lr=0"),
    ],
)
def test_wrong_arguments_are_refused_before_a_trial(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        optimize(score, SPACE, **{"trials": 3, **wrong})
    with pytest.raises(ConfigurationError, match="space must be a Space"):
        optimize(score, "shape")


def test_status_report_export_and_combine_work_on_such_a_study(tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/study.db"
    study = optimize(score, SPACE, trials=6, study="mine", storage=url, queued=["flat:lr=3e-5"], model="my-model")
    where = ["--storage", url]
    assert main(["search", "status", "--study", "mine", *where]) == 0
    assert "6 of 6 done" in capsys.readouterr().out
    assert main(["search", "report", "mine", *where, "--output-file", str(tmp_path / "page.html")]) == 0
    page = html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert str(named(plan_of(study.best_trial))) in page
    assert "the score that the program returned" in page
    assert "lr-dist compare" not in page
    assert main(["search", "export", "--study", "mine", *where, "--csv", str(tmp_path / "trials.csv")]) == 0
    assert main(["combine", "mine", *where, "--output-file", str(tmp_path / "combined.yaml")]) == 0
    preset = yaml.safe_load((tmp_path / "combined.yaml").read_text(encoding="utf-8"))
    assert preset["provenance"]["model"] == "my-model"
    assert StudySummary.of(study).best.number == study.best_trial.number


def test_the_example_searches_a_lightning_module(tiny_model, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("own_search", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    options = ["--model", tiny_model, "--trials", "3", "--epochs", "1", "--limit", "64", "--output", str(tmp_path)]
    study = example.main(options)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 3
    assert study.trials[0].user_attrs[LABEL] == "flat:lr=1e-4"
    printed = capsys.readouterr().out
    assert f"accuracy {study.best_value:.3f} with LayerwiseLR(" in printed
    command = next(line for line in printed.splitlines() if line.startswith("lr-dist search status"))
    assert main(command.split()[1:]) == 0


def test_optuna_integrations_lightning_callback_prunes_trials_of_an_own_search(tmp_path):
    integration = pytest.importorskip("optuna_integration")

    class Scored(tiny.Classifier):
        """Validation scores that fall with the learning rate of the embeddings, from the first epoch on."""

        def validation_step(self, batch, batch_idx):
            self.log("score", -self.trainer.optimizers[0].param_groups[0]["lr"])

    epochs: list[int] = []

    def objective(trial: optuna.Trial) -> float:
        pruning = integration.PyTorchLightningPruningCallback(trial, monitor="score")
        rates = LayerwiseLR(SPACE.suggest(trial), verbose=False)
        trainer = tiny.trainer(rates, pruning, max_epochs=4, default_root_dir=tmp_path, num_sanity_val_steps=0)
        module = Scored(lambda module: torch.optim.AdamW(module.parameters(), lr=1e-4))
        try:
            trainer.fit(module, tiny.batches(2), tiny.batches(1))
        finally:
            epochs.append(trainer.current_epoch)
        return trainer.callback_metrics["score"].item()

    study = optimize(
        objective,
        SPACE,
        trials=4,
        queued=["flat:lr=1e-5", "flat:lr=1e-3", "flat:lr=1e-4", "flat:lr=1e-6"],
        pruner=optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0),
        num_layers=tiny.LAYERS,
    )
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.COMPLETE]
    assert epochs[0] == epochs[3] == 4
    assert max(epochs[1:3]) <= 1
    assert StudySummary.of(study).pruned == 2


def test_an_objective_can_train_with_transformers_trainer(tmp_path):
    seen: dict[int, dict[str, float]] = {}

    def objective(trial: optuna.Trial) -> float:
        rates = SPACE.suggest(trial)
        trainer, recorded = layerwise(tmp_path, rates, max_steps=2, warmup_steps=0, eval_dataset=rows(4, seed=1))
        trainer.train()
        seen[trial.number] = recorded.seen[0]
        return -trainer.evaluate()["eval_loss"]

    study = optimize(objective, SPACE, trials=2, num_layers=tiny.LAYERS, seed=0)
    for trial in study.trials:
        assert seen[trial.number] == pytest.approx(distribution_of(trial).rates(tiny.LAYERS))
