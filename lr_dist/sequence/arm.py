"""Arms, which a comparison compares: each has a label, a rate plan and methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lr_dist.distribution import LRDistribution
from lr_dist.errors import ConfigurationError, shown
from lr_dist.methods import Method, build_method
from lr_dist.presets import resolve_recipe
from lr_dist.rate_plan import RatePlan, StageRates

SEPARATOR = " + "
KEYS = ("label", "rates", "methods")


@dataclass(frozen=True)
class Arm:
    """A rate plan and methods against forgetting, with a label.

    In text: `flat:lr=1e-4`, `flat:lr=1e-4 | decay:lr=4e-4,factor=0.7`, `PRESET + l2-sp:alpha=0.01`. A preset brings its
    methods with it; one that is named beside it takes the place of the preset's method of the same name.

    Attributes:
        label: its name in tables and figures.
        plan: the rates of every stage.
        methods: the text forms of the methods.

    Raises:
        ConfigurationError: an invalid method, or one that is named twice.
    """

    label: str
    plan: RatePlan
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [method.name for method in self.build_methods()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigurationError(f"The arm {shown(self.label)} has the method {twice} twice; name it once.")
        if "joint" in names and len(names) > 1:
            raise ConfigurationError(
                f"The arm {shown(self.label)} has joint beside other methods. Joint training learns all tasks at once, "
                "so nothing is left for them to do: leave them out."
            )

    @classmethod
    def of(cls, distribution: LRDistribution, methods: Sequence[str] = ()) -> Arm:
        """One distribution in every stage; the label is the text form."""
        plan = RatePlan((distribution,))
        return cls(SEPARATOR.join([str(plan), *methods]), plan, tuple(methods))

    @classmethod
    def parse(cls, spec: str | Mapping[str, Any] | Arm) -> Arm:
        """Read an arm.

        Args:
            spec: the text form; a mapping with `rates` (a text, or a distribution's mapping) and optionally `methods`
                (a list of texts) and `label`; or only a distribution's or preset's mapping.

        Raises:
            LRDistError: what `resolve_distribution` raises.
            ConfigurationError: a mapping with other keys, or an invalid method.
        """
        if isinstance(spec, Arm):
            return spec
        if isinstance(spec, str):
            rates, *methods = (part.strip() for part in spec.split(SEPARATOR))
            plan, of_preset = resolve_recipe(rates)
            return cls(spec.strip(), plan, _joined(of_preset, methods))
        if not isinstance(spec, Mapping) or "rates" not in spec:
            plan, of_preset = resolve_recipe(spec)
            return cls(SEPARATOR.join([str(plan), *of_preset]), plan, of_preset)
        unknown = [key for key in spec if key not in KEYS]
        given = spec.get("methods", ())
        if unknown or not isinstance(given, (list, tuple)) or not all(isinstance(each, str) for each in given):
            raise ConfigurationError(
                f"An arm has the keys {', '.join(KEYS)}, and methods is a list of texts such as l2-sp:alpha=0.01; got "
                f"{shown(dict(spec))}."
            )
        plan, of_preset = resolve_recipe(spec["rates"])
        joined = _joined(of_preset, given)
        return cls(str(spec.get("label") or SEPARATOR.join([str(plan), *joined])), plan, joined)

    def build_methods(self) -> list[Method]:
        """New callbacks, for one run, in the order in which they act at the end of a stage."""
        return sorted((build_method(text) for text in self.methods), key=lambda method: method.order)

    def same_as(self, other: Arm) -> bool:
        """Whether both train in the same way; labels do not count."""
        return self.plan == other.plan and _texts(self) == _texts(other)

    def to_dict(self, lr: float, num_layers: int) -> dict[str, Any]:
        """The arm as stored in a result file.

        Args:
            lr: the optimizer's own rate, for relative distributions.
            num_layers: number of layers of the model.
        """
        return {
            "label": self.label,
            "fingerprint": self.plan.fingerprint,
            "stages": [_stage_to_dict(stage, lr, num_layers) for stage in self.plan.stages],
            "methods": list(self.methods),
            # With every setting, whether it was given or has its default.
            "settings": [str(method) for method in self.build_methods()],
        }


def _stage_to_dict(stage: StageRates, lr: float, num_layers: int) -> dict[str, Any]:
    """The rates of a stage; of phases the highest, and those of each phase."""

    def plain(distribution: LRDistribution) -> dict[str, Any]:
        return {"distribution": distribution.to_dict(), "rates": distribution.absolute(lr).rates(num_layers)}

    if isinstance(stage, LRDistribution):
        return plain(stage)
    phases = [{**phase.to_dict(), **plain(phase.distribution)} for phase in stage.phases]
    return {**plain(stage.peak), "phases": phases}


def parse_arms(specs: Sequence[str | Mapping[str, Any] | Arm]) -> dict[str, Arm]:
    """Label -> arm.

    Raises:
        ConfigurationError: two arms train in the same way, or have the same label.
    """
    arms: dict[str, Arm] = {}
    for spec in specs:
        arm = Arm.parse(spec)
        twin = next((name for name, other in arms.items() if other.same_as(arm)), None)
        if twin is not None or arm.label in arms:
            raise ConfigurationError(
                f"{arm.label} is the same {'arm' if arm.methods else 'distribution'} as {twin or arm.label}; list each "
                "one once."
            )
        arms[arm.label] = arm
    return arms


def methods_of(text: str) -> tuple[str, ...]:
    """The methods of `--method`: texts joined by ` + `; `finetune` means no method."""
    return () if text.strip() == "finetune" else tuple(part.strip() for part in text.split(SEPARATOR))


def with_methods(spec: str | Mapping[str, Any], methods: Sequence[str]) -> str | Mapping[str, Any]:
    """Add methods to a distribution's spec, which makes it an arm's spec."""
    if not methods:
        return spec
    return SEPARATOR.join([spec, *methods]) if isinstance(spec, str) else {"rates": spec, "methods": list(methods)}


def _joined(of_preset: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """The methods of a preset and those named beside it, which take the place of the preset's of the same name."""
    names = {_method_name(text) for text in given}
    return (*(text for text in of_preset if _method_name(text) not in names), *given)


def _method_name(text: str) -> str:
    return text.partition(":")[0].strip()


def _texts(arm: Arm) -> list[str]:
    return sorted(str(method) for method in arm.build_methods())
