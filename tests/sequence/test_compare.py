"""Real comparisons with a tiny BERT on the generated tasks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from comparison import FLAT, FROZEN, TASKS, Listener, config_of

from lr_dist.errors import ConfigurationError, InvalidResultError, LRDistError, OutputInUseError
from lr_dist.sequence.compare import Comparison, compare
from lr_dist.sequence.output import locked
from lr_dist.sequence.result import ComparisonResult


def numbers(result: ComparisonResult) -> dict[tuple[str, int], object]:
    return {(run["arm"], run["seed"]): run["matrix"] for run in result.runs}


def test_every_distribution_and_seed_is_run_once_and_the_steps_are_those_announced(tiny_comparison):
    result, listener, output = tiny_comparison
    assert sorted(listener.ran) == sorted((d, s) for d in (FLAT, FROZEN) for s in (0, 1))
    # 2 tasks x 2 epochs x 96 / 16 steps in each of 4 runs
    assert listener.announced == (4, 0, 4 * 2 * 2 * 6)
    assert listener.steps == 4 * 2 * 2 * 6
    assert result.planned_runs == len(result.runs) == 4
    assert ComparisonResult.load(output / "result.json") == result


def test_freezing_the_encoder_forgets_nothing(tiny_comparison):
    result, _, _ = tiny_comparison
    for run in result.runs:
        matrix = run["matrix"]
        if run["arm"] == FROZEN:
            # Only the second task's own head was trained after the first task was learned.
            assert matrix[2][0] == matrix[1][0]
            assert run["metrics"]["forgetting"] == 0.0
        assert len(matrix) == 3
        assert [len(row) for row in matrix] == [2, 2, 2]
    # ... while the first task's head was trained. One accuracy may come out the same by chance, not those of all seeds.
    frozen = [run["matrix"] for run in result.runs if run["arm"] == FROZEN]
    assert any(matrix[1][0] != matrix[0][0] for matrix in frozen)
    flat = [run["metrics"]["forgetting"] for run in result.runs if run["arm"] == FLAT]
    assert any(value != 0.0 for value in flat)


def test_seeds_differ_and_the_untrained_row_depends_on_the_seed_alone(tiny_comparison):
    result, _, _ = tiny_comparison
    matrix = numbers(result)
    assert matrix[FLAT, 0] != matrix[FLAT, 1]
    assert matrix[FLAT, 0][0] == matrix[FROZEN, 0][0]


def test_the_same_comparison_elsewhere_gives_the_same_numbers(tiny_comparison, tiny_model, tmp_path):
    again = compare(config_of(tiny_model, seeds=(1,)), tmp_path, listener=Listener(), command="test")
    first, _, _ = tiny_comparison
    for key, matrix in numbers(again).items():
        assert matrix == numbers(first)[key]


def test_a_finished_comparison_runs_nothing_and_new_seeds_run_alone(tiny_comparison, tiny_model, tmp_path):
    compare(config_of(tiny_model, seeds=(0,)), tmp_path, listener=Listener(), command="test")
    idle = Listener()
    compare(config_of(tiny_model, seeds=(0,)), tmp_path, listener=idle, command="test")
    assert idle.announced == (2, 2, 0)
    assert idle.ran == []
    more = Listener()
    result = compare(config_of(tiny_model), tmp_path, listener=more, command="test")
    assert sorted(more.ran) == sorted([(FLAT, 1), (FROZEN, 1)])
    assert numbers(result) == numbers(tiny_comparison[0])


def test_a_diverging_distribution_is_reported_and_the_others_go_on(tiny_model, tmp_path):
    config = config_of(tiny_model, distributions=("flat:lr=1e30", FLAT), seeds=(0,))
    result = compare(config, tmp_path, listener=Listener(), command="test")
    assert [run["status"] for run in result.runs] == ["diverged", "done"]
    assert "rates are too high" in result.runs[0]["reason"]
    assert result.summary[0]["diverged"] == 1
    assert result.summary[0]["runs"] == 0
    json.loads((tmp_path / "result.json").read_text())  # and the file stays plain JSON


def test_another_configuration_in_the_same_folder_is_refused_and_overwrites_nothing(tiny_model, tmp_path):
    compare(config_of(tiny_model, seeds=(0,)), tmp_path, listener=Listener(), command="test")
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(ConfigurationError, match="epochs: 2 there, 1 now"):
        compare(config_of(tiny_model, seeds=(0,), epochs=1), tmp_path, listener=Listener(), command="test")
    assert (tmp_path / "result.json").read_bytes() == before


def test_two_processes_cannot_share_an_output_folder(tiny_model, tmp_path):
    with locked(tmp_path), pytest.raises(OutputInUseError, match="Another process"):
        compare(config_of(tiny_model), tmp_path, listener=Listener(), command="test")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"distributions": ("flat:lr=-1",)}, "lr=-1"),
        ({"distributions": ("no-such-preset",)}, "no-such-preset"),
        ({"distributions": ("flat:lr=1e-3", "flat:lr=0.001")}, "same distribution"),
        ({"distributions": ("flat:lr=1e-3,layers.7=0",)}, "has 3 layers"),
        ({"distributions": ()}, "Nothing to compare"),
        ({"tasks": ("demo-sentiment", "sst3")}, "sst3"),
        ({"tasks": ()}, "Nothing to learn"),
        ({"seeds": (1, 1)}, "distinct"),
        ({"model": "no/such/model"}, "no/such/model"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(tiny_model, tmp_path, changes, says):
    listener = Listener()
    with pytest.raises(LRDistError, match=says):
        compare(config_of(**{"model": tiny_model, **changes}), tmp_path / "out", listener=listener, command="test")
    assert listener.announced is None


def test_an_output_that_cannot_be_written_is_refused_first(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="Cannot write to the output folder"):
        compare(config_of("no/such/model"), tmp_path / "file", listener=Listener(), command="test")


def test_an_edited_run_file_is_named(tiny_model, tmp_path):
    config = config_of(tiny_model, seeds=(0,))
    compare(config, tmp_path, listener=Listener(), command="test")
    victim = next((tmp_path / "runs").glob("*.json"))
    victim.write_text("{}")
    with pytest.raises(InvalidResultError, match=victim.name):
        compare(config, tmp_path, listener=Listener(), command="test")


def test_a_shift_of_one_task_shares_one_head(tiny_model, tmp_path):
    config = config_of(tiny_model, tasks=("demo-sentiment@length",), seeds=(0,), distributions=(FLAT,), limit=None)
    comparison = Comparison.prepare(config)
    assert len(comparison.bench.tasks) == 2
    assert comparison.bench.tasks[0].head == comparison.bench.tasks[1].head
    result = comparison.run(tmp_path, command="test", listener=Listener())
    assert len(result.runs[0]["matrix"]) == 3


@pytest.mark.data
def test_real_glue_is_learned_with_its_own_scores(tiny_model, glue_dir, tmp_path):
    config = config_of(tiny_model, tasks=("stsb", "cola"), seeds=(0,), distributions=(FLAT,), data_dir=str(glue_dir))
    result = compare(config, tmp_path, listener=Listener(), command="test")
    assert [task["metric"] for task in result.tasks] == ["pearson", "matthews"]
    assert [task["baseline"] for task in result.tasks] == [0.0, 0.0]
    assert [task["examples"]["validation"] for task in result.tasks] == [1500, 1043]
    assert set(result.runs[0]["scores"][2][0]) == {"pearson", "spearman"}


def command_line(model: str, output: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "lr_dist.cli", "compare", "--model", model, "--tasks", *TASKS),
        *("--distributions", FLAT, FROZEN, "--seeds", "0", "1", "--limit", "96", "--epochs", "2"),
        *("--batch-size", "16", "--precision", "32-true", "--output", str(output)),
    ]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_comparison_continues_and_ends_with_the_same_numbers(tiny_comparison, tiny_model, tmp_path, how):
    command = command_line(tiny_model, tmp_path)
    kills = 0
    for _ in range(2):
        # The child must not inherit an ignored SIGINT, as background jobs of a shell do.
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        had = len(list((tmp_path / "runs").glob("[!.]*.json")))
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "runs").glob("[!.]*.json"))) > had:
                time.sleep(0.1)  # into the next run
                process.send_signal(how)
                break
            time.sleep(0.02)
        output = process.communicate(timeout=120)[0].decode()
        if process.returncode == 0:
            break
        kills += 1
        assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130), output
    assert kills >= 1
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    final = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "4 of 4 runs are there already" in final.stdout
    assert numbers(ComparisonResult.load(tmp_path / "result.json")) == numbers(tiny_comparison[0])
    assert len(list((tmp_path / "runs").glob("[!.]*.json"))) == 4
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_an_eval_limit_scores_on_fewer_examples_and_trains_on_as_many(tiny_comparison, tiny_model, tmp_path):
    whole, _, _ = tiny_comparison
    config = replace(config_of(tiny_model, seeds=(0,)), eval_limit=20)
    result = compare(config, tmp_path, listener=Listener(), command="test")
    assert [task["examples"]["validation"] for task in result.tasks] == [20, 20]
    assert [task["examples"]["train"] for task in result.tasks] == [t["examples"]["train"] for t in whole.tasks]
    scores = [score for run in result.runs for row in run["matrix"] for score in row]
    assert [score * 20 for score in scores] == pytest.approx([round(score * 20) for score in scores])
