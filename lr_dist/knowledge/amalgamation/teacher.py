"""Teachers: anything that turns texts into logits for labels with names."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lr_dist.checks import check_whole
from lr_dist.errors import DropoutOffError, NonFiniteScoresError, TeacherError
from lr_dist.knowledge.amalgamation.dropout import TopLayers, mean_of_passes
from lr_dist.knowledge.amalgamation.labels import check_labels
from lr_dist.knowledge.amalgamation.texts import Texts, tokenise
from lr_dist.models import weights_fingerprint
from lr_dist.runs.machine import training_device
from lr_dist.tasks import Collator, TokenSplit
from lr_dist.tasks.tokens import tokenizer_fingerprint

# The most rows of one forward pass when several passes are computed together.
ROWS = 256


class Teacher(ABC):
    """What has learned some labels.

    Args:
        name: for messages and results.
        labels: the names of its outputs, in their order.

    Raises:
        TeacherError: fewer than two labels, or labels without names.
    """

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        check_labels(name, labels)
        self.name = name
        self.labels = tuple(labels)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What its scores depend on; kept scores of another fingerprint are not used."""

    @abstractmethod
    def prepare(self, texts: Texts) -> Any:
        """What `score` takes, made once of all texts that will be scored.

        Raises:
            EmptyTextError: a text of which its tokenizer leaves nothing.
        """

    @abstractmethod
    def score(
        self, prepared: Any, rows: Sequence[int], passes: int, top_layers: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """The scores of some texts.

        Args:
            prepared: by `prepare`.
            rows: the texts' numbers.
            passes: with dropout on; 0 for none.
            top_layers: dropout in so many layers only; None for all.

        Returns:
            Logits without dropout and the mean softmax over the passes, both [rows, labels] on the CPU; None for the
            second without passes.
        """

    @abstractmethod
    def check_passes(self, prepared: Any, top_layers: int | None) -> None:
        """Check that passes with dropout differ.

        Raises:
            DropoutOffError: they do not.
        """

    def checked(self, outputs: Tensor, rows: int) -> Tensor:
        """Logits as float32 [rows, labels] on the CPU.

        Raises:
            TeacherError: of another shape.
            NonFiniteScoresError: NaN or infinite.
        """
        if outputs.shape != (rows, len(self.labels)):
            raise TeacherError(
                f"{self.name} returned logits of the shape {tuple(outputs.shape)} for {rows} texts; its "
                f"{len(self.labels)} labels need {(rows, len(self.labels))}."
            )
        if not torch.isfinite(outputs).all():
            raise NonFiniteScoresError(
                f"{self.name} returned logits that are NaN or infinite. Check its weights and its precision; without "
                "usable logits it teaches nothing."
            )
        return outputs.float().cpu()


class ModelTeacher(Teacher):
    """A torch model with its tokenizer; `load_teacher` makes them from folders and files.

    Args:
        name: for messages and results.
        model: computes in evaluation mode, and with dropout on for the passes; its flags are left as they are.
        tokenizer: a transformers tokenizer, its own; teachers may have different ones.
        labels: names of its outputs.
        forward: (model, inputs) -> logits [texts, labels]; the default calls `model(**inputs).logits`.
        max_length: the most tokens of a text.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: Any,
        labels: Sequence[str],
        *,
        forward: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] | None = None,
        max_length: int = 128,
    ) -> None:
        super().__init__(name, labels)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = int(min(max_length, tokenizer.model_max_length))
        self._forward = forward or _logits
        self._collate = Collator(tokenizer.pad_token_id or 0)

    @property
    def fingerprint(self) -> str:
        parts = [weights_fingerprint(self.model), tokenizer_fingerprint(self.tokenizer), self.labels, self.max_length]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def prepare(self, texts: Texts) -> TokenSplit:
        self.model.to(training_device())
        return tokenise(texts, self.tokenizer, self.max_length)

    def score(
        self, prepared: TokenSplit, rows: Sequence[int], passes: int, top_layers: int | None
    ) -> tuple[Tensor, Tensor | None]:
        inputs = self._inputs(prepared, rows)
        with torch.inference_mode():
            if not passes:
                return self.checked(self._outputs(inputs), len(rows)), None
            if top_layers is None:
                logits = self.checked(self._outputs(inputs), len(rows))
                return logits, mean_of_passes(self._outputs, self.model, inputs, passes, ROWS).cpu()
            with TopLayers(self.model, top_layers).lower_layers_kept():
                logits = self.checked(self._outputs(inputs), len(rows))
                return logits, mean_of_passes(self._outputs, self.model, inputs, passes, ROWS).cpu()

    def check_passes(self, prepared: TokenSplit, top_layers: int | None) -> None:
        # One text, one pass at a time: the same computation twice, which without dropout is equal to the bit.
        first, second = (self.score(prepared, [0], 1, top_layers)[1] for _ in range(2))
        if first is not None and second is not None and torch.equal(first, second):
            where = "" if top_layers is None else f" in its top {top_layers} layer(s)"
            raise DropoutOffError(
                f"Passes of {self.name} with dropout on are all the same: it has no dropout{where} (its probabilities "
                "are 0). Set it in the model's config, or take the certainty of a single pass: passes=0."
            )

    def _inputs(self, tokens: TokenSplit, rows: Sequence[int]) -> dict[str, Tensor]:
        batch = self._collate([tokens[row] for row in rows])
        device = next(self.model.parameters()).device
        return {key: value.to(device) for key, value in batch.items() if key != "labels"}

    def _outputs(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self._forward(self.model, inputs)


class FunctionTeacher(Teacher):
    """Any function from texts to logits.

    Args:
        name: for messages and results; also its identity for kept scores, so give another name to another function.
        function: list of texts (strings; tuples of two for pairs) -> logits [texts, labels].
        labels: names of its outputs.
        sample: the same with some randomness, such as dropout or an ensemble's next member; called once for each pass.
            Without it, the teacher has no passes.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[list[str | tuple[str, str]]], Any],
        labels: Sequence[str],
        *,
        sample: Callable[[list[str | tuple[str, str]]], Any] | None = None,
    ) -> None:
        super().__init__(name, labels)
        self._function = function
        self._sample = sample

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self.name, self.labels]).encode()).hexdigest()

    def prepare(self, texts: Texts) -> Texts:
        return texts

    def score(
        self, prepared: Texts, rows: Sequence[int], passes: int, top_layers: int | None
    ) -> tuple[Tensor, Tensor | None]:
        texts = prepared.rows_at(rows).plain()
        logits = self._call(self._function, texts)
        if not passes or self._sample is None:
            return logits, None
        total = sum((torch.softmax(self._call(self._sample, texts), -1) for _ in range(passes)), logits.new_zeros(()))
        return logits, total / passes

    def check_passes(self, prepared: Texts, top_layers: int | None) -> None:
        if self._sample is None:
            raise DropoutOffError(
                f"{self.name} is a function without passes that differ. Give it sample=..., or take the certainty of a "
                "single pass: passes=0."
            )
        texts = prepared.rows_at([0]).plain()
        if torch.equal(self._call(self._sample, texts), self._call(self._sample, texts)):
            raise DropoutOffError(f"The passes of {self.name} (sample=...) are all the same; they must be random.")

    def _call(self, function: Callable[[list[str | tuple[str, str]]], Any], texts: list[Any]) -> Tensor:
        outputs = function(texts)
        tensor = outputs.detach() if isinstance(outputs, Tensor) else torch.from_numpy(np.asarray(outputs, np.float32))
        return self.checked(tensor, len(texts))


def check_number_of_passes(passes: int) -> None:
    """Check a number of passes: 0 for none, or at least 2.

    Raises:
        DropoutOffError: one pass, which has no spread, or no whole number of at least 0.
    """
    hint = "0 takes the certainty of a single pass without dropout."
    check_whole("passes", passes, 0, error=DropoutOffError, hint=hint)
    if passes == 1:
        raise DropoutOffError(f"passes must be at least 2 with dropout on, not 1. {hint}")


def _logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    return model(**inputs).logits
