"""Interpolation (WiSE-FT): at a stage's end, weights between those before the stage and those that it learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lr_dist._lightning import L
from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError, UnsupportedWeightsError, shown
from lr_dist.layers import Overrides, assign_layers
from lr_dist.methods.alpha_search import AlphaChoice, Alphas, AlphaScore, check_score, choose_alphas
from lr_dist.methods.anchor import Anchor
from lr_dist.methods.base import Method, MethodInfo, Needs, Order, Setting
from lr_dist.methods.context import StageContext
from lr_dist.methods.interpolation import (
    Alpha,
    alpha_profile,
    alpha_text,
    between,
    check_alpha,
    check_head,
    layer_alphas,
    plain_name,
)
from lr_dist.methods.lora import has_adapters

AUTO = "auto"
HeldOut = Callable[[L.LightningModule], float]


class Interpolate(Method):
    """Replaces, at the end of a fit, each weight theta below the head by

        theta_before + alpha (theta - theta_before)

    with the weights at the start of the fit, and an alpha for every depth (Wortsman et al. 2022, WiSE-FT,
    arXiv 2109.01903: one alpha for all). It does not change the training and costs none.

        trainer = L.Trainer(callbacks=[LayerwiseLR("flat:lr=2e-4"), Interpolate(0.7)])

    With `alpha="auto"`, scores on held-out examples choose: one alpha from 0, 0.1, ..., 1, then one for each depth by
    coordinate search, kept only if it is better on a half of the examples that chose nothing. What is maximised is the
    mean of the score on the earlier tasks and that on the new one (`weight`). The result is in `choice`, and logged.

        Interpolate("auto", held_out={"sst2": (score_sst2, check_sst2), "qqp": (score_qqp, check_qqp)})

    In a user's own Trainer every fit is interpolated. In a sequence (`lr_dist.sequence`) the first stage is left as it
    is: there is no earlier task. Buffers, such as BatchNorm's statistics, stay as learned. Weights of 16 bits are
    computed in 32. Checkpoints that a callback writes during the fit have the weights of the training;
    `trainer.save_checkpoint` after the fit has the interpolated ones. Adapters have to be merged before (`LoRA` does);
    then it interpolates the merged weights.

    Memory: one copy of the weights below the head, in checkpoints too; a second one while `auto` chooses. Works under
    DDP and FSDP2.

    Args:
        alpha: a number from 0 (as before) to 1 (as learned), or one for every depth, written as a distribution:
            `linear:first=0.4,last=0.9`; or `auto`.
        head: `learned` leaves what comes after the last layer (and every task's head) as it was learned;
            `interpolated` interpolates it, too, for a head that was trained before.
        weight: for `auto`, the share of the earlier tasks in what is maximised, from 0 to 1.
        evaluations: for `auto`, the most layer-wise interpolations that are scored; 0: one alpha for all depths.
        held_out: for `auto` in a user's own Trainer: task -> function of the module that returns its score (higher is
            better), or a pair of functions, of which the second has other examples. The new task is the last one.
            Without pairs, one alpha for all depths is chosen. With several processes, their scores are averaged.
        overrides: regex -> group name for parameters that `assign_layers` cannot place (what is the head).

    Attributes:
        choice: what `auto` has chosen, with the scores; None before.

    Raises:
        InvalidAlphaError: an alpha or weight that is not from 0 to 1, or another `head`.
        InvalidDistributionError: a text that is no distribution.
        ConfigurationError: at the start of a fit, `auto` without held-out scores of two tasks; at its end, a score that
            is not a finite number.
        ResumeMismatchError: a checkpoint that was written without this method, with other settings, or after its end.
    """

    name: ClassVar[str] = "interpolate"
    info: ClassVar[MethodInfo] = MethodInfo(
        "weights between those before a stage and those after it, by depth",
        "Wortsman et al. 2022, arXiv 2109.01903",
        stores="one copy of the weights during a stage",
    )
    order: ClassVar[Order] = Order.BORDER

    def __init__(
        self,
        alpha: Alpha = 0.7,
        head: str = "learned",
        weight: float = 0.5,
        evaluations: int = 36,
        *,
        held_out: Mapping[str, HeldOut | tuple[HeldOut, HeldOut]] | None = None,
        overrides: Overrides | None = None,
    ) -> None:
        self.alpha = None if alpha == AUTO else alpha_profile(alpha)
        self.head = check_head(head)
        self.weight = check_alpha("weight", weight)
        self.evaluations = check_whole("evaluations", evaluations, 0, error=ConfigurationError)
        if self.alpha is None:
            self.needs = Needs(held_out=True)
        elif held_out is not None:
            raise ConfigurationError(f'held_out is for alpha="auto"; alpha is {shown(str(alpha))}.')
        self.held_out = held_out
        self.overrides = overrides
        self.choice: AlphaChoice | None = None
        self._anchor = Anchor()
        self._restored = False
        self._alphas: dict[str, float] = {}

    @override
    def settings(self) -> dict[str, Setting]:
        if self.alpha is not None:
            return {"alpha": alpha_text(self.alpha), "head": self.head}
        return {"alpha": AUTO, "head": self.head, "weight": self.weight, "evaluations": self.evaluations}

    @override
    def trains_in(self, context: StageContext) -> bool:
        """Never: the weights change after the last step."""
        return False

    @override
    def stage_started(self, module: L.LightningModule) -> None:
        """Copy the weights, unless they are known from a checkpoint."""
        if not self._restored:
            self._anchor = Anchor()  # a fit that failed may have left one
        self._restored = False
        self._alphas = {}
        self.choice = None
        if self._context is not None and self._context.index == 0:
            return
        if has_adapters(module, other=True):
            raise UnsupportedWeightsError(
                f"{type(module).__name__} has adapters that stay after the fit; to interpolate their factors is "
                "not to interpolate the weights. Merge them before the fit, or let the method lora put them in."
            )
        if self.alpha is None:
            self._check_held_out()
            # Any value below 1, so that these weights are held.
            groups = dict.fromkeys(assign_layers(module, self.overrides).groups, 0.0)
            alphas = layer_alphas(module, groups, head=self.head, overrides=self.overrides)
        else:
            alphas = layer_alphas(module, self.alpha, head=self.head, overrides=self.overrides)
        self._alphas = {plain_name(name): alpha for name, alpha in alphas.items()}
        parameters = ((plain_name(name), parameter) for name, parameter in module.named_parameters())
        held = ((name, p) for name, p in parameters if ".lora_" not in name)
        self._anchor.hold((name, p) for name, p in held if self._alphas.get(name, 1.0) != 1)

    @override
    @torch.no_grad()
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        """Interpolate, and let go of the weights before."""
        if self.alpha is None and self._alphas:
            self.choice = self._choose(module)
        else:
            self._interpolate(module, self._alphas, {})
        self._anchor = Anchor()

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Interpolate, and log what `auto` has chosen."""
        super().on_train_end(trainer, pl_module)
        if self.choice is not None:
            values = {f"interpolate/alpha/{group}": alpha for group, alpha in self.choice.alphas.items()}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)

    @override
    def outcome(self) -> dict[str, Any]:
        """What `auto` has chosen."""
        return {} if self.choice is None else self.choice.to_dict()

    @override
    def state(self) -> dict[str, Any]:
        return {"before": self._anchor.state_dict()}

    @override
    def load_state(self, state: Mapping[str, Any]) -> None:
        self._anchor = Anchor()
        self._anchor.load_state_dict(state["before"])
        self._restored = True

    def _interpolate(self, module: L.LightningModule, alphas: Alphas, after: Mapping[str, Tensor]) -> None:
        """Write the interpolated weights.

        Args:
            module: the model.
            alphas: plain name -> coefficient.
            after: the learned weights, where the module no longer has them.
        """
        for full_name, parameter in module.named_parameters():
            name = plain_name(full_name)
            if name in self._anchor:
                parameter.copy_(between(self._anchor[name], after.get(name, parameter.detach()), alphas[name]))

    def _choose(self, module: L.LightningModule) -> AlphaChoice:
        after = {
            plain_name(name): parameter.detach().clone()
            for name, parameter in module.named_parameters()
            if plain_name(name) in self._anchor
        }

        layers = assign_layers(module, self.overrides)
        group_of = {plain_name(name): group for name, group in layers.group_of.items()}

        def place(alphas: Alphas) -> None:
            self._interpolate(module, {name: alphas[group_of[name]] for name in after}, after)

        def scoring(part: int | None) -> Callable[[Alphas], AlphaScore]:
            def score(alphas: Alphas) -> AlphaScore:
                place(alphas)
                with _evaluating(module):
                    return self._score(module, part)

            return score

        groups = [group for group in layers.groups if group != "head" or self.head == "interpolated"]
        halves = self._context is not None and bool(self._context.held_out)
        halves = halves or all(isinstance(each, tuple) for each in (self.held_out or {}).values())
        choice = choose_alphas(
            scoring(0 if halves else None),
            groups,
            check=scoring(1) if halves else None,
            weight=self.weight,
            evaluations=self.evaluations,
        )
        place(choice.alphas)
        return choice

    def _score(self, module: L.LightningModule, part: int | None) -> AlphaScore:
        if self._context is not None and self._context.held_out:
            scores = {task: score(module, part=part) for task, score in self._context.held_out.items()}
        else:
            functions = {
                task: each[part or 0] if isinstance(each, tuple) else each
                for task, each in (self.held_out or {}).items()
            }
            scores = {task: score(module) for task, score in functions.items()}
        *old, new = (_average(check_score(task, value), module) for task, value in scores.items())
        return AlphaScore(sum(old) / len(old), new)

    def _check_held_out(self) -> None:
        held_out = self._context.held_out if self._context is not None and self._context.held_out else self.held_out
        if len(held_out or ()) < 2:
            raise ConfigurationError(
                f"interpolate:alpha=auto chooses by scores of the earlier tasks and of the new one, and was given "
                f"{', '.join(held_out or ()) or 'none'}. Pass held_out={{'old': score_old, 'new': score_new}}, the new "
                "task last, or give alpha as a number."
            )


@contextmanager
def _evaluating(module: L.LightningModule) -> Iterator[None]:
    """The module in evaluation mode; each of its parts is left as it was, so frozen ones stay in theirs."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _average(score: float, module: L.LightningModule) -> float:
    """The mean over all processes, so that all choose the same."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return score
    total = torch.tensor(score, dtype=torch.float64, device=module.device)
    torch.distributed.all_reduce(total)
    return total.item() / torch.distributed.get_world_size()
