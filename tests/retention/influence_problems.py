"""Small problems in two stages, trained to their minimum by Newton steps, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import grad, hessian

from lr_dist.retention.influence.exact import Parameters, TrainedStage, with_pull


def newton(stage: TrainedStage, *, steps: int = 100) -> TrainedStage:
    """The stage at the minimum of its objective, to rounding; from its parameters."""
    at = stage.vector
    slope_of = grad(stage.objective)
    for _ in range(steps):
        slope = slope_of(at)
        curvature = hessian(stage.objective)(at)
        lowest = float(torch.linalg.eigvalsh(curvature)[0])
        if lowest < 1e-6:  # far from the minimum of a loss that is not convex
            curvature = curvature + (1e-2 - lowest) * torch.eye(len(at), dtype=at.dtype)
        step, rate, value = torch.linalg.solve(curvature, slope), 1.0, float(stage.objective(at))
        # Close to the minimum, only the slope can tell what is better: the objective no longer changes.
        while rate > 1e-9 and float(stage.objective(at - rate * step)) >= value:
            if float(slope_of(at - rate * step).norm()) < 0.5 * float(slope.norm()) < 1e-4:
                break
            rate /= 2
        if float(slope.norm()) < 1e-14 or rate <= 1e-9:
            break
        at = at - rate * step
    assert float(grad(stage.objective)(at).norm()) < 1e-11
    return replace(stage, parameters={n: v.clone() for n, v in stage.layout.tensors(at).items()})


@dataclass(frozen=True)
class TwoStages:
    """A first and a second stage at their minima, and measures of the second.

    Attributes:
        pull: alpha; None where the second stage leaves W as it is.
    """

    first: TrainedStage
    second: TrainedStage
    measure: Callable[[Parameters], Tensor]
    shared: list[str]
    pull: float | None = None

    def retrained(self, example: int, weight: float) -> Tensor:
        """The measures after both stages are trained with `weight` more on an example of the first."""
        first = newton(upweighted(self.first, example, weight))
        return self.measure(self.after(first).parameters)

    def after(self, first: TrainedStage) -> TrainedStage:
        """The second stage at its minimum, when it follows `first`."""
        start = {name: first.parameters[name] for name in self.shared}
        if self.pull is not None:
            pulled = newton(with_pull(self.second, first, self.shared, self.pull))
            return replace(self.second, parameters=pulled.parameters)
        head = {name: value for name, value in self.second.parameters.items() if name not in self.shared}
        frozen = TrainedStage(
            losses=lambda p: self.second.losses({**start, **p}),
            parameters=head,
            penalty=lambda p: self.second.penalty({**start, **p}),
        )
        return replace(self.second, parameters={**start, **newton(frozen).parameters})

    def measured(self, example: int, step: float = 1e-4) -> Tensor:
        """The derivative of the measures when an example is up-weighted, by training again with more and with less.

        Two differences, of `step` and of its half, so that the error is of the fourth order.
        """
        wide, narrow = (
            (self.retrained(example, each) - self.retrained(example, -each)) / (2 * each) for each in (step, step / 2)
        )
        return (4 * narrow - wide) / 3

    def left_out(self, examples: Sequence[int]) -> Tensor:
        """Change of the measures when each of these examples is removed [measures, examples]."""
        before = self.measure(self.second.parameters)
        count = len(self.first.losses(self.first.parameters))
        return torch.stack([self.retrained(index, -1 / count) - before for index in examples], dim=-1)


def upweighted(stage: TrainedStage, example: int, weight: float) -> TrainedStage:
    """The stage with `weight` times the loss of an example added to its objective."""
    return replace(stage, penalty=lambda p: stage.penalty(p) + weight * stage.losses(p)[example])


def trained(problem: TwoStages) -> TwoStages:
    """The problem with both stages at their minima."""
    first = newton(problem.first)
    start = {name: first.parameters[name] for name in problem.shared}
    second = replace(problem.second, parameters={**problem.second.parameters, **start})
    ready = replace(problem, first=first, second=second)
    return replace(ready, second=ready.after(first))


def normal(seed: int) -> Callable[..., Tensor]:
    """Draws of a seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def squares(parameters: Parameters) -> Tensor:
    return torch.stack([value.square().sum() for value in parameters.values()]).sum()


def ridge(seed: int = 0, scales: tuple[float, ...] = (10, 3, 1, 1, 0.3, 0.1)) -> TwoStages:
    """Stage 1: three targets from six columns of unlike scale. Stage 2: a target from those three features."""
    draw = normal(seed)
    x = draw(60, 6) * torch.tensor(scales, dtype=torch.float64)
    y = x @ draw(6, 3) / 3 + draw(60, 3)
    x2 = draw(25, 6)
    y2, xt, yt = draw(25), draw(4, 6), draw(4)
    first = TrainedStage(
        losses=lambda p: (x @ p["w"] + p["u"] - y).square().sum(1) / 2,
        parameters={"w": draw(6, 3), "u": draw(3)},
        penalty=lambda p: 0.005 * squares(p),
    )
    second = TrainedStage(
        losses=lambda p: (x2 @ p["w"] @ p["theta"] - y2).square() / 2,
        parameters={"w": draw(6, 3), "theta": draw(3)},
        penalty=lambda p: 0.05 * p["theta"].square().sum(),
    )
    return trained(TwoStages(first, second, lambda p: (xt @ p["w"] @ p["theta"] - yt).square() / 2, ["w"]))


def logistic(seed: int = 1) -> TwoStages:
    """Stage 1: three binary labels. Stage 2: another one, from the same linear features, which are learned further."""
    draw = normal(seed)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    x = draw(30, 4)
    y = (x @ draw(4, 3) + draw(30, 3) > 0).double()
    x2 = draw(20, 4)
    y2, xt = (x2[:, 0] * x2[:, 1] + 0.5 * draw(20) > 0).double(), draw(3, 4)
    first = TrainedStage(
        losses=lambda p: bce(x @ p["w"] + p["u"], y, reduction="none").sum(1),
        parameters={"w": draw(4, 3), "u": draw(3)},
        penalty=lambda p: 0.02 * squares(p),
    )
    second = TrainedStage(
        losses=lambda p: bce(torch.sigmoid(x2 @ p["w"]) @ p["theta"], y2, reduction="none"),
        parameters={"w": draw(4, 3), "theta": draw(3)},
        penalty=lambda p: 0.02 * p["theta"].square().sum(),
    )
    return trained(TwoStages(first, second, lambda p: torch.sigmoid(xt @ p["w"]) @ p["theta"], ["w"], pull=0.3))


def tanh_net(seed: int = 2, pull: float | None = 0.1) -> TwoStages:
    """Two heads, one after the other, on a hidden layer of three tanh units."""
    draw = normal(seed)
    x = draw(20, 3)
    y = torch.tanh(x @ draw(3, 2)) + 0.3 * draw(20, 2)
    x2 = draw(15, 3)
    y2, xt, yt = torch.sin(x2.sum(1)) + 0.2 * draw(15), draw(3, 3), draw(3)
    first = TrainedStage(
        losses=lambda p: (torch.tanh(x @ p["w"] + p["b"]) @ p["u"] - y).square().sum(1) / 2,
        parameters={"w": draw(3, 3), "b": draw(3), "u": draw(3, 2)},
        penalty=lambda p: 0.01 * squares(p),
    )
    second = TrainedStage(
        losses=lambda p: (torch.tanh(x2 @ p["w"] + p["b"]) @ p["theta"] - y2).square() / 2,
        parameters={"w": draw(3, 3), "b": draw(3), "theta": draw(3)},
        penalty=lambda p: 0.01 * p["theta"].square().sum(),
    )
    return trained(
        TwoStages(
            first,
            second,
            lambda p: (torch.tanh(xt @ p["w"] + p["b"]) @ p["theta"] - yt).square() / 2,
            ["w", "b"],
            pull=pull,
        )
    )
