"""The presets `kenneweg2022*`, computed from the trials that the authors of arXiv 2404.01317 published.

    python -m lr_dist.search.kenneweg2022 --trials trials.csv --output lr_dist/presets

reproduces the four files byte for byte. `trials.csv` holds one trial per row: `pair_first`, `pair_second`, the
accuracies `acc_first_after` (p_o) and `acc_second` (p_s), `lr_embeddings`, `lr_g1` ... `lr_g8`, `lr_head`, `is_flat`
(0 or 1) and `detected_setting` (taskshift or datashift).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lr_dist.distribution import GROUPED_KEYS, LRDistribution
from lr_dist.errors import InvalidTrialsError, UnreadableFileError
from lr_dist.presets.schema import Preset, Provenance
from lr_dist.runs.atomic import write_text
from lr_dist.search.combining.combine import Combination, ScoredRates, combine

# The four pairs that the authors' code combines into its profile.
PAIRS = ("sst2>mrpc", "mrpc>sst2", "qqp>mrpc", "mrpc>qqp")
# The paper's flat reference: the first trial of every search. Relative presets are multiples of it.
FLAT_REFERENCE = 1e-5
# exp and log may differ in the last bit between machines; 6 digits are the same everywhere.
DIGITS = 6
VERSION, DATE = "1", "2026-11-22"
CAUTION = (
    "Found on BERT base and full tasks by the paper. A small model learns nothing with it at usual sizes (MiniLM, "
    "1,200 examples): the encoder's rates are 2 to 17 times below 1e-5. Tune a flat rate first."
)
RELATIVE_CAUTION = (
    "Found on BERT base and full tasks by the paper, at a base rate of 1e-5, where a small model learns nothing at "
    "usual sizes. No run tested another base rate. Tune a flat rate first."
)


@dataclass(frozen=True)
class PublishedTrial:
    """One published trial: its pair `first>second`, whether it is a data shift (one task split in two), and flat."""

    pair: str
    data_shift: bool
    flat: bool
    trial: ScoredRates


def every_row(row: PublishedTrial) -> bool:
    return True


def without_flat(row: PublishedTrial) -> bool:
    return not row.flat


def task_shift(row: PublishedTrial) -> bool:
    return not row.data_shift


def task_shift_without_flat(row: PublishedTrial) -> bool:
    return not row.data_shift and not row.flat


def read_trials(path: str | Path) -> list[PublishedTrial]:
    """The trials of a file, in file order, which breaks ties between equal scores.

    Raises:
        UnreadableFileError: the file cannot be read.
        InvalidTrialsError: a column is missing, or a value is not a number.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            records = list(csv.DictReader(file))
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read: {error.strerror}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidTrialsError(f"{path} is not a CSV file in UTF-8: {error}") from error
    rows = []
    for number, record in enumerate(records, start=2):
        try:
            rows.append(_row(record))
        except KeyError as error:
            raise InvalidTrialsError(f"{path} has no column {error}; it has {', '.join(records[0])}.") from error
        except (TypeError, ValueError) as error:
            raise InvalidTrialsError(f"{path}, line {number}: {error}") from error
    return rows


def combine_rows(rows: Sequence[PublishedTrial], keep: Callable[[PublishedTrial], bool] = every_row) -> Combination:
    """The paper's combination of the trials of `PAIRS` for which `keep` is true, scored by p_o + p_s."""
    return combine({pair: [row.trial for row in rows if row.pair == pair and keep(row)] for pair in PAIRS})


def make_presets(rows: Sequence[PublishedTrial]) -> list[Preset]:
    """The four shipped presets."""
    return [
        *_absolute_and_relative(
            "kenneweg2022",
            "Against forgetting in task sequences: low rates in the encoder (arXiv 2404.01317, all trials of 4 pairs).",
            rows,
            every_row,
        ),
        *_absolute_and_relative(
            "kenneweg2022-taskshift",
            "As kenneweg2022, only from trials with two different tasks, without the flat ones: mostly lower still.",
            rows,
            task_shift_without_flat,
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m lr_dist.search.kenneweg2022", description="Write the presets.")
    parser.add_argument("--trials", type=Path, required=True, help="CSV file of the authors' trials, one per row")
    parser.add_argument("--output", type=Path, required=True, help="folder for the preset files")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for preset in make_presets(read_trials(options.trials)):
        path = options.output / f"{preset.name}.yaml"
        write_text(path, preset.to_yaml())
        print(f"{path}: {', '.join(f'{rate:.3g}' for _, rate in preset.distribution.values)}")


def _row(record: dict[str, str]) -> PublishedTrial:
    if record["detected_setting"] not in ("taskshift", "datashift") or record["is_flat"] not in ("0", "1"):
        raise ValueError(
            f"detected_setting {record['detected_setting']!r}, is_flat {record['is_flat']!r}: unknown value."
        )
    return PublishedTrial(
        pair=f"{record['pair_first']}>{record['pair_second']}",
        data_shift=record["detected_setting"] == "datashift",
        flat=record["is_flat"] == "1",
        trial=ScoredRates(
            score=float(record["acc_first_after"]) + float(record["acc_second"]),
            rates={key: float(record[f"lr_{key}"]) for key in GROUPED_KEYS},
        ),
    )


def _absolute_and_relative(
    name: str, purpose: str, rows: Sequence[PublishedTrial], keep: Callable[[PublishedTrial], bool]
) -> tuple[Preset, Preset]:
    combination = combine_rows(rows, keep)
    rates = {key: _rounded(rate) for key, rate in combination.rates.items()}
    provenance = _provenance([row for row in rows if row.pair in PAIRS and keep(row)], combination)
    absolute = Preset(name, purpose, LRDistribution.grouped(rates), provenance, caution=CAUTION)
    multiples = {key: _rounded(rate / FLAT_REFERENCE) for key, rate in rates.items()}
    relative = Preset(
        f"{name}-relative",
        f"{name} for any base rate: multiples of the optimizer's own, where 1 is the paper's flat 1e-5.",
        LRDistribution.grouped(multiples, relative=True),
        replace(
            provenance,
            evidence=(
                *provenance.evidence,
                "Anchor: multiples of 1e-5, the flat rate from which every search started: an optimizer at 1e-5 gets "
                f"{name} itself, and a multiple below 1 is slower than the paper's flat fine-tuning. No trial was run "
                "with another base rate: that the shape holds there is an assumption.",
            ),
        ),
        caution=RELATIVE_CAUTION,
    )
    return absolute, relative


def _provenance(rows: Sequence[PublishedTrial], combination: Combination) -> Provenance:
    shifted, flat = sum(row.data_shift for row in rows), sum(row.flat for row in rows)
    assert combination.spread is not None  # four pairs
    slower = [FLAT_REFERENCE / combination.rates[key] for key in GROUPED_KEYS[1:-1]]
    return Provenance(
        source="Kenneweg, Schulz, Schroeder, Hammer: Intelligent Learning Rate Distribution to Reduce Catastrophic "
        "Forgetting in Transformers, IDEAL 2022, arXiv 2404.01317; the trial logs published with its MIT-licensed code",
        model="bert-base-uncased (what the published code loads; the trial logs do not name it)",
        tasks=PAIRS,
        trials=len(rows),
        seeds=1,
        version=VERSION,
        date=DATE,
        evidence=(
            "Command: python -m lr_dist.search.kenneweg2022 --trials trials.csv --output lr_dist/presets",
            "Method: within a pair trials ranked by p_o + p_s and weighted 1.8^-rank, mean of the log rates; geometric "
            "mean across pairs. Trials: " + ", ".join(f"{pair} {n}" for pair, n in combination.trials.items()) + ".",
            f"Rates x 1e-6 ({', '.join(GROUPED_KEYS)}): {_digits(rate * 1e6 for rate in combination.rates.values())}.",
            "Spread between the four pairs (geometric standard deviation, a factor, same order): "
            f"{_digits(combination.spread.values())}.",
            f"{'Caveat: o' if shifted or flat else 'O'}f the {len(rows)} trials {shifted} are data-shift runs (one "
            f"task split in two, recognised by the accuracy's denominator) and {flat} are flat.",
            "Caveat: one run a trial, seed not stated. Two equal flat runs of mrpc>sst2 differ by 0.056 in p_o + p_s.",
            f"Caveat: the encoder's rates are {min(slower):.2g} to {max(slower):.2g} times below the flat "
            "1e-5, so a tuned low flat rate is the control that has to be beaten; no such comparison "
            "stands behind this preset.",
            "Caveat: the published training code applies softmax before the cross-entropy, never switches dropout on, "
            "does not reshuffle, and carries Adam's moments from the first task into the second.",
        ),
        families=("bert",),
        layers=(12,),
        spread=tuple(float(f"{factor:.3g}") for factor in combination.spread.values()),
        shown_for="Two GLUE tasks one after the other with BERT base, as the best trials of searches; the paper "
        "reports about 2.4% more on the first task than one flat rate.",
        not_shown_for="Small models, few examples, more than two tasks, and any gain over a flat rate that was tuned.",
        translation="Group i of 8 holds the layers ceil(N/8 (i-1)) .. ceil(N/8 i) - 1, counted from 0: `grouped`.",
    )


def _digits(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


if __name__ == "__main__":
    main()
