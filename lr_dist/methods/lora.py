"""LoRA: low-rank adapters are trained in place of the layers' matrices, and merged at the end."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import override

from lr_dist._lightning import L, isolate_rng
from lr_dist.checks import check_finite, check_whole
from lr_dist.errors import ConfigurationError, UnsupportedWeightsError, shown
from lr_dist.extras import require_libraries
from lr_dist.layers import Overrides, assign_layers
from lr_dist.methods.base import MethodInfo, Needs, Order, Setting
from lr_dist.methods.interpolation import plain_name
from lr_dist.methods.model_change import ModelChange

ADAPTER = "lr_dist"


class LoRA(ModelChange):
    """Freezes the layers and trains, for the target matrices W, two matrices of a low rank r in each (peft):

        W + alpha / r  B A

    (Hu et al. 2021, arXiv 2106.09685; B begins as 0). The head is trained as without it. At the end of the fit the
    product is added to W, and the model is again the one that it was, without adapters: the next fit begins with new
    ones. Rates: `LayerwiseLR` gives the adapters of a layer that layer's rate; LoRA needs about ten times the rate of
    full fine-tuning. What a distribution freezes has no adapter that is trained.

        trainer = L.Trainer(callbacks=[LayerwiseLR("flat:lr=1e-3"), LoRA(rank=8)])

    Biswas et al. 2024 (arXiv 2405.09673, "LoRA learns less and forgets less") measure what it does to forgetting.
    With `Interpolate` after it in the list, the merged weights are interpolated: exactly alpha times the product.
    Works under DDP; not under FSDP2, where a process has only a part of each matrix.

    Args:
        rank: r, 1 or more.
        alpha: the scale's numerator, greater than 0.
        targets: names of the linear layers that get adapters, as they end in `named_modules()`, separated by spaces;
            `auto`: peft's choice for the model's type (queries and values, mostly); `all-linear`.
        dropout: of the adapters' input, from 0 to below 1.
        stages: `later` (from the second stage on) or `all`, of a sequence.
        overrides: regex -> group name for parameters that `assign_layers` cannot place (what is the head).

    Raises:
        MissingExtraError: peft is not installed.
        ConfigurationError: an invalid setting; at the start of a fit, targets that the model lacks, or a model's type
            for which peft has no choice.
        UnsupportedWeightsError: at the start of a fit, a model that has adapters.
    """

    name: ClassVar[str] = "lora"
    info: ClassVar[MethodInfo] = MethodInfo(
        "trains low-rank adapters, merged at the end of the stage",
        "Hu et al. 2021, arXiv 2106.09685",
        fsdp2=False,
    )
    order: ClassVar[Order] = Order.FINISH
    needs = Needs(plain_modules=True)

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16.0,
        targets: str = "auto",
        dropout: float = 0.0,
        stages: str = "later",
        *,
        overrides: Overrides | None = None,
    ) -> None:
        super().__init__(stages)
        self.rank = check_whole("rank", rank, 1, 100_000, error=ConfigurationError)
        self.alpha = check_finite("alpha", alpha, error=ConfigurationError, positive=True)
        self.dropout = check_finite("dropout", dropout, error=ConfigurationError)
        if self.dropout >= 1:
            raise ConfigurationError(f"dropout must be below 1, not {shown(dropout)}.")
        if not isinstance(targets, str) or not targets.strip():
            raise ConfigurationError(f"targets must be names of modules such as 'query value', not {shown(targets)}.")
        self.targets = " ".join(targets.split())
        self.overrides = overrides
        require_libraries("peft", "peft")

    @override
    def settings(self) -> dict[str, Setting]:
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "targets": self.targets,
            "dropout": self.dropout,
            "stages": self.stages,
        }

    @override
    def change(self, module: L.LightningModule) -> None:
        """Put in the adapters, and leave only them and the head trainable."""
        from peft import LoraConfig, inject_adapter_in_model

        if has_adapters(module):
            raise UnsupportedWeightsError(
                f"{type(module).__name__} has adapters. Merge them (merge_and_unload()), or leave lora out."
            )
        group_of = {plain_name(n): g for n, g in assign_layers(module, self.overrides).group_of.items()}
        trained = {plain_name(name) for name, parameter in module.named_parameters() if parameter.requires_grad}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # it only divides it
            lora_dropout=self.dropout,
            target_modules=self._targets(module),
        )
        with isolate_rng():
            torch.manual_seed(self.context.generator(self.name).initial_seed() % 2**31)
            try:
                inject_adapter_in_model(config, module, ADAPTER)
            except ValueError as error:
                linear = sorted({n.rpartition(".")[2] for n, m in module.named_modules() if isinstance(m, nn.Linear)})
                raise ConfigurationError(
                    f"lora:targets=({self.targets}) does not fit {type(module).__name__}: {str(error)[:300]} Its "
                    f"linear layers are called {', '.join(linear[:20])}."
                ) from error
        for name, parameter in module.named_parameters():
            plain = plain_name(name)
            owner, adapter, _ = plain.rpartition(".lora_")
            # Of a matrix that is not trained, such as one with the rate 0, neither are the adapters.
            wanted = f"{owner}.weight" in trained if adapter else plain in trained and group_of.get(plain) == "head"
            parameter.requires_grad_(wanted)

    @override
    @torch.no_grad()
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        """Merge the adapters."""
        _remove(module, merge=True)
        super().stage_ended(module, loader)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take the adapters out of the model of a fit that failed."""
        _remove(pl_module, merge=False)
        super().on_exception(trainer, pl_module, exception)

    def _targets(self, module: nn.Module) -> str | list[str]:
        if self.targets == "all-linear":
            # Only the layers': peft would adapt the heads, too.
            group_of = assign_layers(module, self.overrides).group_of
            linear = [name for name, each in module.named_modules() if isinstance(each, nn.Linear)]
            return [name for name in linear if group_of.get(f"{name}.weight") != "head"]
        if self.targets != "auto":
            return self.targets.split()
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

        types = [getattr(getattr(each, "config", None), "model_type", None) for each in module.modules()]
        known = next((KNOWN[kind] for kind in types if kind in KNOWN), None)
        if known is None:
            kind = next((kind for kind in types if kind), type(module).__name__)
            raise ConfigurationError(
                f"peft has no choice of targets for {shown(kind)}. Name the linear layers: lora:targets=(query value)."
            )
        return list(known)


def has_adapters(module: nn.Module, *, other: bool = False) -> bool:
    """Whether the model has adapters of peft.

    Args:
        module: any.
        other: only those that are not `LoRA`'s, which stay after the fit.
    """
    return any(not other or ADAPTER not in layer.active_adapters for _, layer in _adapted(module))


def _remove(module: nn.Module, *, merge: bool) -> None:
    for name, layer in _adapted(module):
        if ADAPTER not in layer.active_adapters:
            continue
        if merge:
            layer.merge(adapter_names=[ADAPTER])
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.get_base_layer())
    for each in module.modules():
        if ADAPTER in (vars(each).get("peft_config") or {}):
            del each.peft_config


def _adapted(module: nn.Module) -> list[tuple[str, Any]]:
    """The layers that peft has adapted, by name. (`active_adapters` alone is a method of transformers' models.)"""
    return [(name, each) for name, each in module.named_modules() if "base_layer" in each._modules]
