"""Two fine-tuned classifiers of one model, and what lies between them: scores on both tasks along alpha."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist._models.checkpoint import is_checkpoint
from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError, ModelLoadError, ModelMismatchError, shown
from lr_dist.layers import assign_layers
from lr_dist.methods.alpha_search import GRID, AlphaChoice, Alphas, AlphaScore, choose_alphas
from lr_dist.methods.interpolation import alpha_profile, between, interpolate_weights
from lr_dist.models import load_classifier, load_classifier_checkpoint, load_tokenizer
from lr_dist.runs.machine import training_device
from lr_dist.tasks import Scorer, Task, TokenSplit, eval_loader, load_tasks, tokenize_task

_BATCH = 64


@dataclass(frozen=True)
class Interpolated:
    """The outcome.

    Attributes:
        alphas: group -> coefficient; those below the head are applied.
        score: of these on validation.
        curve: coefficient for all depths -> scores on validation.
        choice: how `auto` chose on dev; None for a given alpha.
        tasks: the old one and the new one.
        examples: how many of validation, and of each half of dev, were scored, by task.
    """

    alphas: dict[str, float]
    score: AlphaScore
    curve: dict[float, AlphaScore]
    choice: AlphaChoice | None
    tasks: tuple[Task, Task]
    examples: dict[str, tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a result file."""
        return {
            "schema_version": 1,
            "tasks": [
                {"name": task.name, "fingerprint": task.fingerprint, "metric": task.primary, "validation": n, "dev": m}
                for task, (n, m) in zip(self.tasks, self.examples.values(), strict=True)
            ],
            "alphas": self.alphas,
            "score": {"p_o": self.score.old, "p_s": self.score.new},
            "curve": [{"alpha": alpha, "p_o": each.old, "p_s": each.new} for alpha, each in self.curve.items()],
            "choice": None if self.choice is None else self.choice.to_dict(),
        }


class ClassifierPair:
    """A classifier before and after it learned a new task; each keeps its own head, the body lies between the two.

    Args:
        before: a folder with a fine-tuned classifier of the old task, or a checkpoint file.
        after: the same for the classifier that then learned the new task.
        tasks: the old and the new task's name, see `lr_dist.tasks.load_task`.
        examples: the most rows of validation and of dev that are scored, a task.
        max_length: the most tokens of a text.
        model: for checkpoint files, a folder or hub name with the architecture's config and the tokenizer.
        data_dir: folder with the GLUE files.

    Raises:
        ConfigurationError: not two tasks, or a head with another number of outputs than its task.
        ModelMismatchError: two architectures.
        LRDistError: what loading models and tasks raises.
    """

    def __init__(
        self,
        before: str,
        after: str,
        tasks: Sequence[str],
        *,
        examples: int = 1000,
        max_length: int = 128,
        model: str | None = None,
        data_dir: str | None = None,
    ) -> None:
        check_whole("examples", examples, 2, error=ConfigurationError)
        loaded = load_tasks(tasks, data_dir=data_dir)
        if len(loaded) != 2:
            raise ConfigurationError(
                f"Two models are two tasks, the old one that {before} has learned and the new one that {after} has "
                f"learned then; got {', '.join(task.name for task in loaded)}."
            )
        self.tasks = loaded[0], loaded[1]
        device = training_device()
        pairs = zip((before, after), self.tasks, strict=True)
        self.models = tuple(_load(path, model, task).to(device) for path, task in pairs)
        for path, classifier, task in zip((before, after), self.models, self.tasks, strict=True):
            _check_head(path, classifier, task)
        self.tokenizer = load_tokenizer(model or after)
        self.layers = assign_layers(self.models[1])
        length = min(max_length, self.tokenizer.model_max_length)
        tokens = [tokenize_task(task, self.tokenizer, length) for task in self.tasks]
        self._pad = int(self.tokenizer.pad_token_id)
        self._validation = [_first(each.validation, examples) for each in tokens]
        dev = [_first(each.dev, examples) for each in tokens]
        self._halves = [[split.rows_at(range(part, len(split), 2)) for split in dev] for part in (0, 1)]
        # Names below the head -> their group.
        self._group_of = {name: group for name, group in self.layers.group_of.items() if group != "head"}
        self._ends = [self._body(model) for model in self.models]
        _check_bodies(before, after, *self._ends)

    def interpolate(self, alpha: float | str, *, weight: float = 0.5, evaluations: int = 36) -> Interpolated:
        """Score along alpha, choose, and leave both models with the chosen weights.

        Args:
            alpha: a number, a distribution's text form, or `auto`, which chooses on dev.
            weight, evaluations: see `lr_dist.methods.alpha_search.choose_alphas`.

        Raises:
            InvalidAlphaError: an alpha that is not from 0 to 1.
        """
        groups = [group for group in self.layers.groups if group != "head"]
        choice = None
        if alpha == "auto":
            scores = [self._scoring(half) for half in self._halves]
            choice = choose_alphas(scores[0], groups, check=scores[1], weight=weight, evaluations=evaluations)
            alphas = choice.alphas
        else:
            of_group = self.layers.rates(alpha_profile(alpha).rates)
            alphas = {group: of_group[group] for group in groups}
        on_validation = self._scoring(self._validation)
        curve = {each: on_validation(dict.fromkeys(groups, each)) for each in GRID}
        sizes = zip(self.tasks, self._validation, self._halves[0], strict=True)
        examples = {task.name: (len(split), len(half)) for task, split, half in sizes}
        return Interpolated(alphas, on_validation(alphas), curve, choice, self.tasks, examples)

    def save(self, folder: Path) -> None:
        """Write the new task's model as a transformers folder, and the old task's head as `old-head.safetensors`."""
        from safetensors.torch import save

        from lr_dist.runs.atomic import write_bytes

        before, after = self.models
        after.save_pretrained(folder)  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder)
        head = {n: p.detach().cpu().clone() for n, p in before.named_parameters() if n not in self._group_of}
        write_bytes(folder / "old-head.safetensors", save(head, {"task": self.tasks[0].name}))

    def _body(self, model: nn.Module) -> dict[str, Tensor]:
        names = assign_layers(model).group_of
        return {n: p.detach().clone() for n, p in model.named_parameters() if names.get(n, "head") != "head"}

    @torch.no_grad()
    def _place(self, alphas: Alphas) -> None:
        before, after = self._ends
        for model in self.models:
            for name, parameter in model.named_parameters():
                if name in after:
                    parameter.copy_(between(before[name], after[name], alphas[self._group_of[name]]))

    def _scoring(self, splits: Sequence[TokenSplit]) -> Callable[[Alphas], AlphaScore]:
        def score(alphas: Alphas) -> AlphaScore:
            self._place(alphas)
            parts = zip(self.models, self.tasks, splits, strict=True)
            return AlphaScore(*(self._evaluate(model, task, split) for model, task, split in parts))

        return score

    def _evaluate(self, model: Any, task: Task, split: TokenSplit) -> float:
        scorer = Scorer(task)
        with torch.inference_mode():
            for batch in eval_loader(split, _BATCH, self._pad):
                inputs = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
                scorer.update(model(**inputs).logits.float().cpu(), batch["labels"])
        return scorer.compute()[task.primary]


def _first(split: TokenSplit, most: int) -> TokenSplit:
    """At most so many rows, evenly spread: files may be sorted."""
    if len(split) <= most:
        return split
    return split.rows_at([index * len(split) // most for index in range(most)])


def _load(path: str, model: str | None, task: Task) -> nn.Module:
    if not is_checkpoint(path):
        return load_classifier(path)
    if model is None:
        raise ConfigurationError(
            f"{shown(path)} is a checkpoint file, which holds no configuration. Name the model that was "
            "fine-tuned, a folder or a hub name: --model NAME."
        )
    try:
        return load_classifier_checkpoint(path, model, task.num_outputs)
    except ModelLoadError as error:
        raise ModelLoadError(f"{error} Its architecture comes from --model {model}.") from None


def _check_head(path: str, model: Any, task: Task) -> None:
    if model.config.num_labels != task.num_outputs:
        raise ConfigurationError(
            f"The head of {shown(path)} has {model.config.num_labels} outputs, and {task.name} needs "
            f"{task.num_outputs}. --tasks names the task of BEFORE first, then the one of AFTER."
        )


def _check_bodies(before: str, after: str, start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> None:
    try:
        interpolate_weights(_shapes(start), _shapes(end), 1.0)
    except ModelMismatchError as error:
        raise ModelMismatchError(f"{before} and {after} are not two states of one model. {error}") from None


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.empty(weight.shape, device="meta") for name, weight in weights.items()}
