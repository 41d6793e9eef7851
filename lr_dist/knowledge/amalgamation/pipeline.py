"""`amalgamate`: from teachers and unlabelled texts to a student's folder; what `lr-dist amalgamate` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lr_dist.errors import PATH, ConfigurationError, ModelLoadError, shown
from lr_dist.knowledge.amalgamation.certainties import certainty
from lr_dist.knowledge.amalgamation.config import AmalgamationConfig
from lr_dist.knowledge.amalgamation.labels import LabelUnion
from lr_dist.knowledge.amalgamation.learned import Learned, warn_if_little, what_was_learned
from lr_dist.knowledge.amalgamation.load import load_teacher
from lr_dist.knowledge.amalgamation.scores import TeacherScores, score_texts
from lr_dist.knowledge.amalgamation.student import TrainedStudent, student_logits, train_student
from lr_dist.knowledge.amalgamation.targets import Objective, make_objective
from lr_dist.knowledge.amalgamation.teacher import Teacher
from lr_dist.knowledge.amalgamation.texts import Texts, tokenise
from lr_dist.models import load_new_classifier, load_tokenizer, weights_fingerprint
from lr_dist.reading import is_file
from lr_dist.runs.atomic import write_json
from lr_dist.sequence.environment import describe_environment, peak_memory_mb
from lr_dist.sequence.output import checked_folder, locked
from lr_dist.tasks import load_tasks

RESULT = "amalgamation.json"


class AmalgamationListener:
    """Told how far an amalgamation is; every method may be overridden."""

    def scoring_started(self, teacher: Teacher, texts: int) -> None:
        """A teacher begins to score so many different texts."""

    def scored(self, texts: int) -> None:
        """So many more texts have scores."""

    def scoring_ended(self, teacher: Teacher, scores: TeacherScores) -> None:
        """A teacher is done."""

    def training_step(self, step: int, steps: int, losses: tuple[float, ...]) -> None:
        """The student took a step; `losses` are those on the held-out texts after the epochs so far."""


@dataclass(frozen=True)
class Amalgamated:
    """The outcome of an amalgamation.

    Attributes:
        folder: with the student and `amalgamation.json`.
        labels: the union of the teachers' labels, in the order of the student's outputs.
        teachers: plain data on each teacher: labels, seconds, mean certainty, how often it was the most certain one.
        trained: how the training went.
        texts, held_out: number of texts, and of those among them that were held out.
        agreement: share of the held-out texts for which student and target have the same most probable label.
        learned: how much of the targets of the held-out texts the student has learned.
    """

    folder: Path
    labels: tuple[str, ...]
    teachers: tuple[Mapping[str, Any], ...]
    trained: TrainedStudent
    texts: int
    held_out: int
    agreement: float | None
    learned: Learned

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a result file."""
        return {
            "schema_version": 1,
            "labels": list(self.labels),
            "teachers": [dict(each) for each in self.teachers],
            "training": asdict(self.trained),
            "texts": self.texts,
            "held_out": self.held_out,
            "agreement": self.agreement,
            "learned": asdict(self.learned),
        }


def amalgamate(
    config: AmalgamationConfig,
    output: str | Path,
    *,
    teachers: Sequence[Teacher] | None = None,
    texts: Texts | None = None,
    listener: AmalgamationListener | None = None,
    command: str = "",
) -> Amalgamated:
    """Score the texts with every teacher, train a student, and save it as a transformers folder.

    A call that was stopped goes on where it was: scores are kept in `output/scores`, a checkpoint of the training after
    each epoch in `output/training`.

    Args:
        config: settings; teachers and texts in it are loaded unless the next two arguments give them.
        output: folder of the student, which `AutoModelForSequenceClassification.from_pretrained` loads.
        teachers: ready ones, such as functions; `config.teachers` then only names them.
        texts: ready ones; `config.text` then only names them.
        listener: told about the progress.
        command: the command line, for the result file.

    Raises:
        TeacherError, DropoutOffError, EmptyTextError, NonFiniteScoresError: teachers or texts that cannot be used.
        ConfigurationError: an output that is a teacher's folder, or cannot be written.
        LRDistError: what loading models and tasks raises.

    Warns:
        UndertrainedStudentWarning: the student has learned next to nothing of its teachers' labels.
    """
    listener = listener or AmalgamationListener()
    folder = checked_folder(output)
    for each in (*config.teachers, config.student):
        if _same_place(each, folder):
            raise ConfigurationError(f"--output {shown(str(output), PATH)} is the folder of a model that is read.")
    with locked(folder):
        texts = texts or load_texts(config)
        teachers = teachers or [_loaded(each, config) for each in config.teachers]
        union = LabelUnion.of({f"{k}. {each.name}": each.labels for k, each in enumerate(teachers, start=1)})
        # Before the teachers' long work: what would fail for the student fails now.
        model = load_new_classifier(config.student, union.labels, seed=config.settings.seed)
        tokenizer = load_tokenizer(config.student)
        if tokenizer.pad_token_id is None:
            raise ModelLoadError(f"The tokenizer of {config.student} has no padding token, so texts cannot be batched.")
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id  # without it, decoders take no batches
        info = {"name": config.student, "fingerprint": weights_fingerprint(model)}
        tokens = tokenise(texts, tokenizer, int(min(config.settings.max_length, tokenizer.model_max_length)))
        scores = [_score(each, texts, config, folder / "scores", listener) for each in teachers]
        objective = objective_of(scores, union, config)
        held = held_out_rows(texts, config)
        trained = train_student(
            model,
            tokens,
            objective,
            held,
            config.settings,
            pad_token_id=int(tokenizer.pad_token_id),
            folder=folder / "training",
            progress=listener.training_step,
        )
        outputs, rows = student_logits(model, tokens.rows_at(held), int(tokenizer.pad_token_id)), torch.tensor(held)
        learned = what_was_learned(config.target, objective, rows, outputs, union, temperature=config.temperature)
        agreement = None
        if config.target != "uhc":  # whose target is no distribution over the union
            agreement = (outputs.argmax(1) == objective.targets[held].argmax(1)).float().mean().item()
        model.cpu().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        result = Amalgamated(
            folder, union.labels, tuple(_facts(teachers, scores)), trained, len(texts), len(held), agreement, learned
        )
        about = {
            "config": config.to_dict(),
            "student": info,
            "command": command,
            "peak_memory_mb": peak_memory_mb(),
            "environment": describe_environment(),
        }
        write_json(folder / RESULT, {**result.to_dict(), **about})
        warn_if_little(config.target, learned, config.settings.epochs)
    return result


def load_texts(config: AmalgamationConfig) -> Texts:
    """The texts that the settings name, at most `limit` of them.

    Raises:
        EmptyTextError: no texts.
        UnreadableFileError: a file that cannot be read.
        UnknownTaskError: neither a file nor a task.
        ConfigurationError: a table.
    """
    path = Path(config.text)
    if path.suffix.lower() in (".csv", ".json", ".jsonl", ".parquet"):
        raise ConfigurationError(
            f"--text {shown(config.text, PATH)} is a table. Give a file with one text a line (*.txt; *.tsv for pairs), "
            "or a task of your own, NAME=FOLDER, whose labels are not read."
        )
    if "=" not in config.text and (path.suffix.lower() in (".txt", ".tsv") or is_file(path)):
        texts = Texts.of_file(config.text)
    else:
        parts = [Texts.of_task(task) for task in load_tasks(config.text.split("+"), data_dir=config.data_dir)]
        texts = Texts(tuple(pair for part in parts for pair in part.pairs))
    return texts if config.limit is None else texts.drawn(config.limit, config.settings.seed)


def objective_of(scores: Sequence[TeacherScores], union: LabelUnion, config: AmalgamationConfig) -> Objective:
    """The objective of the target that the settings name."""
    passes = [each.passes for each in scores if each.passes is not None]
    return make_objective(
        config.target,
        [each.logits for each in scores],
        union,
        passes=passes if len(passes) == len(scores) and config.passes_needed else None,
        tau=config.tau,
        temperature=config.temperature,
    )


def held_out_rows(texts: Texts, config: AmalgamationConfig) -> list[int]:
    """Numbers of the texts that are held out."""
    _, held = texts.split(config.settings.held_out, config.settings.seed)
    chosen = set(held.ids)
    return [row for row, text_id in enumerate(texts.ids) if text_id in chosen]


def _loaded(spec: str, config: AmalgamationConfig) -> Teacher:
    length = config.settings.max_length
    return load_teacher(spec, model=config.teacher_model, data_dir=config.data_dir, max_length=length)


def _score(
    teacher: Teacher, texts: Texts, config: AmalgamationConfig, folder: Path, listener: AmalgamationListener
) -> TeacherScores:
    listener.scoring_started(teacher, len(set(texts.ids)))
    scores = score_texts(
        teacher,
        texts,
        passes=config.passes_needed,
        top_layers=config.top_layers,
        seed=config.settings.seed,
        batch_size=config.scoring_batch,
        folder=folder,
        progress=listener.scored,
    )
    listener.scoring_ended(teacher, scores)
    return scores


def _facts(teachers: Sequence[Teacher], scores: Sequence[TeacherScores]) -> list[dict[str, Any]]:
    measured = [torch.softmax(each.logits, -1) if each.passes is None else each.passes for each in scores]
    certainties = torch.stack([certainty(each) for each in measured], dim=1)
    most = certainties.argmax(dim=1)
    return [
        {
            "name": teacher.name,
            "labels": list(teacher.labels),
            "fingerprint": teacher.fingerprint,
            "seconds": each.seconds,
            "scored_now": each.computed,
            "mean_certainty": certainties[:, k].mean().item(),
            "most_certain": (most == k).float().mean().item(),
        }
        for k, (teacher, each) in enumerate(zip(teachers, scores, strict=True))
    ]


def _same_place(model: str, folder: Path) -> bool:
    try:
        return Path(model).expanduser().resolve() == folder.resolve()
    except (OSError, RuntimeError, ValueError):
        return False
