"""Linear datamodeling score of two-stage influence on a tiny transformer. `python tests/influence_lds.py --output FILE`

A BERT of two layers learns 200 generated sentences as a masked LM (stage 1), then a few labelled ones (stage 2). The
words of a topic occur together in stage 1 only: the labelled sentences have some of a topic's words, the queries the
others. So the margin of a query rests on sentences of stage 1.

For each of many random halves of the 200 sentences both stages are trained again, with the same seeds for every half
(they decide the masks and the head's first weights). The score is the Spearman correlation, over halves, between the
margin of a query and the sum of the influences of the half's sentences, averaged over queries (Park et al., arXiv
2303.14186). The interval is a bootstrap over halves. The ceiling is what the noise of training leaves to be
explained: from the correlation r of the margins of two seeds, sqrt(2r / (1 + r)) for their mean. The pull alpha is
chosen on halves that are not used again.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from transformers import BertConfig, BertForMaskedLM

from lr_dist.retention.influence.ekfac import Queries, gradient_products, two_stage_influence
from lr_dist.retention.influence.factors import InverseCurvature, fit_factors
from lr_dist.retention.influence.model_stage import ModelStage
from lr_dist.retention.influence.objectives import Classification, MaskedTokens

TOPICS, WORDS, LENGTH = 10, 8, 4
CLS, MASK, FIRST = 1, 2, 3
SENTENCES, LABELLED, QUERIES = 200, 48, 24
MASKS = 8
SHARE = 0.3
PULLS = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Data:
    """Token ids [sentences, 1 + LENGTH] and labels."""

    sentences: Tensor
    labelled: Tensor
    labels: Tensor
    queries: Tensor
    query_labels: Tensor


def make_data(seed: int = 0) -> Data:
    """Each sentence has words of one topic; the label is the topic's parity."""
    draw = np.random.default_rng(seed)

    def sentences(count: int, words: Sequence[int]) -> tuple[Tensor, Tensor]:
        topics = np.arange(count) % TOPICS
        ids = FIRST + topics[:, None] * WORDS + draw.choice(words, (count, LENGTH))
        return torch.tensor(np.concatenate([np.full((count, 1), CLS), ids], 1)), torch.tensor(topics % 2)

    pretraining, _ = sentences(SENTENCES, range(WORDS))
    labelled, labels = sentences(LABELLED, range(WORDS // 2))
    queries, query_labels = sentences(QUERIES, range(WORDS // 2, WORDS))
    return Data(pretraining, labelled, labels, queries, query_labels)


class TwoHeads(nn.Module):
    """One BERT with the masked LM's head and a linear classifier on the mean state."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=FIRST + TOPICS * WORDS,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=LENGTH + 1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.1,
            tie_word_embeddings=False,
        )
        self.lm = BertForMaskedLM(config)
        self.classifier = nn.Linear(32, 2)
        # EK-FAC sees linear layers only, and in so small a model the embeddings hold most of what is learned of a
        # topic. So they are a linear layer of one-hot vectors, and the decoder has weights of its own.
        words = self.lm.bert.embeddings.word_embeddings
        self.embed = nn.Linear(words.num_embeddings, words.embedding_dim, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(words.weight.T)
        words.requires_grad_(False)

    def words(self, ids: Tensor) -> Tensor:
        return self.lm(inputs_embeds=self._embedded(ids)).logits

    def classes(self, ids: Tensor) -> Tensor:
        return self.classifier(self.lm.bert(inputs_embeds=self._embedded(ids)).last_hidden_state.mean(1))

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.embed(one_hot(ids, self.embed.in_features).float())


def masked(ids: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Ids with masks, and labels with -100 elsewhere; a sentence's masks depend on its content and the seed only."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.rand(ids.shape, generator=draw) < SHARE
    chosen[:, 0] = False
    chosen[:, 1] |= ~chosen.any(1)
    return torch.where(chosen, MASK, ids), torch.where(chosen, ids, -100)


def train(data: Data, kept: Tensor, seed: int, *, steps: int, fine_steps: int) -> tuple[TwoHeads, TwoHeads]:
    """Both stages' models, after learning the kept sentences (indices)."""
    model = TwoHeads(0)
    torch.manual_seed(seed + 1)
    nn.init.normal_(model.classifier.weight, std=0.02)
    parameters = [*trained(model.lm), *model.embed.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=4e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        # Masked before the subset is taken: a sentence has the same masks in every half.
        ids, labels = (each[kept] for each in masked(data.sentences, 1000 * seed + step))
        loss = MaskedTokens(lambda m, b: m).from_outputs(model.words(ids), labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    first = copy.deepcopy(model)
    parameters = [*trained(model.lm.bert), *model.embed.parameters(), *model.classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True)
    for _ in range(fine_steps):
        loss = cross_entropy(model.classes(data.labelled), data.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return first, model


def trained(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that are not frozen."""
    return [p for p in module.parameters() if p.requires_grad]


def margins(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Output of the right class minus that of the other [rows]."""
    outputs = model.classes(ids)  # type: ignore[operator]
    right = outputs.gather(1, labels[:, None]).squeeze(1)
    return 2 * right - outputs.sum(1)


def stages_of(first: TwoHeads, second: TwoHeads, data: Data) -> tuple[ModelStage, ModelStage]:
    """The two stages; each sentence of the first under MASKS masks."""
    draws = [masked(data.sentences, 10**6 + k) for k in range(MASKS)]
    rows = [{"ids": draws[k][0][i], "labels": draws[k][1][i]} for i in range(SENTENCES) for k in range(MASKS)]
    fine = [{"ids": ids, "labels": label} for ids, label in zip(data.labelled, data.labels, strict=True)]
    lm = MaskedTokens(lambda m, b: m.words(b["ids"]))
    classes = Classification(lambda m, b: m.classes(b["ids"]))
    return (
        ModelStage(first, lm, rows, stack, repeats=MASKS, batch_size=64),
        ModelStage(second, classes, fine, stack, batch_size=64),
    )


def stack(rows: list[Any]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def predictions(data: Data, models: Sequence[tuple[TwoHeads, TwoHeads]]) -> dict[str, np.ndarray]:
    """Method -> influences [queries, sentences], averaged over the seeds' models."""
    found: dict[str, list[Tensor]] = {}
    batch = {"ids": data.queries, "labels": data.query_labels}
    queries = Queries([batch], lambda m, b: margins(m, b["ids"], b["labels"]))
    for first, second in models:
        one, two = stages_of(first, second, data)
        with tempfile.TemporaryDirectory() as folder:
            factors, later = fit_factors(one, folder), fit_factors(two, folder)
        inverse = InverseCurvature(factors, factors.relative_damping(0.1))
        found.setdefault("gradient products", []).append(gradient_products(one, two, queries).total)
        for pull in PULLS:
            scores = two_stage_influence(one, two, inverse, later, queries, pull=pull * later.mean_value())
            found.setdefault(f"ekfac, pull {pull:g}", []).append(scores.total)
    return {name: torch.stack(each).mean(0).numpy() for name, each in found.items()}


def halves(count: int, seed: int) -> np.ndarray:
    """Random halves of the sentences, sorted indices [count, SENTENCES / 2]."""
    draw = np.random.default_rng(seed)
    return np.stack([np.sort(draw.permutation(SENTENCES)[: SENTENCES // 2]) for _ in range(count)])


def datamodeling_score(influences: np.ndarray, subsets: np.ndarray, outcomes: np.ndarray) -> float:
    """Mean over queries of the Spearman correlation over subsets; outcomes [subsets, queries]."""
    predicted = np.stack([influences[:, subset].sum(1) for subset in subsets])
    return rank_correlation(predicted, outcomes)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over columns of the Spearman correlation; a column without spread counts as 0."""
    a, b = (rankdata(each, axis=0) - (len(each) + 1) / 2 for each in (one, other))
    sizes = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return float(np.mean((a * b).sum(0) / np.where(sizes == 0, 1, sizes)))


def interval(influences: np.ndarray, subsets: np.ndarray, outcomes: np.ndarray, draws: int = 500) -> list[float]:
    """95% bootstrap interval over subsets."""
    rng = np.random.default_rng(0)
    picks = [rng.integers(len(subsets), size=len(subsets)) for _ in range(draws)]
    scores = [datamodeling_score(influences, subsets[p], outcomes[p]) for p in picks]
    return [round(float(v), 4) for v in np.quantile(scores, [0.025, 0.975])]


def measure(
    *,
    subsets: int = 60,
    tuning: int = 12,
    seeds: int = 2,
    steps: int = 100,
    fine_steps: int = 30,
    models: int = 12,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Train, predict and compare; plain data.

    Args:
        subsets: halves for the scores.
        tuning: other halves, to choose alpha on.
        seeds: trainings for each half.
        steps: of stage 1.
        fine_steps: of stage 2.
        models: trainings on all sentences, with other seeds, over which influences are averaged.
        keep: .npz file for influences and margins.
    """
    began, cpu = time.perf_counter(), time.process_time()
    data = make_data()
    options = {"steps": steps, "fine_steps": fine_steps}
    whole = [train(data, torch.arange(SENTENCES), seed, **options) for seed in range(models)]
    influences = predictions(data, whole)
    right = [float((margins(m, data.queries, data.query_labels) > 0).double().mean()) for _, m in whole]

    def outcomes(chosen: np.ndarray) -> np.ndarray:
        """Margins [seeds, subsets, queries]."""
        rows = []
        for seed in range(seeds):
            models = (train(data, torch.from_numpy(subset), seed, **options)[1] for subset in chosen)
            rows.append([margins(m, data.queries, data.query_labels).detach().numpy() for m in models])
        return np.array(rows)

    choosing, testing = halves(tuning, 1), halves(subsets, 2)
    before = outcomes(choosing).mean(0)
    chosen = {name: datamodeling_score(each, choosing, before) for name, each in influences.items()}
    best = max((name for name in chosen if name.startswith("ekfac")), key=chosen.__getitem__)
    measured = outcomes(testing)
    if keep is not None:
        np.savez(keep, testing=testing, measured=measured, choosing=choosing, before=before, **influences)
    mean = measured.mean(0)
    agreement = rank_correlation(measured[0], measured[1])
    scores = {name: datamodeling_score(each, testing, mean) for name, each in influences.items()}
    difference = interval_of_difference(influences[best], influences["gradient products"], testing, mean)
    return {
        "subsets": subsets,
        "seeds": seeds,
        "models": models,
        "accuracy_on_queries": right,
        "chosen_on_other_subsets": best,
        "on_other_subsets": {name: round(value, 4) for name, value in chosen.items()},
        "scores": {name: round(value, 4) for name, value in scores.items()},
        "intervals": {name: interval(influences[name], testing, mean) for name in (best, "gradient products")},
        "difference_to_gradient_products": difference,
        "agreement_of_two_seeds": round(agreement, 4),
        "ceiling": round((2 * agreement / (1 + agreement)) ** 0.5, 4) if agreement > 0 else None,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def interval_of_difference(
    ours: np.ndarray, other: np.ndarray, subsets: np.ndarray, outcomes: np.ndarray
) -> list[float]:
    """95% bootstrap interval of the difference of two scores, over the same subsets."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(500):
        pick = rng.integers(len(subsets), size=len(subsets))
        parts = (datamodeling_score(each, subsets[pick], outcomes[pick]) for each in (ours, other))
        found.append(next(parts) - next(parts))
    return [round(float(v), 4) for v in np.quantile(found, [0.025, 0.975])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("subsets", 60),
        ("tuning", 12),
        ("seeds", 2),
        ("steps", 100),
        ("fine-steps", 30),
        ("models", 12),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--keep", type=Path, help="File (.npz) for all influences and margins.")
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    result = measure(**arguments)
    print(json.dumps(result, indent=1))
    if output is not None:
        output.write_text(
            json.dumps({"arguments": arguments, **result}, indent=1, default=str) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
