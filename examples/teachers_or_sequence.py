r"""Two tasks in one model: learned one after the other, or amalgamated from a teacher for each.

    python examples/teachers_or_sequence.py --tasks sst2 mrpc --limit 2000 --seeds 0 1 \
        --arms flat:lr=2e-5 'flat:lr=2e-5 + replay:size=500,ratio=0.05' 'flat:lr=2e-5 + ewc:strength=100'

Every arm of --arms learns the tasks in sequence; an arm may be a preset, such as minilm-clinc-replay. Each teacher is
the model after its task alone, with the rates of the first arm. A student of each target learns from both teachers, on
the training texts of both tasks without labels, for as many epochs as the sequence takes for a task. The table has the
score on both tasks' validation split, and the seconds of everything that a method needs: for students also the
teachers' training and scoring. With --state FOLDER, finished parts are kept there, and the same command continues.

Two more targets than `lr-dist amalgamate` has show why a student fails: `unweighted` is soft with the weight 1 for
every text, and `right` takes for each text the teacher of the task that the text is from, which is known only here.

A sequence's head is chosen by the task. So the student's labels are restricted to those of the task, too; `any label`
is its accuracy without this help.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lr_dist.knowledge.amalgamation.config import AmalgamationConfig, StudentSettings
from lr_dist.knowledge.amalgamation.labels import LabelUnion
from lr_dist.knowledge.amalgamation.learned import what_was_learned
from lr_dist.knowledge.amalgamation.load import load_teacher
from lr_dist.knowledge.amalgamation.pipeline import held_out_rows, objective_of
from lr_dist.knowledge.amalgamation.scores import TeacherScores, score_texts
from lr_dist.knowledge.amalgamation.student import student_logits, train_student
from lr_dist.knowledge.amalgamation.targets import Objective, hard_targets
from lr_dist.knowledge.amalgamation.texts import Texts, tokenise
from lr_dist.models import load_new_classifier
from lr_dist.runs.atomic import write_json
from lr_dist.runs.machine import use_usable_cores
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.environment import describe_environment
from lr_dist.sequence.keep_stages import KeepStages
from lr_dist.sequence.observers import TestAfterStages
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.tasks import Scorer, Task
from lr_dist.tasks.task import column_values

Row = dict[str, float]
TEACHERS = "teachers, each on its own task"
RIGHT, UNWEIGHTED = "right", "unweighted"


def learn_in_sequence(bench: Bench, text: str, seed: int) -> Row:
    """Scores after the last task."""
    run = run_sequence(bench, Arm.parse(text), seed, TestAfterStages())
    first, second = run.matrix[-1]
    assert first is not None
    assert second is not None
    return {"first": first, "second": second, "seconds": run.train_seconds}


def learn_teachers(bench: Bench, text: str, seed: int, folder: Path, model: str) -> tuple[list[Any], Row]:
    """A teacher for each task, kept in the folder, and their scores on their own tasks."""
    scores, seconds = [], 0.0
    for index in range(2):
        keep = KeepStages(folder / str(index))
        run = run_sequence(bench.only([index]), Arm.parse(text), seed, TestAfterStages(), [keep])
        score = run.matrix[-1][0]
        assert score is not None
        scores.append(score)
        seconds += run.train_seconds
    return load_teachers(bench, folder, model), {"first": scores[0], "second": scores[1], "seconds": seconds}


def load_teachers(bench: Bench, folder: Path, model: str) -> list[Any]:
    """The teachers that `learn_teachers` left in the folder."""
    length = bench.settings.max_length
    return [
        load_teacher(str(folder / str(k) / "stage-1.safetensors"), model=model, max_length=length, labels=task.classes)
        for k, task in enumerate(bench.tasks)
    ]


def objective_for(
    target: str, scores: Sequence[TeacherScores], sizes: Sequence[int], union: LabelUnion, config: AmalgamationConfig
) -> Objective:
    """The objective of a target; `sizes` are the numbers of texts of each task, one task's texts after the other's."""
    objective = objective_of(scores, union, config)
    if target == RIGHT:
        certain = one_hot(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))).float()
        probabilities = [torch.softmax(each.logits, dim=-1) for each in scores]
        objective = replace(objective, targets=hard_targets(probabilities, certain, union))
    if target in (RIGHT, UNWEIGHTED):
        objective = replace(objective, weights=torch.ones_like(objective.weights))
    return objective


def learn_from_teachers(
    bench: Bench, texts: Texts, objective: Objective, union: LabelUnion, config: AmalgamationConfig
) -> tuple[Row, float]:
    """Scores of a student within each task's labels, and the mean accuracy with all labels; seconds of its training."""
    began = time.perf_counter()
    model = load_new_classifier(config.student, union.labels, seed=config.settings.seed)
    pad = int(bench.tokenizer.pad_token_id)
    tokens = tokenise(texts, bench.tokenizer, bench.settings.max_length)
    held = held_out_rows(texts, config)
    train_student(model, tokens, objective, held, config.settings, pad_token_id=pad)
    seconds = time.perf_counter() - began
    logits = student_logits(model, tokens.rows_at(held), pad)
    learned = what_was_learned(config.target, objective, torch.tensor(held), logits, union)
    print(f"  {learned}", flush=True)
    within, anywhere = [], []
    for k, task in enumerate(bench.tasks):
        validation = tokenise(Texts.of_task(task, "validation"), bench.tokenizer, bench.settings.max_length)
        logits = student_logits(model, validation, pad)
        within.append(_score(task, union.select(k, logits)))
        labels = torch.tensor(column_values(task.validation, "label"))
        names = torch.tensor(union.columns[k])
        anywhere.append((logits.argmax(dim=1) == names[labels]).float().mean().item())
    row = {"first": within[0], "second": within[1], "seconds": seconds, "any label": statistics.mean(anywhere)}
    return row, seconds


def run(options: argparse.Namespace, seed: int) -> dict[str, Row]:
    settings = SequenceSettings(epochs=options.epochs, max_length=options.max_length)
    bench = Bench.prepare(
        options.model,
        options.tasks,
        settings,
        limit=options.limit,
        data_dir=options.data_dir,
        eval_limit=options.eval_limit,
    )
    state = None if options.state is None else options.state / f"seed-{seed}.json"
    rows: dict[str, Row] = {}
    if state is not None and state.exists():
        rows = json.loads(state.read_text(encoding="utf-8"))

    def keep(name: str, row: Row) -> None:
        rows[name] = row
        if state is not None:
            state.parent.mkdir(parents=True, exist_ok=True)
            write_json(state, rows)

    for text in options.arms:
        if text not in rows:
            keep(text, learn_in_sequence(bench, text, seed))
        _say(seed, text, rows[text])
    students = [f"student, {target}" for target in options.targets]
    if all(name in rows for name in (TEACHERS, *students)):
        return {name: rows[name] for name in (*options.arms, TEACHERS, *students)}
    with contextlib.ExitStack() as stack:
        if options.state is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = options.state / f"seed-{seed}"
        if TEACHERS in rows:
            teachers = load_teachers(bench, folder, options.model)
        else:
            teachers, own = learn_teachers(bench, options.arms[0], seed, folder, options.model)
            keep(TEACHERS, own)
    _say(seed, "teachers", rows[TEACHERS])
    parts = [Texts.of_task(task) for task in bench.tasks]
    texts = parts[0] + parts[1]
    union = LabelUnion.of({teacher.name: teacher.labels for teacher in teachers})
    kept = None if state is None else options.state / "scores"
    scores = [score_texts(teacher, texts, passes=options.passes, seed=seed, folder=kept) for teacher in teachers]
    scoring = sum(each.seconds for each in scores)
    print(f"seed {seed}: {len(texts)} texts scored by both teachers with {options.passes} passes in {scoring:.0f} s")
    for target, name in zip(options.targets, students, strict=True):
        if name in rows:
            continue
        config = AmalgamationConfig(
            teachers=tuple(options.tasks),
            text="both",
            student=options.model,
            target="soft" if target in (RIGHT, UNWEIGHTED) else target,
            passes=options.passes,
            settings=StudentSettings(
                rates=options.student_rates,
                epochs=options.student_epochs or options.epochs,
                max_length=options.max_length,
                seed=seed,
            ),
        )
        objective = objective_for(target, scores, list(map(len, parts)), union, config)
        row, seconds = learn_from_teachers(bench, texts, objective, union, config)
        row["seconds"] = seconds + scoring + rows[TEACHERS]["seconds"]
        keep(name, row)
        _say(seed, name, row)
    return {name: rows[name] for name in (*options.arms, TEACHERS, *students)}


def _score(task: Task, outputs: Tensor) -> float:
    scorer = Scorer(task)
    scorer.update(outputs, torch.tensor(column_values(task.validation, "label")))
    return scorer.compute()[task.primary]


def _say(seed: int, name: str, row: Row) -> None:
    print(f"seed {seed}, {name}: {row['first']:.3f} {row['second']:.3f} ({row['seconds']:.0f} s)", flush=True)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Row]]:
    """Run and print; returns the rows of each seed."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--tasks", nargs=2, default=["sst2", "mrpc"])
    add("--arms", nargs="+", required=True, help="of the sequence; the teachers learn with the rates of the first")
    add(
        "--targets", nargs="+", default=["soft", "vkd"], help="of the students: soft, hard, vkd, uhc, unweighted, right"
    )
    add("--student-rates", default="flat:lr=1e-4")
    add("--student-epochs", type=int, default=None, help="as many as for a task by default")
    add("--model", default="minilm")
    add("--limit", type=int, default=2000, help="training examples of a task")
    add("--eval-limit", type=int, default=None, help="validation examples of a task to score on; all by default")
    add("--epochs", type=int, default=3)
    add("--max-length", type=int, default=64)
    add("--passes", type=int, default=16)
    add("--data-dir", default=None)
    add("--seeds", type=int, nargs="+", default=[0])
    add("--state", type=Path, default=None, help="folder of what is finished; one for each set of options")
    add("--output", type=Path, default=None, help="file for the results (JSON)")
    options = parser.parse_args(arguments)
    use_usable_cores()
    runs = [run(options, seed) for seed in options.seeds]
    width = max(map(len, runs[0])) + 2
    column = max(10, *map(len, options.tasks)) + 2
    names = "".join(f"{name:>{column}}" for name in (*options.tasks, "any label"))
    print(f"\n{'':<{width}}{names}{'seconds':>9}")
    for name in runs[0]:
        means = {key: statistics.mean(each[name][key] for each in runs) for key in runs[0][name]}
        anywhere = f"{means['any label']:.3f}" if "any label" in means else ""
        print(f"{name:<{width}}{means['first']:>{column}.3f}{means['second']:>{column}.3f}", end="")
        print(f"{anywhere:>{column}}{means['seconds']:>9.0f}")
    if options.output is not None:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        result = {"options": settings, "runs": runs, "environment": describe_environment()}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return runs


if __name__ == "__main__":
    main()
