"""Twelve Wikipedia articles as classes, two teachers of six articles each, one student of all twelve.

    python examples/amalgamate_articles.py --data WIKITEXT2 --sentences 100 --seeds 0

WIKITEXT2 is a folder with WikiText-2's validation.txt and test.txt. A text is a sentence, its label the article that it
is from. Each teacher is fine-tuned on the sentences of its own articles; the students see all training sentences
without labels. `--overlap 2` lets both teachers know two articles. The table has, for each method, the accuracy on test
sentences of all twelve articles, and the seconds it took:

    target (method)     the targets themselves, without a student
    student (method)    a student trained towards them
    averaged encoders, task arithmetic: the teachers' weights merged, each teacher's head kept
    labelled student    trained on the labels: the upper bound

`--task mnli --known entailment+neutral neutral+contradiction` takes the classes of a task in place of articles: each
teacher knows the labels that are joined by `+`, here with one in common.

`--layers 1 2 3` trains the first teacher only, and measures its certainty with dropout in the top layers alone.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lr_dist.knowledge.amalgamation.config import StudentSettings
from lr_dist.knowledge.amalgamation.labels import LabelUnion
from lr_dist.knowledge.amalgamation.layer_error import top_layers_errors
from lr_dist.knowledge.amalgamation.merging import add_task_vectors, average_teachers, merged_probabilities
from lr_dist.knowledge.amalgamation.scores import TeacherScores, score_texts
from lr_dist.knowledge.amalgamation.student import student_logits, train_student
from lr_dist.knowledge.amalgamation.targets import Objective, divergence, make_objective
from lr_dist.knowledge.amalgamation.teacher import ModelTeacher
from lr_dist.knowledge.amalgamation.texts import Texts, tokenise
from lr_dist.models import load_new_classifier, load_tokenizer
from lr_dist.sequence.environment import describe_environment, peak_memory_mb
from lr_dist.tasks import load_task
from lr_dist.tasks.task import column_values, take_rows, text_keys

TARGETS = {"muka-soft": "soft", "muka-hard": "hard", "vkd": "vkd", "uhc": "uhc"}
ARTICLES = 12


def articles(folder: Path, most_words: int) -> dict[str, list[str]]:
    """Title -> sentences of 8 words or more, each once."""
    found: dict[str, list[str]] = {}
    title = ""
    for name in ("validation.txt", "test.txt"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            if heading := re.fullmatch(r" = ([^=].*?[^=]) = ", line):
                title = heading[1]
            elif title and not line.startswith(" ="):
                for sentence in line.strip().split(" . "):
                    if 8 <= len(sentence.split()) <= most_words:
                        found.setdefault(title, []).append(sentence)
    return {title: list(dict.fromkeys(sentences)) for title, sentences in found.items()}


Drawn = tuple[list[str], dict[str, tuple[list[Any], list[Any]]]]


def draw_classes(options: argparse.Namespace, seed: int) -> Drawn:
    """The classes of a task; for each, texts (or pairs) of train to learn from, and of validation to test on."""
    task = load_task(options.task, data_dir=options.data)
    parts: dict[str, tuple[list[Any], list[Any]]] = {label: ([], []) for label in task.classes}
    for place, split, count in ((0, task.train, options.sentences), (1, task.validation, options.test)):
        labels = column_values(split, "label")
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
        for number, label in enumerate(task.classes):
            rows = [row for row in order if labels[row] == number][:count]
            keys = text_keys(take_rows(split, rows))
            parts[label][place].extend(key if len(key) > 1 else key[0] for key in keys)
    return list(parts), parts


def draw(options: argparse.Namespace, seed: int) -> Drawn:
    """The twelve articles with the most sentences; for each, sentences to train on, and others to test on."""
    if options.data is None:
        raise SystemExit("Give --data, the folder with WikiText-2, or --task.")
    by_title = articles(options.data, options.most_words)
    longest = sorted(by_title.items(), key=lambda item: (-len(item[1]), item[0]))[:ARTICLES]
    count, test = options.sentences, options.test
    shortest = len(longest[-1][1])
    if shortest < count + test:
        raise SystemExit(f"The shortest of {ARTICLES} articles has {shortest} sentences; lower --sentences or --test.")
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for title, sentences in sorted(longest):
        order = torch.randperm(len(sentences), generator=generator).tolist()
        drawn = [sentences[index] for index in order[: count + test]]
        parts[title] = (drawn[:count], drawn[count:])
    return list(parts), parts


class Run:
    """One seed: teachers, scores, students."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        self.labels, self.parts = draw_classes(options, seed) if options.task else draw(options, seed)
        half, shared = ARTICLES // 2, options.overlap
        self.known = [self.labels[: half + shared], self.labels[half:]]
        if options.task:
            self.known = [each.split("+") for each in options.known]
            unknown = {label for known in self.known for label in known} ^ set(self.labels)
            if unknown:
                raise SystemExit(f"--known must name the labels of {options.task}, all of them: {', '.join(unknown)}.")
        self.tokenizer = load_tokenizer(options.model)
        self.settings = StudentSettings(
            rates=options.rates, epochs=options.epochs, max_length=options.max_length, seed=seed, batch_size=16
        )
        self.rows: dict[str, dict[str, float]] = {}
        self.train, _ = self._texts(self.labels, 0)
        self.test, self.answers = self._texts(self.labels, 1)

    def layers(self) -> None:
        """Print the certainty's error and the seconds with dropout in the top layers only."""
        teacher = self._teacher(0, self.known[0])
        rows = top_layers_errors(teacher, self.test, self.options.layers, passes=self.options.passes, seed=self.seed)
        print(f"\n{len(self.test)} texts, {self.options.passes} passes")
        print("dropout in           error    bias   order  seconds")
        print(f"{'everywhere':<18}{'':>24}{rows[0].reference_seconds:>9.1f}")
        for row in rows:
            name = "everywhere (seed)" if row.top_layers is None else f"top {row.top_layers}"
            print(f"{name:<18}{row.certainty:>8.4f}{row.bias:>8.4f}{row.order:>8.3f}{row.seconds:>9.1f}", flush=True)

    def run(self) -> dict[str, dict[str, float]]:
        teachers = [self._teacher(k, labels) for k, labels in enumerate(self.known)]
        union = LabelUnion.of({teacher.name: teacher.labels for teacher in teachers})
        scores = [self._scores(teacher, self.train, "train") for teacher in teachers]
        on_test = [self._scores(teacher, self.test, "test") for teacher in teachers]
        position = torch.tensor([union.labels.index(label) for label in self.labels])
        answers = position[self.answers]
        for name, kind in TARGETS.items():
            if kind != "uhc":  # whose targets are no probabilities of all twelve
                targets = _objective(kind, on_test, union).targets
                self._record(f"target {name}", _accuracy(targets, answers), 0.0)
            objective = _objective(kind, scores, union)
            self._student(f"student {name}", union.labels, self.train, objective, answers)
        began = time.perf_counter()
        merged = merged_probabilities(average_teachers(teachers), self.test)
        self._record("averaged encoders", _accuracy(merged, answers), time.perf_counter() - began)
        began = time.perf_counter()
        start = load_new_classifier(self.options.model, union.labels)
        merged = merged_probabilities(add_task_vectors(teachers, start), self.test)
        self._record("task arithmetic", _accuracy(merged, answers), time.perf_counter() - began)
        _, ids = self._texts(self.labels, 0)
        labelled = Objective(one_hot(position[ids], len(union)).float(), torch.ones(len(ids)), divergence)
        self._student("labelled student", union.labels, self.train, labelled, answers)
        return self.rows

    def _texts(self, labels: Sequence[str], part: int) -> tuple[Texts, Tensor]:
        """Sentences of these articles, and the numbers of their articles among all."""
        pairs = [(sentence, self.labels.index(label)) for label in labels for sentence in self.parts[label][part]]
        return Texts.of([sentence for sentence, _ in pairs]), torch.tensor([index for _, index in pairs])

    def _teacher(self, number: int, labels: Sequence[str]) -> ModelTeacher:
        """Fine-tuned on the labels of its own articles; a part of its sentences chooses the epoch."""
        texts, ids = self._texts(labels, 0)
        own = torch.tensor([labels.index(self.labels[index]) for index in ids.tolist()])
        objective = Objective(one_hot(own, len(labels)).float(), torch.ones(len(own)), divergence)
        began = time.perf_counter()
        settings = replace(self.settings, epochs=self.options.teacher_epochs, seed=1000 * (self.seed + 1) + number)
        model = self._trained(labels, texts, objective, settings)
        seconds = time.perf_counter() - began
        teacher = ModelTeacher(
            f"teacher {number + 1}", model, self.tokenizer, labels, max_length=self.options.max_length
        )
        test, ids = self._texts(labels, 1)
        own = torch.tensor([labels.index(self.labels[index]) for index in ids.tolist()])
        tokens = tokenise(test, self.tokenizer, self.options.max_length)
        logits = student_logits(model, tokens, self.tokenizer.pad_token_id)
        self._record(f"teacher {number + 1} on its own labels", _accuracy(logits, own), seconds)
        return teacher

    def _scores(self, teacher: ModelTeacher, texts: Texts, part: str) -> TeacherScores:
        options = self.options
        scores = score_texts(
            teacher, texts, passes=options.passes, top_layers=options.top_layers, folder=options.cache, seed=self.seed
        )
        print(
            f"{teacher.name}, {part}: {scores.computed} texts, {options.passes} passes, {scores.seconds:.1f} s, "
            f"peak memory so far {peak_memory_mb()} MiB",
            flush=True,
        )
        return scores

    def _trained(self, labels: Sequence[str], texts: Texts, objective: Objective, settings: StudentSettings) -> Any:
        model = load_new_classifier(self.options.model, labels, seed=settings.seed)
        tokens = tokenise(texts, self.tokenizer, settings.max_length)
        _, held = texts.split(settings.held_out, settings.seed)
        chosen = set(held.ids)
        rows = [row for row, text_id in enumerate(texts.ids) if text_id in chosen]
        trained = train_student(model, tokens, objective, rows, settings, pad_token_id=self.tokenizer.pad_token_id)
        losses = ", ".join(f"{loss:.4f}" for loss in trained.losses)
        print(
            f"  {len(labels)} labels, {trained.precision}: held-out losses {losses}; epoch {trained.best}", flush=True
        )
        return model

    def _student(self, name: str, labels: Sequence[str], texts: Texts, objective: Objective, answers: Tensor) -> None:
        began = time.perf_counter()
        model = self._trained(labels, texts, objective, self.settings)
        seconds = time.perf_counter() - began
        tokens = tokenise(self.test, self.tokenizer, self.options.max_length)
        logits = student_logits(model, tokens, self.tokenizer.pad_token_id)
        self._record(name, _accuracy(logits, answers), seconds)

    def _record(self, name: str, accuracy: float, seconds: float) -> None:
        self.rows[name] = {"accuracy": accuracy, "seconds": seconds}
        print(f"seed {self.seed}, {name}: {accuracy:.3f} ({seconds:.0f} s)", flush=True)


def _objective(kind: str, scores: Sequence[TeacherScores], union: LabelUnion) -> Objective:
    passes = [each.passes for each in scores if each.passes is not None]
    logits = [each.logits for each in scores]
    return make_objective(kind, logits, union, passes=passes if len(passes) == len(scores) else None)


def _accuracy(outputs: Tensor, answers: Tensor) -> float:
    return (outputs.argmax(dim=1) == answers).float().mean().item()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run and print; returns the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--data", type=Path, default=None, help="folder with WikiText-2's validation.txt and test.txt, or with GLUE")
    add("--task", default=None, help="a classification, whose classes take the articles' place")
    add("--known", nargs="+", default=[], help="with --task: the labels that each teacher knows, joined by +")
    add("--sentences", type=int, default=100, help="training sentences of an article or class")
    add("--test", type=int, default=30, help="test sentences of an article or class")
    add("--most-words", type=int, default=60, help="longer sentences are left out")
    add("--overlap", type=int, default=0, help="articles that both teachers know")
    add("--model", default="minilm", help="pre-trained model of teachers and students")
    add("--rates", default="flat:lr=1e-4", help="rates of teachers and students")
    add("--teacher-epochs", type=int, default=4)
    add("--epochs", type=int, default=4, help="of the students")
    add("--passes", type=int, default=16, help="with dropout on; 0: certainty of one pass without")
    add("--top-layers", type=int, default=None, help="dropout in so many layers only")
    add("--layers", type=int, nargs="+", default=[], help="measure dropout in so many top layers, and train no student")
    add("--max-length", type=int, default=64, help="tokens of a sentence")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--cache", type=Path, default=None, help="folder for the teachers' scores")
    add("--output", type=Path, default=None, help="file for the results (JSON)")
    options = parser.parse_args(arguments)
    if options.layers:
        Run(options, options.seeds[0]).layers()
        return {}
    runs = [Run(options, seed).run() for seed in options.seeds]
    print(f"\n{'':<34}accuracy  spread  seconds")
    table = {}
    for name in runs[0]:
        values = [run[name]["accuracy"] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        seconds = statistics.mean(run[name]["seconds"] for run in runs)
        table[name] = {"accuracy": values, "seconds": seconds}
        print(f"{name:<34}{statistics.mean(values):>8.3f}{spread:>8.3f}{seconds:>9.0f}")
    if options.output is not None:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        result = {"options": settings, "table": table, "environment": describe_environment()}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return table


if __name__ == "__main__":
    main()
