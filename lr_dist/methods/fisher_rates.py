"""Rates from Fisher information: layers on which earlier knowledge depends learn more slowly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from typing_extensions import override

from lr_dist._distribution.inverse import inverse_factors
from lr_dist._lightning import L, isolate_rng
from lr_dist.checks import check_finite, check_whole
from lr_dist.distribution import LRDistribution
from lr_dist.errors import ConfigurationError, InvalidRateError, shown
from lr_dist.layers import Overrides, assign_layers, clean_name
from lr_dist.methods.base import Method, MethodInfo, Setting
from lr_dist.methods.context import StageContext
from lr_dist.methods.importance import LABELS, Labels, fisher, protected_parameters
from lr_dist.methods.task_functions import TaskFunctions
from lr_dist.names import layer_of
from lr_dist.step_factors import StepFactors


def fisher_by_layer(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    examples: int = 300,
    labels: str = "sampled",
    head: str | None = None,
    functions: TaskFunctions | None = None,
    overrides: Overrides | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Each layer's Fisher information per parameter: the mean over its parameters of its diagonal (see `EWC`).

    Parameters that no example reaches (embeddings of other words, other heads) are left out of the mean; otherwise the
    embeddings, of which a few hundred texts read a few percent, would seem to matter to nothing.

    Args:
        model: with the knowledge to keep, and its head: a classifier and texts of its task, or a masked language model
            and masked texts. Afterwards it is as before.
        loader: batches, as `TaskFunctions` knows them; no labels are needed with labels="sampled".
        examples: at most so many are used.
        labels: `sampled` from the model's own predictions (the Fisher information), or the data's `true` ones.
        head: of a module with several heads.
        functions: outputs, targets and loss of a batch of another form.
        overrides: regex -> group, for parameters that no rule places (see `assign_layers`).
        seed: for `sampled`.

    Returns:
        `embeddings`, `layers.0`, ..., `head` -> mean, 0 or more. Layers that no example reaches have 0.

    Raises:
        ConfigurationError: no example, a batch of unknown form, invalid `examples` or `labels`.
        DivergedError: a gradient is not finite.
        LRDistError: layers that cannot be found (see `assign_layers`).
    """
    check_whole("examples", examples, 1, error=ConfigurationError)
    if labels not in LABELS:
        raise ConfigurationError(f"labels must be {' or '.join(LABELS)}, not {shown(labels)}.")
    layers = assign_layers(model, overrides)
    module = model if isinstance(model, L.LightningModule) else _Holder(model)
    parameters = protected_parameters(model)
    with isolate_rng():
        found = fisher(
            module,
            parameters,
            loader,
            functions or TaskFunctions(),
            head=head,
            labels=cast(Labels, labels),
            examples=examples,
            seed=seed,
        )
    return {
        group: _mean([found[name] for name in map(clean_name, names) if name in found])
        for group, names in layers.groups.items()
    }


def fisher_rates(
    model: nn.Module,
    loader: Iterable[Any],
    lr: float,
    *,
    power: float = 0.5,
    limit: float = 10.0,
    permuted: int | None = None,
    relative: bool = False,
    **options: Any,
) -> LRDistribution:
    """`LRDistribution.from_fisher` of `fisher_by_layer`: rates from a model and a few hundred examples, in seconds.

        rates = fisher_rates(classifier, loader_of_its_task, lr=1e-4)
        L.Trainer(callbacks=[LayerwiseLR(rates)])  # learns the next task

    Args:
        model: with the knowledge to keep.
        loader: batches of examples of this knowledge.
        lr: the geometric mean of the rates.
        power: how fast rates fall; 0 is flat.
        limit: no rate is above limit x lr or below lr / limit.
        permuted: seed of a permutation over depth, for a control.
        relative: whether the rates are multiples of the optimizer's own rate.
        options: of `fisher_by_layer`.

    Raises:
        LRDistError: as `fisher_by_layer` and `LRDistribution.from_fisher`.
    """
    by_layer = fisher_by_layer(model, loader, **options)
    return LRDistribution.from_fisher(by_layer, lr, power=power, limit=limit, permuted=permuted, relative=relative)


class FisherRates(Method):
    """From the second stage on, multiplies each layer's rate by

        (F / mean F)^-power, cut to 1 / limit ... limit,

    F being the layer's Fisher information of the tasks so far per parameter (`fisher_by_layer`, summed over tasks), and
    mean F the geometric mean over embeddings and layers: layers on which the earlier tasks depend learn more slowly,
    and those on which they do not learn faster. power=1 makes the sum of n F r^2 least for a given mean movement r (see
    `LRDistribution.from_fisher`). The head keeps its rate.

        trainer = L.Trainer(callbacks=[LayerwiseLR("flat:lr=1e-4"), FisherRates(power=0.5)])

    The factors hold during a step of the optimizer only, so that schedules, checkpoints and monitors see the plan's
    rates. They multiply whatever distribution the plan has. `permuted` gives the same factors to other layers: the
    control that tells whether it matters which. F is computed at the end of each stage from examples of its loader;
    `learn_from` takes what the model knew before.

    Memory: a few numbers. Works under DDP, with gradient accumulation, clipping and mixed precision.

    Args:
        power: how fast rates fall with F, 0 or more.
        limit: of the factors, 1 or more.
        examples: at most so many of a stage's examples are used.
        permuted: 0, or the seed of a permutation of the factors over depth.
        functions: outputs, targets and loss of a batch, where they are not found by themselves.
        overrides: regex -> group name for parameters that `assign_layers` cannot place.

    Raises:
        InvalidRateError: `power` or `limit` out of range; at the start of a later stage, a layer whose F is 0.
        ConfigurationError: invalid `examples` or `permuted`; at the start of a fit, an optimizer without groups for
            layers; at its end, a batch of unknown form.
        UnsupportedStrategyError: FSDP1, FSDP2, DeepSpeed.
        ResumeMismatchError: a checkpoint that was written without this method, or with other settings.
    """

    name: ClassVar[str] = "fisher-rates"
    info: ClassVar[MethodInfo] = MethodInfo(
        "lowers the rates of layers on which earlier tasks depend, by their Fisher information",
        "this package; Fisher information as in EWC, arXiv 1612.00796",
        stores="a number for each layer",
        fsdp2=False,
    )

    def __init__(
        self,
        power: float = 0.5,
        limit: float = 10.0,
        examples: int = 300,
        permuted: int = 0,
        *,
        functions: TaskFunctions | None = None,
        overrides: Overrides | None = None,
    ) -> None:
        self.power = check_finite("power", power, error=InvalidRateError)
        self.limit = check_finite("limit", limit, error=InvalidRateError)
        if self.limit < 1:
            raise InvalidRateError(f"limit must be 1 or more, not {shown(limit)}.")
        self.examples = check_whole("examples", examples, 1, error=ConfigurationError)
        self.permuted = check_whole("permuted", permuted, 0, error=ConfigurationError)
        self.functions = functions
        self.overrides = overrides
        self._fisher: dict[str, float] = {}
        self._factors: dict[str, float] = {}

    @override
    def settings(self) -> dict[str, Setting]:
        return {"power": self.power, "limit": self.limit, "examples": self.examples, "permuted": self.permuted}

    @override
    def trains_in(self, context: StageContext) -> bool:
        """In the first stage there is no earlier task, and nothing is recorded while it is trained."""
        return context.index > 0

    def factors(self) -> dict[str, float]:
        """Layer -> what its rate is multiplied by; empty in the first stage."""
        if not self._fisher:
            return {}
        permuted = self.permuted or None
        return inverse_factors(self._fisher, power=self.power, limit=self.limit, permuted=permuted)

    def learn_from(self, module: L.LightningModule, loader: Any, *, head: str | None = None) -> None:
        """Take account of what a module knows already, before its first fit.

        Args:
            module: with the knowledge to keep.
            loader: batches on which it is good.
            head: the task's head, for modules with several.

        Raises:
            ConfigurationError: no example, or a batch of unknown form.
        """
        by_layer = fisher_by_layer(
            module,
            loader,
            examples=self.examples,
            head=head,
            functions=self.functions,
            overrides=self.overrides,
            seed=self.context.generator(self.name).initial_seed(),
        )
        self._fisher = {layer: value + self._fisher.get(layer, 0.0) for layer, value in by_layer.items()}

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Multiply the rates; refuse an optimizer whose groups are not layers, before a step is taken."""
        super().on_train_start(trainer, pl_module)
        self._factors = self.factors()
        if not self._factors:
            return
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if not any(layer_of(str(group.get("name", ""))) in self._factors for group in groups):
            raise ConfigurationError(
                f"{self.name} multiplies the rates of layers, and the optimizer has no group for any. Add LayerwiseLR "
                "to the callbacks, such as LayerwiseLR('flat:lr=1e-4')."
            )
        for optimizer in trainer.optimizers:
            StepFactors.of(optimizer).set(self.name, self._factors)

    @override
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        """Compute F of the task that was learned, for the next one."""
        if not self.context.last:
            self.learn_from(module, loader, head=self.context.head)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the optimizers as they were."""
        for optimizer in trainer.optimizers:
            StepFactors.of(optimizer).remove(self.name)

    @override
    def outcome(self) -> dict[str, Any]:
        """The factors of the stage."""
        return {"factors": dict(self._factors)} if self._factors else {}

    @override
    def state(self) -> dict[str, Any]:
        return {"fisher": dict(self._fisher), "factors": dict(self._factors)}

    @override
    def load_state(self, state: Mapping[str, Any]) -> None:
        self._fisher, self._factors = dict(state["fisher"]), dict(state["factors"])


class _Holder(L.LightningModule):
    """A model of any kind as a module that methods know."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def _mean(values: list[Tensor]) -> float:
    """Over all numbers that are not 0."""
    count = sum(int(each.count_nonzero()) for each in values)
    return sum(float(each.double().sum()) for each in values) / count if count else 0.0
