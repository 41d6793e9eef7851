"""Exact influence over one and two stages, for small models: pure functions of losses and parameters.

Chen et al., Multi-Stage Influence Function, arXiv 2007.09081. Stage 1 minimises

    G(W, U) = mean_i g(z_i; W, U) + penalty.

W is shared with stage 2, U is its head. If the loss of z_i gets the weight 1/m + e, the minimum moves by e * I_i,

    I_i = -H_G^-1 grad g(z_i),        solved in (W, U) together.

Stage 2 minimises F over its head Theta with W frozen, or over (W', Theta) with the pull (alpha/2) |W' - W|^2. A
measure f of its minimum then moves by e times the score of z_i:

    frozen:  I_Theta = -F_TT^-1 F_TW I_W;            score = d_Theta f . I_Theta + d_W f . I_W
    pulled:  I = (Hess F + alpha on W')^-1 [alpha I_W; 0];   score = grad f . I

A score is the derivative of f when the example is up-weighted: positive if more of it raises f. Removing it changes f
by about -score / m. All is computed in float64, from the measure backwards, so that each candidate costs a gradient and
each measure two solutions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp

from lr_dist.checks import check_finite
from lr_dist.errors import InfluenceError, ModelMismatchError, listed, shown
from lr_dist.retention.influence.curvature import ConjugateGradients, Curvature, FullHessian
from lr_dist.retention.influence.vectors import Layout

Parameters = Mapping[str, Tensor]
Solver = Literal["full", "cg"]


def _no_penalty(parameters: Parameters) -> Tensor:
    return next(iter(parameters.values())).new_zeros(())


@dataclass(frozen=True)
class TrainedStage:
    """A stage at its minimum.

    Attributes:
        losses: parameters -> loss of each training example [examples].
        parameters: name -> float64 tensor, at the minimum of mean loss + penalty.
        penalty: parameters -> scalar; by default 0.
        damping: added to the diagonal of the Hessian before it is inverted.
        solver: "full" builds the Hessian; "cg" only multiplies with it.

    Raises:
        InfluenceError: an unknown solver, a negative damping, no parameters, or parameters that are not float64.
    """

    losses: Callable[[Parameters], Tensor]
    parameters: Parameters
    penalty: Callable[[Parameters], Tensor] = _no_penalty
    damping: float = 0.0
    solver: Solver = "full"

    def __post_init__(self) -> None:
        check_finite("damping", self.damping, error=InfluenceError)
        if self.solver not in ("full", "cg"):
            raise InfluenceError(f"solver must be full or cg, not {shown(self.solver)}.")
        Layout.of(self.parameters)

    @property
    def layout(self) -> Layout:
        """The order of the parameters in a vector."""
        return Layout.of(self.parameters)

    @property
    def vector(self) -> Tensor:
        """The parameters as a vector [size]."""
        return self.layout.vector(self.parameters).detach()

    def objective(self, vector: Tensor) -> Tensor:
        """What the stage has minimised, a scalar."""
        parameters = self.layout.tensors(vector)
        return self.losses(parameters).mean() + self.penalty(parameters)

    def curvature(self, names: list[str] | None = None) -> Curvature:
        """The damped Hessian at the minimum.

        Args:
            names: parameters to restrict it to; by default all.
        """
        at = self.vector
        places = self.layout.places(self.layout.shapes if names is None else names)

        def part(values: Tensor) -> Tensor:
            return self.objective(at.index_copy(0, places, values))

        if self.solver == "full":
            return FullHessian(hessian(part)(at[places]), self.damping)
        gradient = grad(part)
        return ConjugateGradients(lambda v: jvp(gradient, (at[places],), (v,))[1], self.damping)

    def example_gradients(self) -> Tensor:
        """Gradient of each example's loss [examples, size]."""
        losses = jacrev(lambda vector: self.losses(self.layout.tensors(vector)))(self.vector)
        if losses.dim() != 2 or not len(losses):
            raise InfluenceError(
                f"losses must return one loss for each example, [examples], not {list(losses.shape[:-1])}."
            )
        return losses

    def measure_gradients(self, measure: Callable[[Parameters], Tensor]) -> Tensor:
        """Gradient of each measure [measures, size]; a scalar is one measure."""
        gradients = jacrev(lambda vector: measure(self.layout.tensors(vector)).reshape(-1))(self.vector)
        return gradients.reshape(-1, self.layout.size)


def influence(stage: TrainedStage, measure: Callable[[Parameters], Tensor]) -> Tensor:
    """Influence of a stage's own examples.

    Args:
        stage: at its minimum.
        measure: parameters of the stage -> what is asked about, a scalar or [measures], such as a loss or a logit.

    Returns:
        Scores [measures, examples]: derivative of each measure when each example is up-weighted.

    Raises:
        SingularCurvatureError: the Hessian cannot be inverted.
    """
    back = stage.curvature().solve(stage.measure_gradients(measure).T)
    return -(back.T @ stage.example_gradients().T)


def frozen_influence(
    first: TrainedStage, second: TrainedStage, measure: Callable[[Parameters], Tensor], shared: list[str]
) -> Tensor:
    """Influence of the first stage's examples on a second stage that trained only its head.

    Args:
        first: over the shared parameters W and its head U.
        second: its parameters are W, with the values of the first stage, and its head Theta, at the minimum.
        measure: parameters of the second stage -> scalar or [measures].
        shared: names of W.

    Returns:
        Scores [measures, examples of the first stage].

    Raises:
        ModelMismatchError: the shared parameters are not the same in both stages.
        SingularCurvatureError: a Hessian cannot be inverted.
    """
    _check_shared(first, second, shared)
    for name in shared:
        if not torch.equal(first.parameters[name], second.parameters[name]):
            raise ModelMismatchError(
                f"{shown(name)} has other values in the second stage, so it was trained there: use pulled_influence, "
                "or give the checkpoint of the stage that followed the first one."
            )
    layout, at = second.layout, second.vector
    head = layout.rest(shared)
    towards, own = layout.places(shared), layout.places(head)
    gradients = second.measure_gradients(measure)
    back = second.curvature(head).solve(gradients[:, own].T)  # [head, measures]

    def in_head(vector: Tensor) -> Tensor:
        return grad(second.objective)(vector)

    through = []
    for column in back.T:
        # F_WT times the column, as the Hessian times a vector that is 0 outside of the head.
        along = torch.zeros_like(at).index_copy(0, own, column)
        through.append(jvp(in_head, (at,), (along,))[1][towards])
    return _through_first(first, gradients[:, towards] - torch.stack(through), shared)


def pulled_influence(
    first: TrainedStage,
    second: TrainedStage,
    measure: Callable[[Parameters], Tensor],
    shared: list[str],
    *,
    pull: float,
) -> Tensor:
    """Influence of the first stage's examples on a second stage that also trained W, with a pull to its first values.

    Args:
        first: over the shared parameters W and its head U.
        second: over W' (under the names of W) and its head Theta, at the minimum of its loss + (pull/2) |W' - W|^2;
            `penalty` is without the pull.
        measure: parameters of the second stage -> scalar or [measures].
        shared: names of W.
        pull: alpha.

    Returns:
        Scores [measures, examples of the first stage].

    Raises:
        ModelMismatchError: the shared parameters have other names or shapes in the two stages.
        SingularCurvatureError: a Hessian cannot be inverted.
    """
    pulled = with_pull(second, first, shared, pull)
    back = pulled.curvature().solve(pulled.measure_gradients(measure).T)  # [size, measures]
    return _through_first(first, pull * back[pulled.layout.places(shared)].T, shared)


def with_pull(second: TrainedStage, first: TrainedStage, shared: list[str], pull: float) -> TrainedStage:
    """The second stage with the pull to the first one as a part of its penalty.

    With `influence`, it gives the influence of the second stage's examples, for instance on the loss of an example of
    the first stage: what made the model forget it.
    """
    _check_shared(first, second, shared)
    check_finite("pull", pull, positive=True, error=InfluenceError)
    start = {name: first.parameters[name].detach() for name in shared}

    def penalty(parameters: Parameters) -> Tensor:
        moved = torch.stack([(parameters[name] - start[name]).square().sum() for name in shared]).sum()
        return second.penalty(parameters) + pull / 2 * moved

    return replace(second, penalty=penalty)


def _through_first(first: TrainedStage, on_shared: Tensor, shared: list[str]) -> Tensor:
    """Scores of the first stage's examples from what each measure gets by moving W [measures, W]."""
    places = first.layout.places(shared)
    whole = on_shared.new_zeros(len(on_shared), first.layout.size).index_copy(1, places, on_shared)
    back = first.curvature().solve(whole.T)
    return -(back.T @ first.example_gradients().T)


def _check_shared(first: TrainedStage, second: TrainedStage, shared: list[str]) -> None:
    if not shared:
        raise InfluenceError(
            "Name the parameters that both stages have: shared=[...]. Without any, nothing carries over."
        )
    for stage, which in ((first, "first"), (second, "second")):
        missing = [name for name in shared if name not in stage.parameters]
        if missing:
            raise ModelMismatchError(
                f"The {which} stage has no parameter {listed(missing)}; its parameters are {listed(stage.parameters)}."
            )
    for name in shared:
        ours, theirs = first.parameters[name].shape, second.parameters[name].shape
        if ours != theirs:
            raise ModelMismatchError(
                f"{shown(name)} is {list(ours)} in the first stage and {list(theirs)} in the second: the checkpoints "
                "are of two architectures."
            )
