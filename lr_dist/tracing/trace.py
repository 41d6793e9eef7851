"""Which training examples a prediction rests on, and which made the model forget an earlier one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.errors import InfluenceError
from lr_dist.layers import assign_layers
from lr_dist.retention.influence.ekfac import LayerScores, MeanQuery, Queries, stage_influence, two_stage_influence
from lr_dist.retention.influence.factors import Factors, InverseCurvature, fit_factors
from lr_dist.retention.influence.model_stage import ModelStage
from lr_dist.retention.influence.objectives import Batch
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.environment import peak_memory_mb
from lr_dist.tasks import eval_loader
from lr_dist.tracing.kept_run import KeptRun, collated, objective_of
from lr_dist.tracing.pretraining import MaskedBackbone, Pretraining
from lr_dist.tracing.settings import TraceSettings

_AT_ONCE = 10
# In place of a stage's number.
PRETRAINING = -1


class Tracer:
    """Answers questions about the model after a stage of a run.

    Args:
        run: with kept weights.
        stage: number of the later stage, from 1 (0 is the first); the earlier one is the stage before it.
        settings: of the computation.
        factors: folder where factors are kept and found again.
        note: receives a line on what is done.
        pretraining: texts of the pre-training, which is then the earlier stage; the later one can be the first.

    Raises:
        InfluenceError: no such stage, or none before it.
    """

    def __init__(
        self,
        run: KeptRun,
        stage: int,
        settings: TraceSettings,
        factors: Path,
        note: Callable[[str], None] = lambda line: None,
        *,
        pretraining: Pretraining | None = None,
    ) -> None:
        checked_stage(run, stage, pretraining=pretraining is not None)
        self.run, self.later, self.settings = run, stage, settings
        self.earlier = stage - 1 if pretraining is None else PRETRAINING
        self._pretraining = pretraining
        self.mixed = run.bench.precision.chosen == "bf16-mixed"
        self._folder, self._note = factors, note
        self._stages: dict[int, tuple[ModelStage, list[int], Factors]] = {}
        self.seconds: dict[str, float] = {}
        self.processor_seconds: dict[str, float] = {}

    def predictions(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """For texts of the later task: the earlier stage's examples (or texts) that its prediction rests on."""
        if not texts:
            return []
        rows = [self.run.encode(self.later, text) for text in texts]
        earlier, drawn, factors = self._stage(self.earlier)
        later, _, after = self._stage(self.later)
        found = []
        pull = self.settings.pull * after.mean_value()
        inverse = InverseCurvature(factors, factors.relative_damping(self.settings.damping))
        began = _clocks()
        for start in range(0, len(rows), _AT_ONCE):
            batches, predicted = self._predicted(later.model, rows[start : start + _AT_ONCE])
            queries = Queries(batches, self._support)
            scores = two_stage_influence(earlier, later, inverse, after, queries, pull=pull, mixed=self.mixed)
            for place, (text, said) in enumerate(zip(texts[start:], predicted, strict=False)):
                sides = self._sides(scores, place, self.earlier, drawn, ("supports it", "speaks against it"))
                found.append({"text": text, **said, **sides})
        self._took("predictions", began)
        return found

    def forgotten(self, texts: Sequence[tuple[str, float | None]]) -> list[dict[str, Any]]:
        """For examples of the earlier task: the later stage's examples that raised its loss most.

        Args:
            texts: text and label; without a label, the one that was predicted after the earlier stage.
        """
        if not texts:
            return []
        task = self.run.bench.tasks[self.earlier]
        objective = objective_of(task)
        rows = [self.run.encode(self.earlier, text) for text, _ in texts]
        later, drawn, factors = self._stage(self.later)
        before = self.run.model(self.earlier)
        inverse = InverseCurvature(factors, factors.constant_damping(self.settings.pull * factors.mean_value()))
        began = _clocks()
        found: list[dict[str, Any]] = []
        # A pass over the candidates for several texts at once.
        for start in range(0, len(rows), _AT_ONCE):
            asked = list(zip(texts, rows, strict=True))[start : start + _AT_ONCE]
            known = [self._label(before, row) if label is None else label for (_, label), row in asked]
            batches = [self._batch(self.earlier, [row], label) for (_, row), label in zip(asked, known, strict=True)]
            scores = stage_influence(later, inverse, Queries(batches, objective.losses), mixed=self.mixed)
            for place, ((text, _), _) in enumerate(asked):
                with torch.no_grad():
                    models = (before, later.model.eval())
                    was, now = (float(objective.losses(model, batches[place])) for model in models)
                sides = self._sides(scores, place, self.later, drawn, ("made it forget", "helped to keep it"))
                label_text = self.run.label(self.earlier, known[place])
                found.append({"text": text, "label": label_text, "loss_before": was, "loss_after": now, **sides})
        self._took("forgetting", began)
        return found

    def most_forgotten(self, count: int) -> list[tuple[str, float | None]]:
        """Validation examples of the earlier task whose loss rose most in the later stage, with their labels."""
        if count <= 0:
            return []
        tokens, task = self.run.bench.tokens[self.earlier], self.run.bench.tasks[self.earlier]
        objective, models = objective_of(task), (self.run.model(self.earlier), self.run.model(self.later))
        split = tokens.validation.rows_at(range(min(len(tokens.validation), self.settings.candidates)))
        rises: list[float] = []
        for row in range(len(split)):
            batch = self._batch(self.earlier, [split[row]], float(split.labels[row]))
            with torch.no_grad():
                was, now = (float(objective.losses(model, batch)) for model in models)
            rises.append(now - was)
        order = sorted(range(len(rises)), key=lambda row: -rises[row])[:count]
        return [(self.run.text(self.earlier, row, "validation"), float(split.labels[row])) for row in order]

    def forgetting_makers(self) -> list[int]:
        """Numbers of the later stage's candidates, those first that did most to the forgetting of the earlier task.

        They are ranked by their influence on the mean loss of examples of the earlier task that its score is not of.
        """
        tokens, task = self.run.bench.tokens[self.earlier], self.run.bench.tasks[self.earlier]
        held_out = tokens.validation if self.run.bench.settings.evaluate_on == "dev" else tokens.dev
        split = held_out.rows_at(range(min(len(held_out), self.settings.candidates)))
        objective = objective_of(task)
        later, drawn, factors = self._stage(self.later)
        inverse = InverseCurvature(factors, factors.constant_damping(self.settings.pull * factors.mean_value()))
        query = MeanQuery(list(eval_loader(split, self.settings.batch_size, tokens.pad_token_id)), objective.losses)
        began = _clocks()
        scores = stage_influence(later, inverse, query, mixed=self.mixed).total[0]
        self._took("forgetting-makers", began)
        return [drawn[place] for place in scores.argsort(descending=True).tolist()]

    def about(self) -> dict[str, Any]:
        """What the answers depend on, as plain data."""
        stages = {}
        for index, (stage, drawn, factors) in sorted(self._stages.items()):
            stages[self.name(index)] = {
                "stage": index + 1,
                "candidates": len(drawn),
                "training_examples": self._count(index),
                **({"masks": self.settings.masks} if index == PRETRAINING else {}),
                "layers": list(stage.layers),
                "left_out": dict(stage.excluded),
                "mean_eigenvalue": factors.mean_value(),
                "damping": factors.relative_damping(self.settings.damping),
                "pull": self.settings.pull * factors.mean_value(),
                "factors": {k: v for k, v in factors.about.items() if k not in ("layers", "left_out")},
            }
        return {
            "stages": stages,
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
            "process_peak_memory_mb": peak_memory_mb(),
        }

    def name(self, index: int) -> str:
        """Of a stage, as tables show it."""
        return "the pre-training text" if index == PRETRAINING else self.run.bench.tasks[index].name

    def _count(self, index: int) -> int | None:
        """Training examples of a stage; of the pre-training it is not known."""
        return None if index == PRETRAINING else len(self.run.bench.tokens[index].train)

    def _candidates(self, index: int) -> tuple[ModelStage, list[int], ModelStage]:
        """The candidates, their numbers, and those of them that the factors are fitted on."""
        if index == PRETRAINING:
            assert self._pretraining is not None
            stage = self._pretraining.stage
            numbers = list(range(stage.examples))
            some = numbers[:: -(-len(numbers) // self.settings.factor_examples)]
            rows = [stage.rows[text * stage.repeats + mask] for text in some for mask in range(stage.repeats)]
            return stage, numbers, replace(stage, rows=rows)
        drawn = self.run.draw(index, self.settings.candidates, self.settings.draw_seed)
        model = self.run.model(index)
        stage = self.run.stage(model, index, drawn, batch_size=self.settings.batch_size)
        # Evenly over the lengths, by which the candidates are sorted.
        fitted = drawn[:: -(-len(drawn) // self.settings.factor_examples)]
        return stage, drawn, self.run.stage(model, index, fitted, batch_size=self.settings.batch_size)

    def _stage(self, index: int) -> tuple[ModelStage, list[int], Factors]:
        if index not in self._stages:
            name = self.name(index)
            stage, drawn, base = self._candidates(index)
            self._note(
                f"Factors of {name}: {base.examples} examples, {len(stage.layers)} layers (kept in {self._folder})"
            )
            began = _clocks()
            factors = fit_factors(
                base,
                self._folder,
                labels=self.settings.labels,  # type: ignore[arg-type]
                seed=self.settings.draw_seed,
                mixed=self.mixed,
            )
            self._took(f"factors of {name}", began)
            self._stages[index] = stage, drawn, factors
        return self._stages[index]

    def _predicted(
        self, model: nn.Module, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Batch], list[dict[str, Any]]]:
        """A batch for each text, labelled with what is predicted, and the prediction in words."""
        task = self.run.bench.tasks[self.later]
        batches: list[Batch] = []
        said: list[dict[str, Any]] = []
        for row in rows:
            label = self._label(model, row, self.later)
            batch = self._batch(self.later, [row], label)
            with torch.no_grad():
                value = float(self._support(model, batch))
            batches.append(batch)
            more = {"probability": math.exp(value)} if task.kind == "classification" else {}
            said.append({"prediction": self.run.label(self.later, label), **more})
        return batches, said

    def _support(self, model: nn.Module, batch: Batch) -> Tensor:
        """What a prediction is measured by [rows]: the log-probability of its class, or the predicted number."""
        task = self.run.bench.tasks[self.later]
        objective = objective_of(task)
        if task.kind == "regression":
            return objective.outputs(model, batch).squeeze(-1)
        return -objective.losses(model, batch)

    def _label(self, model: nn.Module, row: Mapping[str, Any], stage: int | None = None) -> float:
        index = self.earlier if stage is None else stage
        task = self.run.bench.tasks[index]
        with torch.no_grad():
            outputs = objective_of(task).outputs(model.eval(), self._batch(index, [row], 0))
        return float(outputs.argmax()) if task.kind == "classification" else float(outputs)

    def _batch(self, stage: int, rows: Sequence[Mapping[str, Any]], label: float) -> dict[str, Tensor]:
        tokens = self.run.bench.tokens[stage]
        bare = [{name: value for name, value in row.items() if name != "label"} for row in rows]
        return collated(bare, label, tokens.pad_token_id, whole=tokens.task.kind == "classification")

    def _sides(
        self, scores: LayerScores, query: int, stage: int, drawn: Sequence[int], words: tuple[str, str]
    ) -> dict[str, Any]:
        """The examples with the largest scores of either sign, in words."""
        total = scores.total[query]
        order = total.argsort(descending=True).tolist()
        group_of = _groups(self._stages[stage][0].model)
        count = self._count(stage)
        largest = float(total.abs().max()) or 1.0

        def entry(place: int, word: str) -> dict[str, Any]:
            parts: dict[str, float] = {}
            for name, values in scores.layers.items():
                group = group_of(name)
                parts[group] = parts.get(group, 0.0) + float(values[query, place])
            size = sum(abs(value) for value in parts.values()) or 1.0
            row = drawn[place]
            return {
                "row": row,
                **self._words(stage, row),
                "effect": word,
                "score": float(total[place]),
                "strength": float(total[place]) / largest,
                "estimated_change_if_removed": None if count is None else -float(total[place]) / count,
                "layers": {group: value / size for group, value in parts.items()},
            }

        top = self.settings.top
        return {
            "for": [entry(place, words[0]) for place in order[:top] if total[place] > 0],
            "against": [entry(place, words[1]) for place in order[::-1][:top] if total[place] < 0],
        }

    def _words(self, stage: int, row: int) -> dict[str, str]:
        """An example's text and label."""
        if stage == PRETRAINING:
            assert self._pretraining is not None
            return {"text": self._pretraining.texts[row], "label": ""}
        value = float(self.run.bench.tokens[stage].train.labels[row])
        return {"text": self.run.text(stage, row), "label": self.run.label(stage, value)}

    def _took(self, what: str, began: tuple[float, float]) -> None:
        for known, now, before in zip((self.seconds, self.processor_seconds), _clocks(), began, strict=True):
            known[what] = round(known.get(what, 0.0) + now - before, 3)


def checked_stage(run: KeptRun, stage: int, *, pretraining: bool = False) -> int:
    """The number of a later stage (from 0), checked.

    Raises:
        InfluenceError: no such stage, or none before it.
    """
    first = 0 if pretraining else 1
    if not first <= stage < len(run.bench.tasks):
        raise InfluenceError(
            f"The run has {len(run.bench.tasks)} stage(s), so the later stage is one from {first + 1} on, not "
            f"{stage + 1}."
        )
    return stage


def _clocks() -> tuple[float, float]:
    """Wall time, and this process's time on all processors, which others that are running affect less; seconds."""
    return time.perf_counter(), time.process_time()


def _groups(model: nn.Module) -> Callable[[str], str]:
    """Path of a layer in the module -> its group by depth."""
    assert isinstance(model, (SequenceClassifier, MaskedBackbone))
    group_of = assign_layers(model.backbone).group_of
    return lambda name: group_of.get(f"{name.removeprefix('backbone.')}.weight", "head")
