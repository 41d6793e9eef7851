"""Tiny masked language models of transformers and their tokenizer, with real words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

NOUNS = ["river", "stone", "forest", "engine", "letter", "garden", "window", "silver"]
VERBS = ["holds", "carries", "covers", "finds", "leaves", "moves"]
WORDS = ["the", "a", "old", "small", "near", ".", *NOUNS, *VERBS]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer(words: list[str] = WORDS, *, length: int = 32) -> Any:
    """A tokenizer that splits at spaces, with BERT's special tokens first."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    rules.normalizer = normalizers.Lowercase()
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rules.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=rules, model_max_length=length, mask_token="[MASK]", **names)


def masked_lm(words: list[str] = WORDS, *, seed: int = 0, layers: int = 2, hidden: int = 16) -> BertForMaskedLM:
    """A BERT with random weights, large enough that its predictions differ."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(words),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=32,
        initializer_range=0.4,
    )
    return BertForMaskedLM(config).eval()


def sentences(count: int, *, seed: int = 0) -> list[str]:
    """Sentences in which the verb follows from the first noun."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(count):
        first, second, article, adjective = torch.randint(0, 8, (4,), generator=generator).tolist()
        verb = VERBS[first % len(VERBS)]
        texts.append(
            f"{('the', 'a')[article % 2]} {('old', 'small')[adjective % 2]} {NOUNS[first]} {verb} the "
            f"{NOUNS[second]} near the {NOUNS[first]} ."
        )
    return texts


def save(folder: Path, model: Any, words: list[str] = WORDS) -> str:
    """Save a model with its tokenizer, as `--model` takes it."""
    model.save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    return str(folder)
