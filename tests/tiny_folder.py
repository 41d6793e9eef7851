"""A folder with a tiny model and its tokenizer, as `--model` takes it."""

from __future__ import annotations

from pathlib import Path


def save_tiny_model(folder: Path, *, mask: bool = False) -> Path:
    """Save a 3-layer BERT of hidden size 32 with random weights, and a tokenizer of the demo tasks' words.

    With `mask`, the tokenizer has a mask token.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from lr_dist.tasks import DEMO_TASKS, load_task

    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **({"[MASK]": 4} if mask else {})}
    splitter = pre_tokenizers.Whitespace()
    for name in DEMO_TASKS:
        train = load_task(name).train
        for column in sorted(set(train.column_names) - {"label"}):  # a set has another order in each process
            for text in train[column]:
                for word, _ in splitter.pre_tokenize_str(text.lower()):
                    words.setdefault(word, len(words))
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **({"mask_token": "[MASK]"} if mask else {}),
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,  # with the usual 0.02 so small an encoder maps all texts to one vector
    )
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
