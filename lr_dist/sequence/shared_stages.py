"""`SharedStages`: which stages the runs of a comparison share, in which order they run, and what is kept until when."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lr_dist.methods import Needs
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.runner import needs_of
from lr_dist.sequence.stage_key import StageKeys, bench_key, neighbours_first, stage_keys
from lr_dist.sequence.stage_store import StageStore, stage_bytes

Run = tuple[str, int]


class SharedStages:
    """The runs that are left of a comparison.

    A trained stage is kept until no run needs it any more, and the stages of the run that is under way are kept so that
    it can go on after them if it is stopped.

    Args:
        folder: for the kept stages.
        bench: model and tasks.
        arms: label -> arm.
        left: (label, seed) of the runs that are to be made.
        watched: parts of the model that observers of all runs need.

    Attributes:
        order: the runs, those that share stages after each other.
        store: for `run_sequence`.
    """

    def __init__(
        self,
        folder: Path,
        bench: Bench,
        arms: Mapping[str, Arm],
        left: Sequence[Run],
        watched: Needs = Needs(),  # noqa: B008  (frozen)
    ) -> None:
        needs = functools.reduce(operator.or_, (needs_of(arm) for arm in arms.values()), Needs())
        # Of the words that are not trained on, only those of the held-out examples, which are cheap.
        self.store = StageStore(folder, needs=Needs(held_out=needs.held_out) | watched)
        shared = {own: bench_key(bench, own) for own in {needs_of(arms[label]) | self.store.needs for label, _ in left}}
        self._keys: dict[Run, tuple[StageKeys, ...]] = {
            (label, seed): stage_keys(shared[needs_of(arms[label]) | self.store.needs], bench, arms[label], seed)[
                bench.first_trained :
            ]
            for label, seed in left
        }
        self.order = neighbours_first(left, self._keys)
        self._left = list(self.order)
        sizes = [stage_bytes(bench.view(own).backbone.state_dict()) for own in shared]
        self._bytes = max(sizes, default=0)

    def begin(self, run: Run) -> None:
        """A run begins: keep what it or a later one can use, and delete the rest."""
        self._left.remove(run)
        self.store.want_only(self._wanted(run, self._left), [keys.trained for keys in self._keys[run]])

    def end(self) -> None:
        """All runs are made: delete what is kept."""
        self.store.want_only(())

    def describe(self) -> str | None:
        """A line on what is shared and how much space that takes; None if nothing is shared."""
        trained = {keys.trained for run in self.order for keys in self._keys[run]}
        stages = sum(len(self._keys[run]) for run in self.order)
        if len(trained) == stages:
            return None
        size = self._most_files() * self._bytes / 2**20
        return (
            f"shared stages: {len(trained)} of {stages} stages are trained, the others have the same weights. Until no "
            f"run needs them any more, up to {self._most_files()} are kept in {self.store.folder} (about {size:,.1f} "
            "MiB; --keep-stages false trains every stage)"
        )

    def _wanted(self, run: Run, later: Iterable[Run]) -> set[str]:
        """Of the run itself all stages but the last, after which it is finished."""
        return {keys.trained for keys in self._keys[run][:-1]} | {k.trained for each in later for k in self._keys[each]}

    def _most_files(self) -> int:
        kept: set[str] = set()
        most = 0
        for position, run in enumerate(self.order):
            keys = {stage.trained for stage in self._keys[run]}
            wanted = self._wanted(run, self.order[position + 1 :])
            kept = kept & (wanted | keys) | keys & wanted
            most = max(most, len(kept))
        return most
