"""Linear datamodeling score of two-stage influence on a tiny transformer. `python tests/influence_lds.py --keep FILE`

A BERT of two layers learns 200 generated sentences as a masked LM (stage 1), then a few labelled ones (stage 2). The
words of a topic occur together in stage 1 only: the labelled sentences have some of a topic's words, the queries the
others. So the margin of a query rests on sentences of stage 1.

Influence through two stages describes how the minimum of two objectives moves, so these are what is trained here:

    stage 1:  mean loss of the sentences, each under K fixed masks + (damping / 2) |w - w_0|^2
    stage 2:  mean loss of the labelled sentences                  + (pull / 2) |w' - w|^2

with w_0 the first weights, on all examples in every step and without dropout, until little of the gradient is left
(by Adam, then by L-BFGS). Only linear layers are trained, which are all that EK-FAC sees. The damping and the pull in
the scores are those of the objectives.

For each of many random halves of the 200 sentences both stages are trained again from the same w_0. The score is the
Spearman correlation, over halves, between the margin of a query and the sum of the influences of the half's sentences,
averaged over queries (Park et al., arXiv 2303.14186). A seed has its own w_0, hence its own minimum: its influences
are compared with its own halves, and the scores are averaged over seeds. The interval is a bootstrap over halves.
Training has no other randomness, so 1 is the ceiling. For the mean over the seeds of influences and margins, the
ceiling is that of the noise between seeds: sqrt(2r / (1 + r)) for two seeds with correlation r.

Damping and pull are chosen with another seed on other halves: those with the largest difference to gradient products.
(Weak ones let half of the data lead to another minimum, which no derivative predicts; beside strong ones, curvature is
nothing.) What is reported is on new halves with new seeds. Every trained half is kept in FILE; a run that is
stopped goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
HIDDEN = 16
# Each word of a sentence is masked once: which places are hidden in each of the K masks.
MASKS = ((1, 3), (2, 4))
# (damping, pull) to choose from.
SETTINGS = ((0.3, 0.3), (1.0, 1.0), (3.0, 1.0))
RATE = 5e-3
CHOOSING_SEED, SEEDS = 0, (1, 2)
EKFAC, PRODUCTS = "EK-FAC through two stages", "gradient products"


@dataclass(frozen=True)
class Data:
    """Token ids [sentences, 1 + LENGTH] and labels."""

    sentences: Tensor
    labelled: Tensor
    labels: Tensor
    queries: Tensor
    query_labels: Tensor


@dataclass(frozen=True)
class Training:
    """How both stages are trained.

    Attributes:
        damping: of stage 1, the strength of the pull to the first weights.
        pull: of stage 2, the strength of the pull to the weights of stage 1.
        steps: of Adam in stage 1.
        polish: iterations of L-BFGS in stage 1, afterwards.
        fine_steps: iterations of L-BFGS in stage 2.
    """

    damping: float
    pull: float
    steps: int = 100
    polish: int = 25
    fine_steps: int = 40


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
    """One BERT with the masked LM's head and a linear classifier on the mean state.

    Attributes:
        left: of the gradient after the training, see `minimise`.
    """

    left = math.nan

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=FIRST + TOPICS * WORDS,
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * HIDDEN,
            max_position_embeddings=LENGTH + 1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=HIDDEN**-0.5,
            tie_word_embeddings=False,
        )
        self.lm = BertForMaskedLM(config)
        self.classifier = nn.Linear(HIDDEN, 2)
        # EK-FAC sees linear layers only, and in so small a model the embeddings hold most of what is learned of a
        # topic. So they are a linear layer of one-hot vectors, and the decoder has weights of its own.
        self.embed = nn.Linear(config.vocab_size, HIDDEN, bias=False)
        nn.init.normal_(self.embed.weight)
        nn.init.normal_(self.classifier.weight, std=0.5)
        nn.init.zeros_(self.classifier.bias)
        for module in self.modules():
            if type(module) is not nn.Linear:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
        self.eval()

    def states(self, vectors: Tensor) -> Tensor:
        """Of one-hot vectors [rows, tokens, words]."""
        return self.lm.bert(inputs_embeds=self.embed(vectors)).last_hidden_state

    def words(self, ids: Tensor) -> Tensor:
        return self.lm.cls(self.states(self.vectors(ids)))

    def classes(self, ids: Tensor) -> Tensor:
        return self.classifier(self.states(self.vectors(ids)).mean(1))

    def vectors(self, ids: Tensor) -> Tensor:
        return one_hot(ids, self.embed.in_features).float()


def masked(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and labels (-100 where nothing is hidden) under each mask [sentences, masks, 1 + LENGTH]."""
    hidden = torch.zeros(len(MASKS), ids.shape[1], dtype=torch.bool)
    for mask, places in enumerate(MASKS):
        hidden[mask, list(places)] = True
    several = ids[:, None].expand(-1, len(MASKS), -1)
    return several.masked_fill(hidden, MASK), several.masked_fill(~hidden, -100)


def train_first(data: Data, kept: Tensor, seed: int, how: Training) -> TwoHeads:
    """The model after stage 1, on the kept sentences (indices)."""
    model = TwoHeads(seed)
    ids, labels = (each[kept].flatten(0, 1) for each in masked(data.sentences))
    parameters = trained(model.lm, model.embed)
    model.left = minimise(parameters, mean_masked_loss(model, ids, labels), how.damping, how.steps, how.polish)
    return model


def mean_masked_loss(model: TwoHeads, ids: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """The mean of `MaskedTokens` over rows with as many hidden tokens each; logits only where a token is hidden."""
    vectors, places = model.vectors(ids), (labels != -100).flatten().nonzero().flatten()
    hidden = labels.flatten()[places]
    return lambda: cross_entropy(model.lm.cls(model.states(vectors).flatten(0, 1)[places]), hidden)


def train_second(data: Data, first: TwoHeads, how: Training) -> TwoHeads:
    """The model after stage 2; `first` is not changed."""
    model = copy.deepcopy(first)
    model.left = minimise(
        trained(model.lm.bert, model.embed, model.classifier),
        lambda: cross_entropy(model.classes(data.labelled), data.labels),
        how.pull,
        0,
        how.fine_steps,
    )
    return model


def minimise(
    parameters: list[nn.Parameter], loss: Callable[[], Tensor], strength: float, steps: int, polish: int = 0
) -> float:
    """Minimise a loss with a pull to where the parameters are now.

    Args:
        parameters: are changed.
        loss: of the data.
        strength: of the pull.
        steps: of Adam, whose rate rises in ten steps and falls to 0.
        polish: iterations of L-BFGS afterwards.

    Returns:
        The norm of the gradient that is left, as a share of that of the pull: 0 at a minimum.
    """
    centre = [parameter.detach().clone() for parameter in parameters]
    adam = torch.optim.Adam(parameters, lr=RATE, betas=(0.9, 0.99), fused=True)

    def away() -> list[Tensor]:
        return list(torch._foreach_sub([parameter.detach() for parameter in parameters], centre))

    def objective() -> Tensor:
        """The value; sets the gradients."""
        adam.zero_grad()
        value = loss()
        value.backward()
        pulled = away()
        torch._foreach_add_([parameter.grad for parameter in parameters], pulled, alpha=strength)
        return value.detach() + strength / 2 * norm(pulled) ** 2

    for step in range(steps):
        adam.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / steps))
        objective()
        adam.step()
    if polish:
        exact = {"tolerance_grad": 0.0, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
        torch.optim.LBFGS(parameters, max_iter=polish, history_size=20, **exact).step(objective)  # type: ignore[arg-type]
    objective()
    left = norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    adam.zero_grad()
    return left / max(strength * norm(away()), 1e-12)


def norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([tensor.detach().norm() for tensor in tensors]).norm())


def trained(*modules: nn.Module) -> list[nn.Parameter]:
    """Parameters that are not frozen."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def margins(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Output of the right class minus that of the other [rows]."""
    outputs = model.classes(ids)  # type: ignore[operator]
    right = outputs.gather(1, labels[:, None]).squeeze(1)
    return 2 * right - outputs.sum(1)


def stages_of(first: TwoHeads, second: TwoHeads, data: Data) -> tuple[ModelStage, ModelStage]:
    """The two stages; each sentence of the first under its masks."""
    ids, labels = (each.flatten(0, 1) for each in masked(data.sentences))
    rows = [{"ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    fine = [{"ids": row, "labels": label} for row, label in zip(data.labelled, data.labels, strict=True)]
    lm = MaskedTokens(lambda m, b: m.words(b["ids"]))
    classes = Classification(lambda m, b: m.classes(b["ids"]))
    return (
        ModelStage(first, lm, rows, stack, repeats=len(MASKS), batch_size=64),
        ModelStage(second, classes, fine, stack, batch_size=64),
    )


def stack(rows: list[Any]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def predictions(data: Data, first: TwoHeads, second: TwoHeads, how: Training) -> dict[str, np.ndarray]:
    """Method -> influences [queries, sentences] for the models that learned all sentences."""
    batch = {"ids": data.queries, "labels": data.query_labels}
    queries = Queries([batch], lambda m, b: margins(m, b["ids"], b["labels"]))
    one, two = stages_of(first, second, data)
    with tempfile.TemporaryDirectory() as folder:
        factors, later = fit_factors(one, folder), fit_factors(two, folder, labels="expected")
    inverse = InverseCurvature(factors, factors.constant_damping(how.damping))
    return {
        PRODUCTS: gradient_products(one, two, queries).total.numpy(),
        EKFAC: two_stage_influence(one, two, inverse, later, queries, pull=how.pull).total.numpy(),
    }


def halves(count: int, seed: int) -> np.ndarray:
    """Random halves of the sentences, sorted indices [count, SENTENCES / 2]."""
    draw = np.random.default_rng(seed)
    return np.stack([np.sort(draw.permutation(SENTENCES)[: SENTENCES // 2]) for _ in range(count)])


@dataclass
class Kept:
    """Outcomes by name, in a file with a line for each."""

    file: Path | None
    known: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            lines = self.file.read_text(encoding="utf-8").splitlines()
            self.known = {entry["name"]: entry["value"] for entry in map(json.loads, lines)}

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """What is known by this name, or is computed now."""
        if name not in self.known:
            self.known[name] = compute()
            if self.file is not None:
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"name": name, "value": self.known[name]}) + "\n")
        return self.known[name]


def outcomes(data: Data, subsets: np.ndarray, seed: int, hows: Sequence[Training], kept: Kept) -> np.ndarray:
    """Margins [settings, subsets, queries]; settings with the same stage 1 share it."""
    rows: dict[Training, list[list[float]]] = {how: [] for how in hows}
    for subset in subsets:
        firsts: dict[tuple[float, int], TwoHeads] = {}
        for how in hows:

            def margins_now(how: Training = how, firsts: dict[Any, TwoHeads] = firsts, subset: Any = subset) -> Any:
                key = how.damping, how.steps
                if key not in firsts:
                    firsts[key] = train_first(data, torch.from_numpy(subset), seed, how)
                model = train_second(data, firsts[key], how)
                return margins(model, data.queries, data.query_labels).tolist()

            rows[how].append(kept.get(f"{seed} {how} {subset.tolist()}", margins_now))
    return np.array([rows[how] for how in hows])


def influences_of(data: Data, seed: int, how: Training, kept: Kept) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Influences of the sentences, and facts on the model that learned all of them: accuracy on the queries, and the
    share of the gradient that was left in each stage.
    """

    def compute() -> Any:
        first = train_first(data, torch.arange(SENTENCES), seed, how)
        second = train_second(data, first, how)
        right = float((margins(second, data.queries, data.query_labels) > 0).double().mean())
        found = predictions(data, first, second, how)
        left = [first.left, second.left]
        return {"accuracy": right, "left": left, "influences": {name: each.tolist() for name, each in found.items()}}

    found = kept.get(f"{seed} {how} influences", compute)
    return {name: np.array(each) for name, each in found["influences"].items()}, {
        "accuracy": found["accuracy"],
        "left": found["left"],
    }


def datamodeling_score(influences: np.ndarray, subsets: np.ndarray, outcomes: np.ndarray) -> float:
    """Mean over queries of the Spearman correlation over subsets; outcomes [subsets, queries]."""
    predicted = np.stack([influences[:, subset].sum(1) for subset in subsets])
    return rank_correlation(predicted, outcomes)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over columns of the Spearman correlation; a column without spread counts as 0."""
    a, b = (rankdata(each, axis=0) - (len(each) + 1) / 2 for each in (one, other))
    sizes = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return float(np.mean((a * b).sum(0) / np.where(sizes == 0, 1, sizes)))


def paired_score(influences: Sequence[np.ndarray], subsets: np.ndarray, measured: Sequence[np.ndarray]) -> float:
    """Mean over seeds of each seed's own score."""
    each = [datamodeling_score(one, subsets, rows) for one, rows in zip(influences, measured, strict=True)]
    return float(np.mean(each))


def interval(score: Callable[[np.ndarray], float], subsets: int, draws: int = 500) -> list[float]:
    """95% bootstrap interval over subsets; `score` takes indices of subsets."""
    rng = np.random.default_rng(0)
    found = [score(rng.integers(subsets, size=subsets)) for _ in range(draws)]
    return [round(float(v), 4) for v in np.quantile(found, [0.025, 0.975])]


def measure(
    *, subsets: int = 50, tuning: int = 10, seeds: Sequence[int] = SEEDS, keep: Path | None = None, **steps: int
) -> dict[str, Any]:
    """Choose the setting on `tuning` halves, then train, predict and compare on other ones; plain data.

    Args:
        subsets: halves for the scores.
        tuning: other halves, to choose damping and pull on.
        seeds: of the scores.
        keep: JSONL file of what is trained.
        steps: of `Training`.
    """
    began = time.process_time()
    data, kept = make_data(), Kept(keep)
    hows = [Training(damping, pull, **steps) for damping, pull in SETTINGS]
    choosing, testing = halves(tuning, 1), halves(subsets, 2)
    tried = []
    for how, rows in zip(hows, outcomes(data, choosing, CHOOSING_SEED, hows, kept), strict=True):
        found, facts = influences_of(data, CHOOSING_SEED, how, kept)
        scores = {name: round(datamodeling_score(each, choosing, rows), 4) for name, each in found.items()}
        tried.append({"damping": how.damping, "pull": how.pull, **facts, **scores})
    best = max(range(len(hows)), key=lambda place: tried[place][EKFAC] - tried[place][PRODUCTS])
    how = hows[best]
    found = [influences_of(data, seed, how, kept) for seed in seeds]
    measured = [outcomes(data, testing, seed, [how], kept)[0] for seed in seeds]
    ours, plain = ([each[name] for each, _ in found] for name in (EKFAC, PRODUCTS))

    def score(influences: Sequence[np.ndarray], pick: np.ndarray) -> float:
        return paired_score(influences, testing[pick], [rows[pick] for rows in measured])

    everything = np.arange(subsets)
    agreement = rank_correlation(measured[0], measured[1])
    averaged = np.mean(measured, 0)
    return {
        "subsets": subsets,
        "seeds": list(seeds),
        "on_other_subsets": tried,
        "chosen": {"damping": how.damping, "pull": how.pull},
        "models": [facts for _, facts in found],
        "scores": {EKFAC: round(score(ours, everything), 4), PRODUCTS: round(score(plain, everything), 4)},
        "by_seed": {
            name: [round(datamodeling_score(one, testing, rows), 4) for one, rows in zip(each, measured, strict=True)]
            for name, each in ((EKFAC, ours), (PRODUCTS, plain))
        },
        "intervals": {
            EKFAC: interval(lambda pick: score(ours, pick), subsets),
            PRODUCTS: interval(lambda pick: score(plain, pick), subsets),
        },
        "difference": interval(lambda pick: score(ours, pick) - score(plain, pick), subsets),
        "means_over_seeds": {
            EKFAC: round(datamodeling_score(np.mean(ours, 0), testing, averaged), 4),
            PRODUCTS: round(datamodeling_score(np.mean(plain, 0), testing, averaged), 4),
            "agreement_of_two_seeds": round(agreement, 4),
            "ceiling": round((2 * agreement / (1 + agreement)) ** 0.5, 4) if agreement > 0 else None,
        },
        "cpu_seconds_of_this_process": round(time.process_time() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("subsets", 50), ("tuning", 10), ("steps", 100), ("fine-steps", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--keep", type=Path, help="File (.jsonl) of what is trained; a later run goes on from it.")
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
