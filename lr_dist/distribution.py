"""`LRDistribution`: an immutable map from the depth of a transformer to a learning rate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lr_dist._distribution import text as text_form
from lr_dist._distribution.depth import check_num_layers
from lr_dist._distribution.edits import Edit, apply_edits
from lr_dist._distribution.families import COMPOSED, FAMILIES, GROUPED_KEYS, weighted_mean
from lr_dist._distribution.keys import checked_numbers, completed, family_of
from lr_dist._distribution.measured import MeasuredRates
from lr_dist._distribution.plain import allow_in_checkpoints, write_in_yaml
from lr_dist._distribution.rates import check_factor, check_rate, check_rates, scaled
from lr_dist.errors import InvalidDistributionError, ZeroRateError, shown
from lr_dist.names import group_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

# A mean within a mean adds two levels of YAML, and `yaml_io` reads at most 32.
MAX_NESTING = 10


@dataclass(frozen=True)
class LRDistribution(MeasuredRates):
    """A learning rate for every depth, written for relative depth so that it serves any number of layers.

    Build one with a family's constructor (`flat`, `decay`, `discriminative`, `linear`, `cosine`, `grouped`,
    `from_layers`), with `parse("decay:lr=4e-4,factor=0.7")`, or from YAML. A rate of exactly 0 freezes.

    Attributes:
        family: name of the family.
        values: the family's values as (key, value) pairs in the family's order.
        relative: whether the rates are multiples of the optimizer's own rate (no unit) instead of rates.
        edits: rates set for a range of depth after the family was evaluated (see `freeze`, `override`).

    Raises:
        InvalidDistributionError: unknown family, unknown or missing key.
        InvalidRateError: a rate or factor that is negative, NaN, infinite or not a number.
    """

    family: str
    values: tuple[tuple[str, Any], ...]
    relative: bool = False
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        family_of(self.family)
        if not isinstance(self.relative, bool):
            raise InvalidDistributionError(f"relative must be true or false, not {shown(self.relative)}.")
        # A plain str: YAML has no form for its subclasses, such as NumPy's.
        object.__setattr__(self, "family", str.__str__(self.family))
        object.__setattr__(self, "edits", _checked_edits(self.edits))
        object.__setattr__(self, "values", _checked(self.family, _pairs(self.values)))
        for part in dict(self.values).get("of", ()):
            if part.relative != self.relative:
                raise InvalidDistributionError(
                    f"{self.family} and its parts must have the same `relative`: it has relative={self.relative}, "
                    f"and its part {shown(str(part))} has relative={part.relative}. Write the same in both."
                )

    def __reduce__(self) -> tuple[type[LRDistribution], tuple[Any, ...]]:
        """Unpickling calls the constructor and its checks, also with `weights_only=True`."""
        return type(self), (self.family, self.values, self.relative, self.edits)

    # Constructors ----------------------------------------------------------------------------------------

    @classmethod
    def flat(cls, lr: float, *, relative: bool = False) -> LRDistribution:
        """One rate everywhere."""
        return cls("flat", (("lr", lr),), relative)

    @classmethod
    def decay(
        cls, lr: float, factor: float | None = None, *, total: float | None = None, relative: bool = False
    ) -> LRDistribution:
        """Layer-wise learning-rate decay (LLRD): rates fall by one factor a layer, from the head to the embeddings.

        Args:
            lr: the head's rate.
            factor: `layers.j` of N has lr * factor^(N - j), the embeddings lr * factor^(N + 1): the deeper the model,
                the lower its low layers' rates.
            total: instead of `factor`, the embeddings' rate as a share of the head's, the same for every number of
                layers: the factor is total^(1 / (N + 1)).
            relative: whether the rates are multiples of the optimizer's own rate.

        Raises:
            InvalidDistributionError: neither `factor` nor `total`, or both.
        """
        given = [("lr", lr), *([] if factor is None else [("factor", factor)])]
        return cls("decay", (*given, *([] if total is None else [("total", total)])), relative)

    @classmethod
    def discriminative(cls, lr: float, factor: float = 2.6, *, relative: bool = False) -> LRDistribution:
        """Discriminative fine-tuning (ULMFiT, Howard & Ruder 2018, section 3.2): the head at `lr`, each layer
        below at the rate above it divided by `factor`.

        The factor was published for 3 layers: at 12 the embeddings have `lr` / 2.6^13 = `lr` / 248,000. For a ratio
        that holds at every depth, use `decay` with `total`.
        """
        return cls("discriminative", (("lr", lr), ("factor", factor)), relative)

    @classmethod
    def linear(cls, first: float, last: float, *, relative: bool = False) -> LRDistribution:
        """From `first` at the embeddings to `last` at the head in equal steps."""
        return cls("linear", (("first", first), ("last", last)), relative)

    @classmethod
    def cosine(cls, first: float, last: float, *, relative: bool = False) -> LRDistribution:
        """From `first` at the embeddings to `last` at the head along half a cosine."""
        return cls("cosine", (("first", first), ("last", last)), relative)

    @classmethod
    def grouped(cls, rates: Mapping[str, float], *, relative: bool = False) -> LRDistribution:
        """The ten rates of arXiv 2404.01317: `embeddings`, `g1` ... `g8`, `head`.

        For N >= 8 layers group i holds the 0-based layers ceil(N/8 (i-1)) .. ceil(N/8 i) - 1, as in the paper;
        for fewer layers the eight rates are interpolated.
        """
        if not isinstance(rates, Mapping):
            raise InvalidDistributionError(
                f"grouped takes a mapping of {', '.join(GROUPED_KEYS)} to rates, not {shown(rates)}."
            )
        return cls("grouped", tuple(rates.items()), relative)

    @classmethod
    def from_layers(
        cls, embeddings: float, layers: Sequence[float], head: float, *, relative: bool = False
    ) -> LRDistribution:
        """An explicit rate for each of `len(layers)` layers; other depths are interpolated."""
        values = (("embeddings", embeddings), ("layers", layers), ("head", head))
        return cls("from_layers", values, relative)

    @classmethod
    def geometric_mean(
        cls, distributions: Sequence[LRDistribution], weights: Sequence[float] | None = None
    ) -> LRDistribution:
        """The geometric mean of the rates at every depth, `exp(sum w_i log rate_i / sum w_i)`.

        Raises:
            InvalidDistributionError: no distribution, relative mixed with absolute, or unfit weights.
            ZeroRateError: a distribution freezes a layer.
        """
        return _geometric_mean(cls, distributions, weights)

    @classmethod
    def maximum(cls, distributions: Sequence[LRDistribution]) -> LRDistribution:
        """The highest rate at every depth; of one distribution, that one.

        Raises:
            InvalidDistributionError: no distribution, or relative mixed with absolute.
        """
        parts = _checked_parts("maximum", list(distributions))
        return parts[0] if len(set(parts)) == 1 else cls("maximum", (("of", parts),), parts[0].relative)

    @classmethod
    def parse(cls, text: str) -> LRDistribution:
        """Read the text form `family:key=value,...`, e.g. `decay:lr=4e-4,factor=0.7`.

        Beside the family's keys: `relative=true`; `freeze=FIRST..LAST` (group names, or relative depths from 0
        to 1); and any group's name as a key (`head=1e-3`, `layers.0=0`, `layers.-1=1e-4`).
        """
        family, values, relative, edits = text_form.split(text)
        return cls(family, tuple(values.items()), relative, edits)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LRDistribution:
        """Inverse of `to_dict`.

        Raises:
            InvalidDistributionError: not a mapping, no family, unknown keys.
        """
        if not isinstance(data, Mapping) or "family" not in data:
            raise InvalidDistributionError(
                f"A distribution is a mapping with the key `family` (one of {', '.join(FAMILIES)}), not {shown(data)}."
            )
        rest = {key: value for key, value in data.items() if key not in ("family", "relative", "edits")}
        family_of(data["family"])
        if data["family"] in COMPOSED and isinstance(rest.get("of"), (list, tuple)):
            try:
                rest["of"] = tuple(cls.from_dict(part) for part in rest["of"])
            except RecursionError:
                raise InvalidDistributionError(
                    f"{data['family']} contains itself, or is nested deeper than {MAX_NESTING} levels."
                ) from None
        edits = data.get("edits", [])
        if not isinstance(edits, (list, tuple)):
            raise InvalidDistributionError(f"edits must be a list, not {shown(edits)}.")
        relative = data.get("relative", False)
        return cls(data["family"], tuple(rest.items()), relative, tuple(Edit.from_dict(e) for e in edits))

    @classmethod
    def from_yaml(cls, text: str) -> LRDistribution:
        """Read what `to_yaml` wrote. Nothing in the text can run code (see `lr_dist.yaml_io`)."""
        from lr_dist.yaml_io import parse_yaml

        return cls.from_dict(parse_yaml(text, source="distribution"))

    # Rates -----------------------------------------------------------------------------------------------

    def rates(self, num_layers: int) -> dict[str, float]:
        """Learning rate of each group of a model with `num_layers` layers, in the order of depth.

        Raises:
            LayerCountError: not a positive whole number, or an edit names a layer that the model lacks.
        """
        check_num_layers(num_layers)
        values = FAMILIES[self.family].rates(dict(self.values), num_layers)
        rates = dict(zip(group_names(num_layers), values, strict=True))
        return apply_edits(rates, self.edits)

    @property
    def can_freeze(self) -> bool:
        """Whether the distribution holds a rate of exactly 0."""
        parts = dict(self.values).get("of", ())
        rates = [rate for key in FAMILIES[self.family].rate_keys for rate in _as_tuple(dict(self.values)[key])]
        return 0 in rates or any(edit.rate == 0 for edit in self.edits) or any(p.can_freeze for p in parts)

    @property
    def nesting(self) -> int:
        """0; for a composed family, one more than the largest nesting of its parts."""
        return max((1 + part.nesting for part in dict(self.values).get("of", ())), default=0)

    # Operations; each returns a new distribution ---------------------------------------------------------

    def scale(self, factor: float) -> LRDistribution:
        """Every rate times `factor` (> 0)."""
        factor = check_factor("scale factor", factor)
        values: dict[str, Any] = dict(self.values)
        for key in FAMILIES[self.family].rate_keys:
            values[key] = scaled(key, values[key], factor)
        if "of" in values:
            values["of"] = tuple(part.scale(factor) for part in values["of"])
        edits = tuple(replace(edit, rate=scaled("edit", edit.rate, factor)) for edit in self.edits)
        return replace(self, values=tuple(values.items()), edits=edits)

    def freeze(self, first: str | float = "embeddings", last: str | float | None = None) -> LRDistribution:
        """Rate 0 from group `first` to group `last`, both included (`last` defaults to `first`).

        Each end is a group's name (`layers.-1` counts from the top) or a relative depth from 0 to 1 among the
        layers: `freeze("embeddings", 0.5)` freezes the embeddings and the lower half of any model.
        """
        return replace(self, edits=(*self.edits, Edit(first, first if last is None else last, 0.0)))

    def override(self, group: str, rate: float) -> LRDistribution:
        """Another rate for one group."""
        return replace(self, edits=(*self.edits, Edit(group, group, rate)))

    def absolute(self, base_lr: float) -> LRDistribution:
        """A relative distribution as rates for an optimizer with the rate `base_lr`; an absolute one unchanged."""
        if not self.relative:
            return self
        if check_rate("base_lr", base_lr) == 0:
            raise ZeroRateError("base_lr is 0: a relative distribution would freeze the whole model.")
        return _with_kind(self.scale(base_lr), relative=False)

    def relative_to(self, base_lr: float) -> LRDistribution:
        """An absolute distribution as multiples of `base_lr`; a relative one unchanged."""
        if self.relative:
            return self
        return _with_kind(self.scale(1 / check_factor("base_lr", base_lr)), relative=True)

    # Forms -----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what YAML files and result files hold."""
        data: dict[str, Any] = {"family": self.family}
        for key, value in self.values:
            if key == "of":
                data[key] = [part.to_dict() for part in value]
            else:
                data[key] = list(value) if isinstance(value, tuple) else value
        if self.relative:
            data["relative"] = True
        if self.edits:
            data["edits"] = [edit.to_dict() for edit in self.edits]
        return data

    def to_yaml(self) -> str:
        """YAML text that `from_yaml` reads back to an equal distribution."""
        from lr_dist.yaml_io import dump_yaml

        return dump_yaml(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write `to_yaml` to `path`.

        Raises:
            UnwritableFileError: no such folder, a folder itself, or no permission.
        """
        from lr_dist.runs.atomic import write_text

        write_text(path, self.to_yaml(), make_folders=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the distribution's content: equal distributions, equal fingerprints."""
        content = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def __str__(self) -> str:
        return text_form.join(self.family, dict(self.values), self.relative, self.edits)

    def table(self, num_layers: int) -> Table:
        """A rich table of the rates; `rich.print` it."""
        from rich.table import Table
        from rich.text import Text

        # Text, because rich would read `[...]` as markup.
        table = Table(title=Text(f"{self} ({num_layers} layers)"))
        table.add_column("group")
        table.add_column("x optimizer's rate" if self.relative else "learning rate", justify="right")
        for group, rate in self.rates(num_layers).items():
            table.add_row(group, "frozen" if rate == 0 else f"{rate:.3g}")
        return table

    def plot(self, num_layers: int = 12, ax: Axes | None = None, label: str | None = None) -> Axes:
        """Draw the rates over depth (log scale) and return the axes; frozen groups are left out of the line."""
        from lr_dist._distribution.plot import plot_rates

        return plot_rates(self.rates(num_layers), ax, label or str(self), self.relative)


def shown_distribution(data: Any) -> str:
    """A distribution from a checkpoint (`to_dict`) as text, or the data itself if it is not valid."""
    try:
        return str(LRDistribution.from_dict(data))
    except Exception:
        return repr(data)


def _pairs(values: Any) -> dict[Any, Any]:
    try:
        return dict(values)
    except (TypeError, ValueError):
        raise InvalidDistributionError(f"values must be (key, value) pairs, not {shown(values)}.") from None


def _checked_edits(edits: Any) -> tuple[Edit, ...]:
    if not isinstance(edits, (list, tuple)) or not all(isinstance(edit, Edit) for edit in edits):
        raise InvalidDistributionError(
            f"edits must be a tuple of Edit, not {shown(edits)}; `freeze` and `override` add one."
        )
    return tuple(edits)


def _checked(name: str, given: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The family's values, complete, checked, as floats and tuples, in the family's order."""
    values = completed(name, given)
    if name == "geometric_mean":
        parts, weights = _checked_mean(values["of"], values["weights"])
        return ("of", parts), ("weights", weights)
    if name == "maximum":
        return (("of", _checked_parts(name, values["of"])),)
    return checked_numbers(family_of(name), values)


def _checked_parts(name: str, parts: Any) -> tuple[LRDistribution, ...]:
    if not isinstance(parts, (list, tuple)) or not all(isinstance(p, LRDistribution) for p in parts):
        raise InvalidDistributionError(f"{name} takes a list of distributions, not {shown(parts)}.")
    if not parts:
        raise InvalidDistributionError(f"{name} of no distributions; give at least one.")
    if max(part.nesting for part in parts) >= MAX_NESTING:
        raise InvalidDistributionError(f"{name} is nested deeper than {MAX_NESTING} levels; nest less.")
    if len({part.relative for part in parts}) > 1:
        raise InvalidDistributionError(
            f"{name} mixes relative and absolute distributions; convert one kind into the other first, "
            "with `absolute(base_lr)` or `relative_to(base_lr)`."
        )
    return tuple(parts)


def _checked_mean(of: Any, weights: Any) -> tuple[tuple[LRDistribution, ...], tuple[float, ...]]:
    parts = _checked_parts("geometric_mean", of)
    for part in parts:
        if part.can_freeze:
            raise ZeroRateError(
                f"{shown(str(part))} holds a rate of 0 (a frozen layer), whose logarithm a geometric mean would need. "
                "Take the mean first, and freeze layers in its result."
            )
    checked = check_rates("weights", weights)
    if len(checked) != len(parts) or sum(checked) == 0:
        raise InvalidDistributionError(
            f"geometric_mean of {len(parts)} distributions needs {len(parts)} weights that are not all 0; "
            f"got {shown(list(checked))}."
        )
    return parts, checked


def _geometric_mean(
    cls: type[LRDistribution], parts: Sequence[LRDistribution], weights: Sequence[float] | None
) -> LRDistribution:
    count = len(parts) if isinstance(parts, (list, tuple)) else 1
    of, checked = _checked_mean(parts, [1.0] * count if weights is None else weights)
    first = of[0]
    shapes = {(p.family, *((key, len(_as_tuple(value))) for key, value in p.values)) for p in of}
    if FAMILIES[first.family].log_linear and len(shapes) == 1 and not any(p.edits for p in of):
        values: list[tuple[str, Any]] = []
        for key, value in first.values:
            columns = list(zip(*(_as_tuple(dict(p.values)[key]) for p in of), strict=True))
            means = tuple(weighted_mean(column, checked) for column in columns)
            values.append((key, means if isinstance(value, tuple) else means[0]))
        return cls(first.family, tuple(values), first.relative)
    return cls("geometric_mean", (("of", of), ("weights", checked)), first.relative)


def _with_kind(distribution: LRDistribution, *, relative: bool) -> LRDistribution:
    """The same numbers, the parts of a mean included, as multiples (relative) or as rates."""
    values = dict(distribution.values)
    if "of" in values:
        values["of"] = tuple(_with_kind(part, relative=relative) for part in values["of"])
    return replace(distribution, values=tuple(values.items()), relative=relative)


def _as_tuple(value: Any) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _plain(distribution: LRDistribution) -> Any:
    """The text form, or a mapping if there is none; `resolve_distribution` reads both."""
    text = str(distribution)
    try:
        return text if LRDistribution.parse(text) == distribution else distribution.to_dict()
    except InvalidDistributionError:
        return distribution.to_dict()


def allow_distributions_in_checkpoints() -> None:
    """Let torch read distributions with `weights_only=True`; called once more by modules that import torch later."""
    allow_in_checkpoints(LRDistribution, Edit)


allow_distributions_in_checkpoints()
write_in_yaml(LRDistribution, _plain)

__all__ = ["GROUPED_KEYS", "LRDistribution", "check_num_layers", "group_names"]
