"""`Material`: model, prototypes and task of an experiment, loaded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lr_dist.errors import ConfigurationError, KnowledgeError
from lr_dist.knowledge.informed import noise
from lr_dist.knowledge.informed.config import AUTO, INFORMED, MIXED, NONE, SHUFFLED, UNRELATED, InformedConfig
from lr_dist.knowledge.prototypes.examples import PAIRED
from lr_dist.knowledge.prototypes.files import read_graph
from lr_dist.knowledge.prototypes.graph import KnowledgeGraph
from lr_dist.knowledge.prototypes.prototypes import Prototypes, make_prototypes
from lr_dist.knowledge.prototypes.templates import Templates
from lr_dist.layers import assign_layers
from lr_dist.methods import Needs
from lr_dist.models import load_backbone, load_tokenizer, weights_fingerprint
from lr_dist.runs.precision import choose_precision
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.fast.view import view_of
from lr_dist.sequence.seeds import derive_seed
from lr_dist.tasks import Task, TokenizedTask, TokenSplit, baseline_scores, load_task, tokenize_task
from lr_dist.tasks.draw import draw_order, limited_rows, with_fewer_scored
from lr_dist.tasks.task import column_values, make_split, take_rows, text_keys
from lr_dist.tasks.token_cache import FlatRows

# Of every run: it is scored on dev and on the official split.
NEEDS = Needs(held_out=True)
CHARACTERS, WORDS = "characters", "words"
# Where both follow from "it is not entailed", as in GLUE's rte and qnli.
_NOT_ENTAILED = {"entailment": "entailment", "neutral": "not_entailment", "contradiction": "not_entailment"}


@dataclass(frozen=True)
class Material:
    """What every run of an experiment uses.

    Attributes:
        config: the experiment; its precision is the chosen one.
        bench: with the tasks prototypes, task, unrelated and two noisy copies of the task; runs take parts of it.
        prototypes: with the task's classes, if they have the same names.
        shares_head: whether prototypes and task have the same classes.
        rows: (limit, seed) -> the examples of a draw, as row numbers of the task's train in `bench`.
        knowledge: what the graph holds, for the result file.
        task_fingerprint: of the task with all of its training examples.
    """

    config: InformedConfig
    bench: Bench
    prototypes: Prototypes
    shares_head: bool
    rows: Mapping[tuple[int, int], Sequence[int]]
    knowledge: dict[str, Any]
    task_fingerprint: str

    @classmethod
    def prepare(cls, config: InformedConfig) -> Material:
        """Load and check everything.

        Raises:
            ConfigurationError: a regression, parts that the model does not have, arms that the labels do not allow.
            LRDistError: knowledge, model or task that cannot be loaded.
        """
        templates = Templates.read(config.templates)
        graph = read_graph(config.knowledge, templates.own_relations)
        whole = load_task(config.task, data_dir=config.data_dir, dev_size=config.dev_size)
        if config.eval_limit is not None:
            whole = with_fewer_scored(whole, config.settings.evaluate_on, config.eval_limit)
        if whole.kind != "classification":
            raise ConfigurationError(
                f"{whole.name} is a regression; prototypes of texts are classes. Give another task."
            )
        tested = [*text_keys(whole.dev), *text_keys(whole.validation)]
        made = make_prototypes(
            graph, kind_of(config.kind, graph, whole), templates, per_class=config.per_class, tested=tested
        )
        names = class_names(made.classes, whole.classes)
        if names is None and MIXED in config.arms:
            raise ConfigurationError(
                f"The prototypes' classes ({', '.join(made.classes)}) are not those of {whole.name} "
                f"({', '.join(whole.classes)}), so they cannot be in one training set. Leave out the arm {MIXED}: "
                f"--arms {' '.join(arm for arm in config.arms if arm != MIXED)}."
            )
        prototypes = made if names is None else made.renamed(whole.classes, names)
        task, rows = _pool(whole, config)
        tokenizer, backbone = load_tokenizer(config.model), load_backbone(config.model)
        length = min(config.settings.max_length, tokenizer.model_max_length)
        precision = choose_precision(config.settings.precision)
        tasks = [
            prototypes.to_task("prototypes", task.head if names is not None else "prototypes"),
            task,
            load_task(config.unrelated, data_dir=config.data_dir),
            _noisy(task, CHARACTERS, config.character_noise),
            _noisy(task, WORDS, config.word_drop),
        ]
        if tasks[2].name == task.name:
            raise ConfigurationError(f"unrelated is {task.name}, which is the task itself. Give another one.")
        layers = assign_layers(backbone)
        bench = Bench(
            settings=replace(config.settings, max_length=length, precision=precision.chosen),
            precision=precision,
            backbone=backbone,
            tokenizer=tokenizer,
            model_info={
                "name": config.model,
                "class": type(backbone).__name__,
                "fingerprint": weights_fingerprint(backbone),
                "num_layers": layers.num_layers,
                "parameters": sum(p.numel() for p in backbone.parameters()),
            },
            tasks=tasks,
            tokens=[tokenize_task(each, tokenizer, length) for each in tasks],
            baseline=[baseline_scores(each, config.settings.evaluate_on)[each.primary] for each in tasks],
        )
        view = view_of(bench.backbone, tokenizer, bench.tokens, config.settings.evaluate_on, NEEDS)
        knowledge = {
            "source": config.knowledge,
            "facts": len(graph.facts),
            "relations": {
                relation: len(graph.of(relation)) for relation in dict.fromkeys(f.relation for f in graph.facts)
            },
            "fingerprint": graph.fingerprint,
            **prototypes.to_dict(),
        }
        return cls(
            config, bench.with_view(view, NEEDS), prototypes, names is not None, rows, knowledge, whole.fingerprint
        )

    @property
    def task(self) -> Task:
        """The task with scarce data."""
        return self.bench.tasks[1]

    @property
    def tokens(self) -> TokenizedTask:
        """The task's tokens, as runs see them."""
        return self.bench.view(NEEDS).tokens[1]

    @property
    def noises(self) -> list[str]:
        """The tests of robustness."""
        shares = {CHARACTERS: self.config.character_noise, WORDS: self.config.word_drop}
        return [name for name, share in shares.items() if share]

    def noisy(self, name: str) -> TokenizedTask:
        """The task with noise: `characters` or `words`."""
        return self.bench.view(NEEDS).tokens[{CHARACTERS: 3, WORDS: 4}[name]]

    def stage_tokens(self, arm: str, seed: int) -> TokenizedTask:
        """What an arm with two stages learns first: prototypes, also with shuffled labels, or unrelated text."""
        view = self.bench.view(NEEDS)
        learned = view.tokens[0]
        if arm == UNRELATED:
            other = view.tokens[2]
            if len(other.train) < len(learned.train):  # again and again, for as many steps
                return replace(other, train=_repeated(other.train, len(learned.train), seed, UNRELATED))
            order = draw_order(len(other.train), f"unrelated {seed}")[: len(learned.train)]
            return replace(other, train=other.train.rows_at(order))
        if arm == SHUFFLED:
            order = draw_order(len(learned.train), f"shuffled {seed}")
            return replace(learned, train=TokenSplit(learned.train.rows, learned.train.labels[order]))
        return learned

    def task_tokens(self, limit: int, seed: int) -> TokenizedTask:
        """The task with the drawn examples."""
        return replace(self.tokens, train=self.tokens.train.rows_at(self.rows[limit, seed]))

    def mixed_tokens(self, limit: int, seed: int) -> TokenizedTask:
        """Prototypes and drawn examples in one training set, for one epoch of as many steps as both stages have.

        The share of the examples is their share of the steps. Both are repeated as often as that takes.
        """
        first, second = self.stage_steps(INFORMED), self.steps(limit, seed)
        size = self.bench.settings.batch_size
        examples = self.tokens.train.rows_at(self.rows[limit, seed])
        learned = self.bench.view(NEEDS).tokens[0].train
        parts = [_repeated(learned, first * size, seed, "prototypes"), _repeated(examples, second * size, seed, "task")]
        return replace(self.tokens, train=_joined(parts))

    def stage_steps(self, arm: str) -> int:
        """Steps of the first stage; 0 if there is none. Those of `mixed` are in its one stage."""
        if arm in (NONE, MIXED):
            return 0
        return self.config.stage_epochs * self._batches(len(self.bench.tokens[0].train))

    def steps(self, limit: int, seed: int) -> int:
        """Steps on the task."""
        return self.epochs(limit, seed) * self._batches(len(self.rows[limit, seed]))

    def epochs(self, limit: int, seed: int) -> int:
        """Passes over the drawn examples."""
        return max(self.bench.settings.epochs, -(-self.config.min_steps // self._batches(len(self.rows[limit, seed]))))

    def _batches(self, rows: int) -> int:
        return -(-rows // self.bench.settings.batch_size)

    def identity(self, arm: str, *, tuning: bool) -> dict[str, Any]:
        """What determines the runs of an arm, beside draw and rates; other draws, limits and arms do not."""
        config = self.config
        content: dict[str, Any] = {
            "model": self.bench.model_info["fingerprint"],
            "task": self.task_fingerprint,
            "settings": self.bench.settings.identity(),
            "min_steps": config.min_steps,
        }
        if arm != NONE:
            content |= {
                "prototypes": self.bench.tasks[0].fingerprint,
                "shares_head": self.shares_head,
                "stage_epochs": config.stage_epochs,
            }
        if arm == UNRELATED:
            content["unrelated"] = self.bench.tasks[2].fingerprint
        if not tuning:
            content["noise"] = [config.character_noise, config.word_drop]
            content["curve"] = [config.curve_points, config.curve_rows]
        return content


def kind_of(kind: str, graph: KnowledgeGraph, task: Task) -> str:
    """The kind of prototypes for a task.

    Raises:
        KnowledgeError: single texts for a task on pairs, or the other way round.
    """
    pairs = task.num_texts == 2
    if kind == AUTO:
        return "pairs" if pairs else "polarity" if graph.of("polarity") else "statements"
    if pairs != (kind in PAIRED):
        raise KnowledgeError(
            f"{task.name} is on {'pairs of texts' if pairs else 'single texts'}, and prototypes of the kind {kind} are "
            f"not. Give {' or '.join(PAIRED) if pairs else 'statements or polarity'}."
        )
    return kind


def class_names(own: Sequence[str], others: Sequence[str]) -> dict[str, str] | None:
    """Class of the prototypes -> class of the task; None if they have other names."""
    if set(own) == set(others):
        return {name: name for name in own}
    if set(own) == set(_NOT_ENTAILED) and set(others) == set(_NOT_ENTAILED.values()):
        return dict(_NOT_ENTAILED)
    return None


def _pool(whole: Task, config: InformedConfig) -> tuple[Task, dict[tuple[int, int], list[int]]]:
    """The task with only those examples that a draw uses, and the draws in it."""
    labels = column_values(whole.train, "label")
    largest = max(config.limits)
    if largest > len(labels):
        raise ConfigurationError(
            f"{whole.name} has {len(labels):,} training examples beside dev, fewer than the limit {largest}. Give "
            "lower limits."
        )
    drawn = {
        (limit, seed): limited_rows(whole.name, labels, len(labels), limit, seed)
        for limit in config.limits
        for seed in (*config.draws, *config.tuning_draws)
    }
    used = sorted({row for rows in drawn.values() for row in rows})
    place = {row: index for index, row in enumerate(used)}
    task = replace(whole, train=take_rows(whole.train, used))
    return task, {key: [place[row] for row in rows] for key, rows in drawn.items()}


def _noisy(task: Task, kind: str, share: float) -> Task:
    """The task with noise in validation and dev."""
    change = noise.character_noise if kind == CHARACTERS else noise.word_drop
    splits = {}
    for name in ("dev", "validation"):
        split = getattr(task, name)
        texts = [
            [change(text, share, f"{name} {column}") for text in column_values(split, column)]
            for column in ("text_a", "text_b")
            if column in split.column_names
        ]
        labels = column_values(split, "label")
        splits[name] = make_split(texts[0], texts[1] if len(texts) == 2 else None, labels, task.kind)
    return replace(task, name=f"{task.name} with noise in {kind}", train=task.dev, **splits)


def _repeated(split: TokenSplit, count: int, seed: int, key: str) -> TokenSplit:
    """So many rows: the split again and again, each time in another order."""
    rng = np.random.default_rng(derive_seed(seed, "mixed", key))
    order = np.concatenate([rng.permutation(len(split)) for _ in range(-(-count // len(split)))])[:count]
    return split.rows_at(order.tolist())


def _joined(splits: Sequence[TokenSplit]) -> TokenSplit:
    """One split after the other."""
    features = {
        name: np.concatenate([split.rows.features[name] for split in splits]) for name in splits[0].rows.features
    }
    lengths = np.concatenate([split.lengths for split in splits])
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return TokenSplit(FlatRows(features, offsets), torch.cat([split.labels for split in splits]))
