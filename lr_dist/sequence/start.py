"""A start: a fine-tuned classifier that has learned the first task of a sequence, with its head."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.errors import PATH, StartMismatchError, listed, shown
from lr_dist.models import load_classifier, load_tokenizer, resolve_model, weights_fingerprint
from lr_dist.tasks import Task, TokenizedTask, eval_loader

# A saved tokenizer has at least one of these; without any, transformers makes an empty one of a few special tokens.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
_UNNAMED = re.compile(r"LABEL_\d+")
_CHECKED = 16


@dataclass(frozen=True)
class Start:
    """A model that has learned the first task.

    Attributes:
        folder: as the user named it.
        head: gives the folder's own outputs from a text's vector, in the order of the task's classes.
        labels: the folder's names of its outputs, in its order.
    """

    folder: str
    head: StartHead
    labels: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the head: its weights, how it computes, and the order of its outputs."""
        content = [weights_fingerprint(self.head), self.head.kind, self.head.order]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a result file."""
        return {"folder": self.folder, "head": self.fingerprint, "labels": list(self.labels)}


class StartHead(nn.Module):
    """A transformers classifier without its body: what follows the last layer, such as pooler, dropout and classifier.

    Args:
        classifier: a sequence classifier of transformers; its body is taken away.
        order: its output for each class of the task.
    """

    def __init__(self, classifier: Any, order: Sequence[int]) -> None:
        super().__init__()
        self.kind = type(classifier).__name__
        self.order = tuple(order)
        name = classifier.base_model_prefix
        setattr(classifier, name, _GivenStates(getattr(classifier, name)))
        if classifier.config.pad_token_id is None:  # with none, decoders take no batches
            classifier.config.pad_token_id = 0
        self.classifier = classifier

    def forward(self, vectors: Tensor) -> Tensor:
        """Outputs [batch, classes] of the texts' vectors [batch, hidden]."""
        # One token a text, which is not padding.
        ids = vectors.new_full((len(vectors), 1), int(self.classifier.config.pad_token_id) + 1, dtype=torch.long)
        outputs = self.classifier(input_ids=ids, inputs_embeds=vectors[:, None]).logits
        if self.order == tuple(range(len(self.order))):
            return outputs
        return outputs[:, list(self.order)]


class _GivenStates(nn.Module):
    """In place of a body: the states that it is given are its last hidden states; a pooler is kept."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.pooler = getattr(body, "pooler", None)
        # ALBERT's pooler is a plain linear layer with an activation after it.
        self.activation = getattr(body, "pooler_activation", None)

    def forward(self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        # The one with all the fields that heads read, the caches of decoders among them.
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions as Output

        pooled = None
        if self.pooler is not None:
            plain = isinstance(self.pooler, nn.Linear)
            pooled = self.pooler(inputs_embeds[:, 0] if plain else inputs_embeds)
            pooled = pooled if self.activation is None else self.activation(pooled)
        return Output(last_hidden_state=inputs_embeds, pooler_output=pooled)  # type: ignore[arg-type]


def check_start_tokenizer(folder: str, tokenizer: Any, backbone: nn.Module, model: str | None) -> None:
    """Check that the tokenizer of a start is the one that its model has learned with, as far as can be told.

    Args:
        folder: the start.
        tokenizer: the one loaded from it.
        backbone: its model.
        model: another model that the user named; its tokenizer must be the same one.

    Raises:
        StartMismatchError: the folder holds none, one with more words than the model, or another one than the model's.
    """
    path = Path(resolve_model(folder))
    if path.is_dir() and not any((path / name).exists() for name in _TOKENIZER_FILES):
        raise StartMismatchError(
            f"{shown(folder, PATH)} holds no tokenizer. Save the one that it has learned with into it: "
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)."
        )
    words = backbone.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if len(tokenizer) > words:
        raise StartMismatchError(
            f"The tokenizer in {shown(folder, PATH)} has {len(tokenizer):,} words, and its model {words:,}: it is the "
            "tokenizer of another model. Save the one that it has learned with into the folder."
        )
    if model is not None and load_tokenizer(model).get_vocab() != tokenizer.get_vocab():
        raise StartMismatchError(
            f"The tokenizer in {shown(folder, PATH)} is another one than that of --model {shown(model, PATH)}, so it "
            "was not made from it. Leave --model out: the start brings model and tokenizer."
        )


def load_start(folder: str, tokens: TokenizedTask, backbone: nn.Module, *, reads_first_token: bool) -> Start:
    """Load the head of a fine-tuned classifier.

    Args:
        folder: with model and tokenizer, as `save_pretrained` wrote them.
        tokens: of the task that it has learned.
        backbone: its model without the head.
        reads_first_token: whether a text's vector is the state of its first token; otherwise of its last.

    Raises:
        MissingWeightsError: the folder holds no head.
        StartMismatchError: the head has other labels than the task, or needs more than a text's vector.
    """
    task = tokens.task
    classifier: Any = load_classifier(folder)
    labels = _labels(classifier)
    order = _order(folder, labels, classifier.config.num_labels, task)
    split = tokens.dev.rows_at(range(min(_CHECKED, len(tokens.dev))))
    batch = next(iter(eval_loader(split, _CHECKED, tokens.pad_token_id)))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        expected = classifier(**inputs).logits[:, order]
        head = StartHead(classifier, order)
        states = backbone(**inputs).last_hidden_state
        last = inputs["attention_mask"].sum(dim=1) - 1
        vectors = states[:, 0] if reads_first_token else states[torch.arange(len(states)), last]
        outputs = _outputs_or_none(head, vectors)
    backbone.train(training)
    if outputs is None or not torch.allclose(outputs, expected, rtol=1e-3, atol=1e-3):
        read = "first" if reads_first_token else "last"
        raise StartMismatchError(
            f"The head of {shown(folder, PATH)} ({head.kind}) needs more than the last state of a text's {read} token, "
            "which is all that lr-dist's runs compute. Start from a model whose head reads that state alone."
        )
    return Start(folder, head.train(), labels)


def _outputs_or_none(head: StartHead, vectors: Tensor) -> Tensor | None:
    """The head's outputs; None if it does not take the form that `StartHead` gives it."""
    try:
        return head(vectors)
    # What a head of another form raises: a missing argument, a wrong shape, a missing attribute.
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None


def _labels(classifier: Any) -> tuple[str, ...]:
    names = dict(classifier.config.id2label or {})
    return tuple(str(names.get(index, f"LABEL_{index}")) for index in range(classifier.config.num_labels))


def _order(folder: str, labels: Sequence[str], outputs: int, task: Task) -> list[int]:
    """The output for each class of the task, by the outputs' names."""
    if outputs != task.num_outputs:
        raise StartMismatchError(
            f"The head of {shown(folder, PATH)} has {outputs} output(s), and {task.name} needs {task.num_outputs}. The "
            "first task must be the one that the start has learned."
        )
    unnamed = all(_UNNAMED.fullmatch(label) for label in labels)
    # Classes without names are numbers, which count the outputs.
    numbered = all(name.isdecimal() for name in task.classes)
    if task.kind == "regression" or unnamed or numbered:
        return list(range(outputs))
    ours, theirs = [_plain(name) for name in task.classes], [_plain(label) for label in labels]
    if sorted(ours) != sorted(theirs):
        raise StartMismatchError(
            f"The labels of {shown(folder, PATH)} are {listed(labels)}, and the classes of {task.name} are "
            f"{listed(task.classes)}. The first task must be the one that the start has learned; if it is, write "
            "these classes into `id2label` in its config.json, in the order of its outputs."
        )
    return [theirs.index(name) for name in ours]


def _plain(label: str) -> str:
    """A label's name without what is written in different ways: not_duplicate, Not duplicate, not-duplicate."""
    return re.sub(r"[\s_-]+", "_", label.strip().lower())
