"""`Bench`: what all runs of a task sequence share (pre-trained weights, tasks, tokens), loaded once per process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lr_dist.errors import ConfigurationError
from lr_dist.layers import assign_layers
from lr_dist.methods import Needs
from lr_dist.models import load_backbone, load_tokenizer, weights_fingerprint
from lr_dist.runs.fused import has_fused_adamw
from lr_dist.runs.machine import training_device
from lr_dist.runs.precision import PrecisionChoice, choose_precision
from lr_dist.sequence.base_config import SequenceConfig
from lr_dist.sequence.classifier import check_heads
from lr_dist.sequence.fast.view import View, view_of
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.sequence.start import Start, check_start_tokenizer, load_start
from lr_dist.tasks import Task, TokenizedTask, baseline_scores, cls_encoder, load_tasks, tokenize_task
from lr_dist.tasks.draw import with_fewer_scored


@dataclass(frozen=True)
class Bench:
    """A task sequence that is ready to be learned any number of times.

    Attributes:
        settings: as given, but `max_length` is at most the tokenizer's, and `precision` is the chosen one.
        precision: the choice and its reason.
        backbone: the pre-trained model, unchanged. Runs train copies of a view of it.
        tokenizer: the model's.
        model_info: name, class, weights' fingerprint, number of layers, number of parameters.
        tasks, tokens: in the order of learning; tokens have the tokenizer's ids.
        baseline: for each task, the primary score of always predicting train's majority class.
        start: what has learned the first task; None if the backbone is only pre-trained.
    """

    settings: SequenceSettings
    precision: PrecisionChoice
    backbone: nn.Module
    tokenizer: Any
    model_info: dict[str, Any]
    tasks: list[Task]
    tokens: list[TokenizedTask]
    baseline: list[float]
    start: Start | None = None
    _views: dict[Needs, View] = field(default_factory=dict, repr=False, compare=False)
    # The bench that this one was made from, and which of its tasks it has.
    _part_of: tuple[Bench, tuple[int, ...]] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def prepare(
        cls,
        model: str,
        tasks: Sequence[str | Mapping[str, Any]],
        settings: SequenceSettings,
        *,
        limit: int | None = None,
        dev_size: int | float | None = None,
        data_dir: str | None = None,
        data_seed: int = 0,
        start: str | None = None,
        eval_limit: int | None = None,
    ) -> Bench:
        """Load and check the model and the tasks.

        Args:
            model: name or folder of the pre-trained model.
            tasks: in the order of learning.
            settings: of training and scoring.
            limit: training examples a task; None for all.
            dev_size: see `lr_dist.tasks.load_task`.
            data_dir: folder with the GLUE files.
            data_seed: seed of the draw.
            start: folder of a fine-tuned classifier that has learned the first task; it takes the place of `model`.
            eval_limit: examples a task to score on; None for all.

        Raises:
            StartMismatchError: a start whose head, labels or tokenizer do not fit.
            LRDistError: an invalid model, task or setting, each with its named error.
        """
        named = None if model in (start, SequenceConfig.model) else model
        model = start or model
        tokenizer = load_tokenizer(model)
        backbone = load_backbone(model)
        if start is not None:
            check_start_tokenizer(start, tokenizer, backbone, named)
        layers = assign_layers(backbone)
        length = min(settings.max_length, tokenizer.model_max_length)
        loaded = load_tasks(
            tasks,
            data_dir=data_dir,
            limit=limit,
            seed=data_seed,
            encode=cls_encoder(backbone, tokenizer, max_length=length),
            dev_size=dev_size,
        )
        check_heads(task.head for task in loaded)
        if eval_limit is not None:
            loaded = [with_fewer_scored(task, settings.evaluate_on, eval_limit) for task in loaded]
        if tokenizer.pad_token_id is None:
            raise ConfigurationError(f"The tokenizer of {model} has no padding token, so texts cannot be batched.")
        if start is not None and len(loaded) < 2:
            raise ConfigurationError(
                f"{start} has learned {loaded[0].name} already, so there is nothing left to learn. Name the tasks that "
                f"it shall learn then: --tasks {loaded[0].name} TASK."
            )
        tokens = [tokenize_task(task, tokenizer, length) for task in loaded]
        reads_first_token = tokenizer.cls_token_id is not None
        learned = start and load_start(start, tokens[0], backbone, reads_first_token=reads_first_token)
        info = {
            "name": model,
            "class": type(backbone).__name__,
            "fingerprint": weights_fingerprint(backbone),
            "num_layers": layers.num_layers,
            "parameters": sum(p.numel() for p in backbone.parameters()),
            **({"start": learned.to_dict()} if learned else {}),
        }
        precision = choose_precision(settings.precision)
        return cls(
            settings=replace(settings, max_length=length, precision=precision.chosen),
            precision=precision,
            backbone=backbone,
            tokenizer=tokenizer,
            model_info=info,
            tasks=loaded,
            tokens=tokens,
            baseline=[baseline_scores(task, settings.evaluate_on)[task.primary] for task in loaded],
            start=learned or None,
        )

    @property
    def first_trained(self) -> int:
        """Number of the first stage that is trained: 1 with a start, otherwise 0."""
        return 0 if self.start is None else 1

    @property
    def trained_tokens(self) -> list[TokenizedTask]:
        """The tasks that are trained, without the one that a start has learned."""
        return self.tokens[self.first_trained :]

    def view(self, needs: Needs = Needs()) -> View:  # noqa: B008  (frozen)
        """The model and tokens that runs with these needs compute with; made once for each set of needs."""
        if self._part_of is not None:
            whole, indices = self._part_of
            return whole.view(needs).only(indices)
        if needs not in self._views:
            self._views[needs] = view_of(self.backbone, self.tokenizer, self.tokens, self.settings.evaluate_on, needs)
        return self._views[needs]

    def with_view(self, view: View, needs: Needs = Needs()) -> Bench:  # noqa: B008
        """The same bench, whose runs with these needs compute with `view`."""
        return replace(self, _views={**self._views, needs: view})

    def choices(self) -> dict[str, Any]:
        """The choices made for this machine, as plain data for a result file.

        `precision`, `fused_adamw` and `packed` (whether batches are computed without padding; only on a CPU, for models
        that allow it).
        """
        device = training_device()
        return {
            "precision": self.precision.to_dict(),
            "fused_adamw": has_fused_adamw(device),
            "packed": device == "cpu" and self.view().first_position is not None,
        }

    def in_precision(self, precision: PrecisionChoice) -> Bench:
        """The same bench in another precision."""
        return replace(self, settings=replace(self.settings, precision=precision.chosen), precision=precision)

    def only(self, indices: Sequence[int]) -> Bench:
        """The same bench with only some of the tasks; it shares the weights.

        With a start, its head stays where its task is the first; the backbone is the start's in any case.
        """
        return replace(
            self,
            tasks=[self.tasks[i] for i in indices],
            tokens=[self.tokens[i] for i in indices],
            baseline=[self.baseline[i] for i in indices],
            start=self.start if indices[0] == 0 else None,
            _views={},
            _part_of=(self, tuple(indices)),
        )
