"""Combine the trials of several studies into a preset with its provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from lr_dist.errors import InvalidTrialsError
from lr_dist.presets.schema import Preset, Provenance
from lr_dist.search.combining.combine import Combination, combine
from lr_dist.search.combining.sources import Source

# exp and log may differ in the last bit between machines; 6 digits are the same everywhere.
DIGITS = 6


@dataclass(frozen=True)
class Combined:
    """Several sources combined into one distribution.

    Attributes:
        sources: the sources.
        combination: rates, spread, and the rates of each source.
        base: ratio of a rank's weight to the next one's.
        preset: the distribution with its provenance.
    """

    sources: tuple[Source, ...]
    combination: Combination
    base: float
    preset: Preset


def combine_sources(sources: Sequence[Source], name: str, *, base: float, command: str, version: str = "1") -> Combined:
    """Rank-weighted log mean within a source, geometric mean across them (arXiv 2404.01317, section 3).

    Raises:
        InvalidTrialsError: sources with different spaces, two sources of one name, or a source without trials.
    """
    spaces = {tuple(source.space.names) for source in sources}
    if len(spaces) > 1:
        listed = ", ".join(f"{source.name}: {source.space.family}" for source in sources)
        raise InvalidTrialsError(
            f"Trials of different spaces cannot be combined ({listed}); give sources with the same space."
        )
    names = [source.name for source in sources]
    duplicate = next((n for n in names if names.count(n) > 1), None)
    if duplicate is not None:
        raise InvalidTrialsError(f"{duplicate} is given by two sources; give each pair once.")
    combination = combine({source.name: source.trials for source in sources}, base)
    rounded = {key: float(f"{value:.{DIGITS}g}") for key, value in combination.rates.items()}
    space = sources[0].space
    distribution = space.distribution({key: rounded[key] for key in space.searched})
    models = sorted({source.model for source in sources if source.model})
    seeds = {source.seeds for source in sources}
    preset = Preset(
        name,
        f"Combined from {sum(combination.trials.values())} trials on {', '.join(names)}.",
        distribution,
        Provenance(
            source="lr-dist search and combine",
            model=", ".join(models) or "not stated in the trials",
            tasks=tuple(names),
            trials=sum(combination.trials.values()),
            seeds=seeds.pop() if len(seeds) == 1 else None,
            version=version,
            date=date.today().isoformat(),
            evidence=_evidence(combination, base, command),
        ),
    )
    return Combined(tuple(sources), combination, base, preset)


def _evidence(combination: Combination, base: float, command: str) -> tuple[str, ...]:
    lines = [
        f"Command: {command}",
        f"Method: within a pair trials ranked by their value and weighted {base:g}^-rank, mean of the log rates; "
        "geometric mean across pairs. Trials: "
        + ", ".join(f"{pair} {count}" for pair, count in combination.trials.items())
        + ".",
        f"Rates ({', '.join(combination.rates)}): {_digits(list(combination.rates.values()))}.",
    ]
    if combination.spread is not None:
        lines.append(
            "Spread between the pairs (geometric standard deviation, a factor, same order): "
            f"{_digits(list(combination.spread.values()))}."
        )
    lines.append(
        "Caveat: these are the trials of a search. Whether the rates beat a tuned flat rate has to be measured on task "
        "pairs that the search never saw, over several seeds: `lr-dist compare`."
    )
    return tuple(lines)


def _digits(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
