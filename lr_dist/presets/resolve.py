"""Read a distribution or a rate plan from any of its forms: name, path, text, mapping."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lr_dist._distribution.families import FAMILIES
from lr_dist._distribution.text import EXAMPLES, is_text_form
from lr_dist.distribution import LRDistribution
from lr_dist.errors import InvalidDistributionError, LRDistError, UnknownPresetError, UnreadableFileError, shown
from lr_dist.presets.registry import get_preset
from lr_dist.presets.schema import Preset, read_data
from lr_dist.rate_plan import RatePlan

_WAYS = (
    f"A distribution is written as a preset's name (see `lr_dist.presets.list_presets()`), a path that ends in .yaml "
    f"or .yml, or family:key=value,... ({EXAMPLES})."
)


def resolve_distribution(spec: str | Path | Mapping[str, Any] | LRDistribution) -> LRDistribution:
    """Read a distribution from any of its forms.

    Args:
        spec: an `LRDistribution` (returned as it is); a mapping as of `to_dict`, or of a preset file; the text
            form `family:key=value,...`; a path of a YAML file that holds a distribution or a preset (any `Path`,
            or a text that ends in .yaml or .yml); or a preset's name.

    Raises:
        UnknownPresetError: no preset has this name.
        UnreadableFileError: the path cannot be read.
        InvalidYAMLError: the file is not YAML, or YAML that is not allowed.
        InvalidPresetError: the preset does not follow the schema.
        InvalidDistributionError: any other invalid distribution.
    """
    if isinstance(spec, LRDistribution):
        return spec
    if isinstance(spec, Mapping):
        return _from_data(spec, "distribution")
    if isinstance(spec, Path):
        return _from_file(spec)
    if not isinstance(spec, str):
        raise InvalidDistributionError(f"{shown(spec)} is not a distribution. {_WAYS}")
    text = spec.strip()
    # The suffix first: a Windows path `C:\\mine.yaml` looks like the text form of a family `C`.
    if text.lower().endswith((".yaml", ".yml")):
        return _from_file(Path(text))
    if is_text_form(text):
        return LRDistribution.parse(text)
    if text in FAMILIES:
        raise InvalidDistributionError(f"{text!r} is a family without its values. {_WAYS}")
    try:
        return _single(get_preset(text))
    except UnknownPresetError as error:
        raise UnknownPresetError(f"{error} {_WAYS}") from None


def _from_file(path: Path) -> LRDistribution:
    try:
        data = read_data(path)
    except UnreadableFileError as error:
        raise UnreadableFileError(f"{error} {_WAYS}") from error
    return _from_data(data, str(path))


def _from_data(data: Any, source: str) -> LRDistribution:
    # `distribution` and `provenance` are keys of presets, `family` one of distributions; no file has both.
    if isinstance(data, Mapping) and ("distribution" in data or "provenance" in data) and "family" not in data:
        return _single(Preset.from_dict(data, source=source))
    try:
        return LRDistribution.from_dict(data)
    except LRDistError as error:
        raise type(error)(f"{source}: {error}") from error


def _single(preset: Preset) -> LRDistribution:
    """The distribution of a preset that has only one: phases or stages must not be lost silently."""
    if preset.plan != RatePlan((preset.distribution,)):
        raise InvalidDistributionError(
            f"The preset {preset.name} is the plan {shown(str(preset.plan))}, and one distribution is needed here. Its "
            f"highest rates are load_preset({preset.name!r}); or write out one of its distributions: "
            f"{preset.plan.distributions[-1]}."
        )
    return preset.distribution
