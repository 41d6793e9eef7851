"""`LinearProbe`: how well each earlier task can still be read off the encoder, whatever has become of its head.

Forgetting has two causes: the head no longer fits the encoder, or the encoder no longer tells the classes apart
(arXiv 2312.07887, 2303.01081). A new head on the frozen encoder is free of the first one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist._lightning import isolate_rng
from lr_dist.runs.machine import training_device
from lr_dist.sequence.evaluate import vectors_of
from lr_dist.sequence.measures import Measure
from lr_dist.sequence.observers import Scores, SequenceState
from lr_dist.sequence.stage import Stage
from lr_dist.tasks import Scorer, Task

# Of the mean loss on standardised vectors; not tuned.
RIDGE = 1e-2
_STEPS = 100


class LinearProbe(Measure):
    """Fits a new linear head to each earlier task on the frozen encoder: after that task, and after the last one.

    The head sees the task's training examples; its score is that on the split which the comparison is scored on.
    `learned - retained` is what the encoder has forgotten; what the task's own head forgets beyond it is due to the
    head.

    The result has, for each task but the last, `learned` and `retained` (every metric). Metrics of a run with earlier
    tasks: `probe_p_o`, the mean of their `retained` (primary) scores, and `probe_forgetting`, the mean of `learned -
    retained`.
    """

    name = "linear_probe"

    def __init__(self) -> None:
        self._learned: list[Scores] = []
        self._retained: list[Scores] = []
        self._primary: list[str] = []

    def identity(self) -> Any:
        return {"ridge": RIDGE}

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        if stage.index < len(run.stages) - 1:
            self._primary.append(stage.task.primary)
            self._learned.append(self._probe(run, stage))
        else:
            self._retained = [self._probe(run, each) for each in run.stages[:-1]]

    def result(self) -> list[dict[str, Scores]]:
        both = zip(self._learned, self._retained, strict=True)
        return [{"learned": learned, "retained": retained} for learned, retained in both]

    def metrics(self) -> dict[str, float]:
        earlier = list(zip(self._primary, self._learned, self._retained, strict=True))
        if not earlier:
            return {}
        return {
            "probe_p_o": statistics.fmean(retained[primary] for primary, _, retained in earlier),
            "probe_forgetting": statistics.fmean(learned[key] - retained[key] for key, learned, retained in earlier),
        }

    def _probe(self, run: SequenceState, stage: Stage) -> Scores:
        return run.known.get((self.name, stage.index), lambda: self._fit(run, stage))

    def _fit(self, run: SequenceState, stage: Stage) -> Scores:
        run.module.to(training_device())
        with isolate_rng():
            pad = run.view.pad_token_id
            seen, labels = vectors_of(run.module, stage.tokens.train, pad)
            tested, truth = vectors_of(run.module, getattr(stage.tokens, run.bench.settings.evaluate_on), pad)
            return probe(stage.task, (seen, labels), (tested, truth))


def probe(task: Task, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Scores:
    """Every metric on `test` of a linear head fitted to `train`; both are vectors [n, hidden] and labels [n]."""
    head = fit_linear(task, *train)
    scorer = Scorer(task)
    scorer.update(head(test[0]), test[1])
    return scorer.compute()


def fit_linear(task: Task, vectors: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit a linear head, and return the function from vectors [n, hidden] to its outputs [n, number of outputs].

    It minimises the mean cross-entropy (half the squared error for numbers) plus `RIDGE` / 2 times the squared weights,
    on vectors standardised over those given, by L-BFGS in float64 from zero.
    """
    mean, sd = vectors.double().mean(dim=0), vectors.double().std(dim=0).clamp_min(1e-6)
    seen = (vectors.double() - mean) / sd
    weight = torch.zeros(seen.shape[1], task.num_outputs, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(task.num_outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_STEPS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        outputs = seen @ weight + bias
        if task.kind == "regression":
            loss = nn.functional.mse_loss(outputs[:, 0], labels.double()) / 2
        else:
            loss = nn.functional.cross_entropy(outputs, labels)
        loss = loss + RIDGE / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return lambda new: ((new.double() - mean) / sd @ weight + bias).detach()
