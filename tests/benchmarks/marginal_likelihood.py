"""Masks in batches, with logits at hidden places only, against one mask at a time with all logits. Run, no test.

    python tests/benchmarks/marginal_likelihood.py --model minilm --text FILE --rounds 5

Both compute the same log-probabilities of the same texts under the same masks. They alternate, and the ratio of the
medians is printed: of the seconds, and of the processor's seconds, which other processes do not stretch.
`--precision` is that of the batches; one mask at a time is computed as a plain call of the model, in float32, and again
in the precision of the batches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from common import parser, publish
from torch import Tensor, nn

from lr_dist.errors import NoMaskedLMHeadError
from lr_dist.models import load_backbone, load_masked_lm, load_tokenizer
from lr_dist.retention.masked_lm import MaskedLM, autocast, split
from lr_dist.retention.masks import draw_masks
from lr_dist.retention.mlm_head import MLMHead, embeddings_of, hidden_size
from lr_dist.retention.score_rows import ScoreSettings, score_rows
from lr_dist.retention.texts import TokenRow, read_texts, token_rows
from lr_dist.runs.precision import choose_precision


def one_at_a_time(
    model: MaskedLM, rows: list[TokenRow], settings: ScoreSettings, precision: str
) -> Callable[[], list[float]]:
    """The plain form: for each mask a call with one row, all logits, and the log-probabilities of the hidden tokens."""
    plans = [
        draw_masks(len(row), masks=settings.masks, sizes=min(settings.sizes, len(row)), seed=index)
        for index, row in enumerate(rows)
    ]

    def whole(ids: Tensor) -> Tensor:
        states = model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return model.head(states[0])

    def run() -> list[float]:
        means = []
        with torch.no_grad(), autocast(model.device, precision):
            for row, plan in zip(rows, plans, strict=True):
                for mask in plan.masks:
                    places = row.ordinary[mask]
                    ids = row.ids.clone()
                    ids[places] = model.mask_id
                    logits = whole(ids[None].to(model.device)).float()
                    values = torch.log_softmax(logits, dim=-1)[places, row.ids[places]]
                    means.append(float(values.mean()))
        return means

    return run


def load(name: str, tokenizer, precision: str) -> tuple[MaskedLM, nn.Module]:
    """The model with its own head, or with an unfitted one of the same cost."""
    try:
        encoder, head = split(load_masked_lm(name))
    except NoMaskedLMHeadError:
        encoder = load_backbone(name).eval()
        head = MLMHead(embeddings_of(encoder), hidden_size(encoder)).eval()
    return MaskedLM.from_parts(encoder, head, tokenizer, precision=precision), encoder


def main() -> None:
    p = parser("Masks in batches against one mask at a time.")
    p.add_argument("--model", default="minilm")
    p.add_argument("--text", required=True, help="a text a line")
    p.add_argument("--texts", type=int, default=4)
    p.add_argument("--max-length", type=int, default=64)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--precision", default="auto")
    options = p.parse_args()
    tokenizer = load_tokenizer(options.model)
    precision = choose_precision(options.precision).chosen
    model, _ = load(options.model, tokenizer, precision)
    rows = token_rows(read_texts(options.text), tokenizer, max_length=options.max_length, limit=options.texts)
    settings = ScoreSettings(batch_size=options.batch_size)
    ways: dict[str, Callable[[], object]] = {
        "batches": lambda: score_rows(model, rows, settings),
        "one at a time, float32": one_at_a_time(model, rows, settings, "32-true"),
        "one at a time, same precision": one_at_a_time(model, rows, settings, precision),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + options.rounds):  # the first one is a warm-up
        for name, way in ways.items():
            began, spent = time.perf_counter(), time.process_time()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - spent)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    spent_medians = {name: statistics.median(each) for name, each in processor.items()}
    masks = sum(
        len(draw_masks(len(row), masks=settings.masks, sizes=min(settings.sizes, len(row)), seed=index))
        for index, row in enumerate(rows)
    )
    figures = {
        "model": options.model,
        "precision": precision,
        "texts": len(rows),
        "masks": masks,
        "tokens": sum(map(len, rows)),
        "median_seconds": medians,
        "masks_per_second": {name: masks / each for name, each in medians.items()},
        "median_processor_seconds": spent_medians,
        "ratio": {name: each / medians["batches"] for name, each in medians.items() if name != "batches"},
        "processor_ratio": {
            name: each / spent_medians["batches"] for name, each in spent_medians.items() if name != "batches"
        },
    }
    publish("marginal_likelihood", figures, options.output)


if __name__ == "__main__":
    main()
