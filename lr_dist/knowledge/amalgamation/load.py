"""Load teachers by their text form: a transformers folder, or the weights of a stage of `lr-dist compare`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lr_dist.errors import PATH, ConfigurationError, ModelLoadError, ModelMismatchError, TeacherError, listed, shown
from lr_dist.knowledge.amalgamation.teacher import ModelTeacher
from lr_dist.models import load_backbone, load_classifier, load_tokenizer, resolve_model, weights_fingerprint
from lr_dist.sequence.classifier import SequenceClassifier, key_of
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.tasks import load_task

_STAGE = ".safetensors"
# A saved tokenizer has at least one of these; without any, transformers makes an empty one.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
# The prefix of weights in the store of shared stages; `KeepStages` writes none.
_STORE = "weights/"


def load_teacher(
    spec: str,
    *,
    model: str = "minilm",
    data_dir: str | None = None,
    max_length: int = 128,
    labels: Sequence[str] | None = None,
) -> ModelTeacher:
    """Load a teacher.

    Args:
        spec: a folder that `save_pretrained` wrote (with its tokenizer) or a hub name; or, for a stage of a task
            sequence, `stage-2.safetensors` as `KeepStages` wrote it. `sst2=stage-2.safetensors` takes the head of
            another task than the one that the stage has learned.
        model: for stages, the pre-trained model of the sequence.
        data_dir: for stages, the folder with the GLUE files, whose classes name the head's outputs.
        max_length: the most tokens of a text.
        labels: names of the outputs, in their order, in place of those that the folder or the task gives.

    Raises:
        TeacherError: fewer than two labels, labels without names, or a folder without a tokenizer.
        ModelLoadError: what cannot be loaded.
        ModelMismatchError: a stage of another model.
    """
    if Path(spec).suffix == _STAGE:
        return _load_stage(spec, model, data_dir, max_length, labels)
    classifier: Any = load_classifier(spec)
    names = dict(classifier.config.id2label or {})
    found = tuple(str(names.get(index, f"LABEL_{index}")) for index in range(classifier.config.num_labels))
    path = Path(resolve_model(spec))
    if path.is_dir() and not any((path / name).exists() for name in _TOKENIZER_FILES):
        raise TeacherError(
            f"{shown(spec, PATH)} holds no tokenizer. Save the one that it has learned with into it: "
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)."
        )
    tokenizer = load_tokenizer(spec)
    if classifier.config.pad_token_id is None:
        classifier.config.pad_token_id = tokenizer.pad_token_id  # without it, decoders take no batches
    return ModelTeacher(spec, classifier, tokenizer, labels or found, max_length=max_length)


def _load_stage(
    spec: str, model: str, data_dir: str | None, max_length: int, labels: Sequence[str] | None
) -> ModelTeacher:
    task_name, path = _split(spec)
    weights, about = _read(path)
    heads = sorted({match[1] for name in weights if (match := re.match(r"heads\.([^.]+)\.", name))})
    task_name = task_name or about.get("task")
    if task_name is None:
        raise ConfigurationError(
            f"{shown(path, PATH)} does not say which task it has learned. Name it: TASK={path}. Heads in it: "
            f"{listed(heads)}."
        )
    if key_of(task_name) not in heads:
        raise ConfigurationError(
            f"{shown(path, PATH)} has no head for {shown(task_name)}; it has heads for {listed(heads)}. Name one of "
            f"them: TASK={path}."
        )
    if labels is None:
        labels = load_task(task_name, data_dir=data_dir).classes
    head = f"heads.{key_of(task_name)}."
    count = len(weights.get(f"{head}bias", ()))
    if len(weights.get(f"{head}weight", ())) != count or count != len(labels):
        raise TeacherError(
            f"The head {shown(task_name)} of {shown(path, PATH)} is no linear layer with {len(labels)} outputs, one "
            f"for each label ({listed(labels)})."
        )
    module = _classifier(path, model, task_name, count, weights, about)
    tokenizer = load_tokenizer(model)
    module.reads_first_token = tokenizer.cls_token_id is not None
    return ModelTeacher(
        spec,
        module,
        tokenizer,
        labels,
        forward=lambda classifier, inputs: classifier(dict(inputs), task_name),
        max_length=max_length,
    )


def _split(spec: str) -> tuple[str | None, str]:
    """`sst2=stage-1.safetensors` -> its two parts; a path that holds an = and is there is a path."""
    name, equals, path = spec.partition("=")
    return (name, path) if equals and not Path(spec).exists() else (None, spec)


def _classifier(
    path: str, model: str, task_name: str, outputs: int, weights: dict[str, Tensor], about: dict[str, str]
) -> SequenceClassifier:
    backbone = load_backbone(model)
    expected = about.get("model")
    if expected and expected != weights_fingerprint(backbone):
        raise ModelMismatchError(
            f"{shown(path, PATH)} was trained from another model than {shown(model, PATH)} (or other weights of it). "
            "Name the model of the sequence: --teacher-model NAME."
        )
    module = SequenceClassifier(
        backbone, {task_name: outputs}, reads_first_token=True, settings=SequenceSettings(precision="32-true")
    )
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    other = [name for name, shape in wanted.items() if name not in weights or tuple(weights[name].shape) != shape]
    if other:
        cut = any("word_embeddings" in name or "embed_tokens" in name or "wte" in name for name in other)
        raise ModelMismatchError(
            f"The weights in {shown(path, PATH)} are not those of {shown(model, PATH)}: {listed(other)} is missing or "
            "has another shape. "
            + (
                "The word embeddings were cut to the words of the tasks; the observer KeepStages keeps them whole."
                if cut
                else "Name the model of the sequence: --teacher-model NAME."
            )
        )
    module.load_state_dict({name: weights[name] for name in wanted})
    return module


def _read(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    # safetensors raises errors of its own for damaged files, and those of the system.
    except Exception as error:
        raise ModelLoadError(
            f"{shown(path, PATH)} cannot be read as the weights of a stage: {type(error).__name__}: {error}."
        ) from error
    floats = {name: value.to(torch.float32) for name, value in weights.items() if value.is_floating_point()}
    return {name.removeprefix(_STORE): value for name, value in floats.items()}, about
