"""`KeptRun`: a run of a comparison with the weights after each of its stages."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lr_dist.errors import InfluenceError, InvalidResultError, ModelMismatchError, listed, shown
from lr_dist.reading import expanded, is_file
from lr_dist.retention.influence.model_stage import ModelStage
from lr_dist.retention.influence.objectives import Batch, Classification, Objective, Regression
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.keep_stages import stage_file, weights_folder
from lr_dist.sequence.result import ComparisonResult
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.tasks import Task
from lr_dist.tasks.batches import Collator

# Between the two texts of a pair, where a text is typed.
PAIR = "||"


@dataclass(frozen=True)
class KeptRun:
    """A run whose weights were kept.

    Attributes:
        folder: of the comparison.
        result: of the comparison.
        run: the entry of `result.runs`.
        bench: model, tasks and tokens.
        weights: folder with the files of the stages.
    """

    folder: Path
    result: ComparisonResult
    run: Mapping[str, Any]
    bench: Bench
    weights: Path

    @classmethod
    def open(cls, folder: str | Path, *, arm: str | None = None, seed: int | None = None) -> KeptRun:
        """Find a run and load what it started from.

        Args:
            folder: output of a comparison that kept the weights.
            arm: label of the arm; by default the first with weights.
            seed: of the run; by default the first with weights.

        Raises:
            InvalidResultError: no comparison in the folder, or its model or data are no longer the same.
            InfluenceError: no such run with kept weights.
        """
        place = expanded(folder)
        file = place / "result.json"
        if not is_file(file):
            raise InvalidResultError(f"There is no file {file}. Give the output folder of `lr-dist compare`.")
        result = ComparisonResult.load(file)
        run = _chosen(place, result, arm, seed)
        config = result.config
        known = SequenceSettings.__dataclass_fields__
        bench = Bench.prepare(
            config["model"],
            config["tasks"],
            SequenceSettings(**{name: value for name, value in config.items() if name in known}),
            limit=config.get("limit"),
            eval_limit=config.get("eval_limit"),
            dev_size=config.get("dev_size"),
            data_dir=config.get("data_dir"),
            data_seed=config.get("data_seed", 0),
            start=config.get("start"),
        )
        changed = [
            task.name
            for task, before in zip(bench.tasks, result.tasks, strict=True)
            if task.fingerprint != before["fingerprint"]
        ]
        if bench.model_info["fingerprint"] != result.model["fingerprint"]:
            changed.append(f"the weights of {config['model']}")
        if changed:
            raise InvalidResultError(
                f"{listed(changed)} are not what the comparison in {place} was made with. Influence needs the same "
                "model and data."
            )
        return cls(place, result, run, bench, weights_folder(place, str(run["identity"])))

    def model(self, stage: int) -> SequenceClassifier:
        """The model after a stage (from 0), on the CPU, in evaluation mode.

        Raises:
            ModelMismatchError: the file holds weights of another model.
        """
        from safetensors.torch import load_file

        module = self._skeleton()
        path = stage_file(self.weights, stage)
        try:
            module.load_state_dict(load_file(path))
        except OSError as error:
            raise InfluenceError(
                f"{path} cannot be read: {error}. Run the comparison again with --keep-weights."
            ) from error
        # load_state_dict names every weight that differs; safetensors, what is damaged.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelMismatchError(f"{path} does not hold the weights of this run's model: {reason}") from error
        return module.eval()

    def stage(self, model: SequenceClassifier, stage: int, rows: Sequence[int], *, batch_size: int) -> ModelStage:
        """A stage with some of its training examples as candidates."""
        tokens = self.bench.tokens[stage]
        split = tokens.train.rows_at(rows)
        return ModelStage(
            model,
            objective_of(tokens.task),
            [split[index] for index in range(len(split))],
            Collator(tokens.pad_token_id),
            batch_size=batch_size,
        )

    def draw(self, stage: int, count: int, seed: int = 0) -> list[int]:
        """Numbers of up to `count` training examples, the shortest first, so that batches hold little padding."""
        lengths = self.bench.tokens[stage].train.lengths
        chosen = np.random.default_rng([seed, stage]).permutation(len(lengths))[:count]
        return [int(i) for i in chosen[np.argsort(lengths[chosen], kind="stable")]]

    def text(self, stage: int, row: int, split: str = "train") -> str:
        """An example's text."""
        example = getattr(self.bench.tasks[stage], split)[row]
        return f" {PAIR} ".join(str(example[name]) for name in ("text_a", "text_b") if name in example)

    def label(self, stage: int, value: float) -> str:
        """A label in words."""
        task = self.bench.tasks[stage]
        return task.classes[int(value)] if task.kind == "classification" else f"{float(value):g}"

    def encode(self, stage: int, text: str) -> dict[str, Any]:
        """A typed text as a row of a task, without a label.

        Raises:
            InfluenceError: empty, not as many texts as the task's examples have, or only unknown words.
        """
        task, tokenizer = self.bench.tasks[stage], self.bench.tokenizer
        parts = [part.strip() for part in text.split(PAIR)] if task.num_texts == 2 else [text.strip()]
        if len(parts) != task.num_texts or not all(parts):
            form = f"two texts, FIRST {PAIR} SECOND" if task.num_texts == 2 else "one text that is not empty"
            raise InfluenceError(f"An example of {task.name} is {form}; this is not: {shown(text)}.")
        encoded = tokenizer(*parts, truncation=True, max_length=self.bench.settings.max_length)
        words = set(encoded["input_ids"]) - set(tokenizer.all_special_ids)
        if not words:
            raise InfluenceError(f"The tokenizer knows no word of {shown(text)}, so nothing can be said about it.")
        like = self.bench.tokens[stage].train[0]
        return {name: np.asarray(encoded[name]) for name in like if name != "label"}

    def _skeleton(self) -> SequenceClassifier:
        bench = self.bench
        given = {} if bench.start is None else {bench.tasks[0].head: copy.deepcopy(bench.start.head)}
        return SequenceClassifier(
            copy.deepcopy(bench.backbone),
            {task.head: task.num_outputs for task in bench.tasks},
            reads_first_token=bench.tokenizer.cls_token_id is not None,
            settings=bench.settings,
            given_heads=given,
        )


def task_outputs(model: nn.Module, batch: Batch, *, head: str) -> Tensor:
    """Outputs of one head."""
    return model.task_outputs(batch, head)  # type: ignore[operator]


def objective_of(task: Task) -> Objective:
    """The loss that a task is trained with."""
    outputs = functools.partial(task_outputs, head=task.head)
    # A squared error without the half.
    return Classification(outputs) if task.kind == "classification" else Regression(outputs, variance=0.5)


def collated(rows: Sequence[Mapping[str, Any]], label: float, pad_token_id: int, *, whole: bool) -> dict[str, Tensor]:
    """Rows without labels as a batch, all with the same label."""
    value = torch.tensor(int(label) if whole else float(label))
    return Collator(pad_token_id)([{**row, "label": value} for row in rows])


def _chosen(folder: Path, result: ComparisonResult, arm: str | None, seed: int | None) -> Mapping[str, Any]:
    runs = [run for run in result.runs if run["status"] == "done" and run.get("identity")]
    kept = [run for run in runs if weights_folder(folder, str(run["identity"])).is_dir()]
    if not kept:
        raise InfluenceError(
            f"No run in {folder} has kept its weights. Run the comparison with --keep-weights true, in a new --output."
        )
    fitting = [run for run in kept if arm in (None, run["arm"]) and seed in (None, run["seed"])]
    if not fitting:
        there = [f"{run['arm']}, seed {run['seed']}" for run in kept]
        raise InfluenceError(f"No run of arm {arm!r}, seed {seed!r} has kept weights; these have: {listed(there)}.")
    return fitting[0]
