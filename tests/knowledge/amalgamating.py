"""Small real teachers, students and texts for the tests of amalgamation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lr_dist.knowledge.amalgamation.teacher import ModelTeacher

# Each label has words of its own, among common ones: a model this small can learn them.
WORDS = {
    "fish": ("salmon", "trout", "eel", "cod"),
    "bird": ("robin", "owl", "heron", "wren"),
    "tree": ("oak", "birch", "elm", "pine"),
    "tool": ("hammer", "saw", "file", "chisel"),
}
COMMON = ("the", "a", "old", "new", "and", "near", "of", "we", "saw_it", "here")


def sentences(count: int, labels: Sequence[str] = tuple(WORDS), seed: int = 0) -> tuple[list[str], list[str]]:
    """Sentences and their labels; of another seed they are others."""
    draw = random.Random(seed)
    texts, names = [], []
    for index in range(count):
        label = labels[index % len(labels)]
        words = [*draw.choices(WORDS[label], k=draw.randint(1, 2)), *draw.choices(COMMON, k=draw.randint(2, 6))]
        draw.shuffle(words)
        texts.append(" ".join(words))
        names.append(label)
    return texts, names


def word_tokenizer(labels: Sequence[str] = tuple(WORDS), *, backwards: bool = False) -> PreTrainedTokenizerFast:
    """A word a token, and `;` no token at all.

    Args:
        labels: it knows the words of these, and the common ones.
        backwards: number the words from the last to the first.
    """
    known = sorted([*COMMON, *(word for label in labels for word in WORDS[label])], reverse=backwards)
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *known])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(";", "removed")]
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return _fast(tokenizer)


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """A letter a token."""
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz_"]
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return _fast(tokenizer)


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


def bert(labels: Sequence[str] = ("fish", "bird"), *, dropout: float = 0.1, seed: int = 0, **options: Any) -> Any:
    """A BERT of two layers with 32 dimensions that classifies into these labels; its weights are random."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 80,
        "initializer_range": 0.2,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    return BertForSequenceClassification(BertConfig(**{**sizes, **options})).eval()


def distilbert(labels: Sequence[str] = ("tree", "tool"), *, dropout: float = 0.1, seed: int = 0) -> Any:
    """Another architecture, without token types."""
    torch.manual_seed(seed)
    config = DistilBertConfig(
        vocab_size=32,
        dim=24,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=80,
        initializer_range=0.2,
        dropout=dropout,
        attention_dropout=dropout,
        seq_classif_dropout=dropout,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    return DistilBertForSequenceClassification(config).eval()


def teacher(model: Any, tokenizer: Any = None, name: str = "teacher") -> ModelTeacher:
    return ModelTeacher(name, model, tokenizer or word_tokenizer(), tuple(model.config.id2label.values()))


def save(model: Any, folder: Path, tokenizer: Any = None) -> str:
    model.save_pretrained(folder)
    (tokenizer or word_tokenizer()).save_pretrained(folder)
    return str(folder)


def pretrained(folder: Path, *, dropout: float = 0.0) -> str:
    """A model without a head, to make students from."""
    torch.manual_seed(7)
    return save(BertModel(bert(dropout=dropout, initializer_range=0.1).config), folder)


def fitted(model: Any, tokenizer: Any, texts: Sequence[str], names: Sequence[str]) -> Any:
    """Train a small classifier on labelled sentences, in half a second."""
    torch.manual_seed(0)
    position = {name: index for index, name in model.config.id2label.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for start in [*range(0, len(texts), 16)] * 6:
        inputs = tokenizer(list(texts[start : start + 16]), padding=True, return_tensors="pt")
        if model.config.model_type == "distilbert":
            inputs.pop("token_type_ids", None)
        targets = torch.tensor([position[name] for name in names[start : start + 16]])
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
