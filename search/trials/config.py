"""The configuration of a study, and the part of it that identifies the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lr_dist.checks import check_finite, is_number, is_whole
from lr_dist.errors import ConfigurationError, shown
from lr_dist.names import one_of
from lr_dist.rate_plan import RatePlan, StageRates
from lr_dist.search.space import Space
from lr_dist.sequence.base_config import KEPT, MEASURES, TRAINING, SequenceConfig
from lr_dist.sequence.settings import SequenceSettings

MODES = ("relative", "sum", "constrained", "pareto", "retention")
# Those with a p_o, which a single task does not have.
TWO_TASKS = ("constrained", "pareto")
AUTO, WILCOXON, HYPERBAND, NO_PRUNER = "auto", "wilcoxon", "hyperband", "none"
PRUNERS = (WILCOXON, HYPERBAND, NO_PRUNER)
# Wilcoxon's test of four pairs that all differ in one direction has p = 1/16; of three 1/8, above the pruner's 0.1.
LEAST_INSTANCES = 5
# The goal of a study of `optimize`: a score that its program computes.
OWN = "own"
TaskSpec = str | Mapping[str, Any]
# The smallest allowed flat reference rate; the largest is 1.
LEAST_RATE = 1e-9


@dataclass(frozen=True)
class Goal:
    """The objective of a study, computed from the scores after the whole sequence was learned.

    - `relative`: the sum of the tasks' scores, each rescaled so that 0 is the majority class (or chance) and 1 is the
      score of that task learned alone at its best flat rate. In a search on a single task, which needs no common
      scale: its score minus the majority class's.
    - `sum`: p_o + p_s, the objective of arXiv 2404.01317, for comparison with the paper. It rewards not learning the
      second task if its majority class is large.
    - `constrained`: p_o, with p_s at most `tolerance` below that of the tuned flat rate.
    - `pareto`: p_o and p_s as two objectives; nothing is pruned.
    - `retention`: the value of `relative`, and minus the nats a token that are lost of the pre-training, as two
      objectives; nothing is pruned. Alone, what is retained would be highest where nothing is learned.

    A single task has no p_o: `sum` is then its score, and `constrained` and `pareto` need two tasks.

    Raises:
        ConfigurationError: an unknown mode, a negative tolerance, or invalid reference rates.
    """

    mode: str = field(default="relative", metadata={"option": "objective"})
    """What to maximise: relative (the scores, each as a share of that of the task learned alone), sum (p_o + p_s),
    constrained (p_o, with a bound on p_s), pareto (p_o and p_s, two objectives), or retention (the value of relative,
    and what is left of the pre-training, two objectives; needs --retention). p_o is the score on the earlier tasks
    after the last one was learned, p_s the score on the last one."""

    tolerance: float = 0.01
    """For the objective constrained: how far p_s may be below the tuned flat rate's (0.01 is one percentage point)."""

    reference_rates: tuple[float, ...] = field(
        default=(2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3), metadata={"brackets": True}
    )
    """Flat rates to try for the reference, [1e-4, 2e-4]; the best is taken: for relative and retention of each task
    alone, for constrained of the whole sequence."""

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise ConfigurationError(f"The objective must be {one_of(MODES, self.mode)}")
        if not (is_number(self.tolerance) and 0 <= self.tolerance <= 1):
            raise ConfigurationError(
                f"tolerance must be in the score's unit, from 0 to 1, not {shown(self.tolerance)}."
            )
        rates = self.reference_rates
        if not rates or not all(is_number(rate) and LEAST_RATE <= rate <= 1 for rate in rates):
            raise ConfigurationError(
                f"reference_rates must be one or more learning rates from {LEAST_RATE:g} to 1, not {shown(rates)}."
            )
        if len(set(rates)) < len(rates):
            raise ConfigurationError(f"reference_rates contains duplicates: {shown(rates)}.")

    @property
    def names(self) -> list[str]:
        """The name of each objective."""
        return {
            "relative": ["rescaled scores, sum over the tasks"],
            "sum": ["p_o + p_s"],
            "constrained": ["p_o"],
            "pareto": ["p_o", "p_s"],
            "retention": ["rescaled scores, sum over the tasks", "minus the nats lost"],
        }[self.mode]

    @property
    def several(self) -> bool:
        """Whether there are two objectives: then no trial is the best, and none is pruned."""
        return len(self.names) > 1

    @property
    def rescales(self) -> bool:
        """Whether scores are compared with those of each task learned alone."""
        return self.mode in ("relative", "retention")

    def to_dict(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"mode": self.mode}
        if self.mode == "constrained":
            settings["tolerance"] = self.tolerance
        if self.rescales or self.mode == "constrained":
            settings["reference_rates"] = list(self.reference_rates)
        return settings


@dataclass(frozen=True)
class SearchConfig(SequenceConfig):
    """The configuration of a search.

    Raises:
        ConfigurationError: no tasks, an objective that needs two tasks for a single one, or a number out of range.
    """

    sequences: tuple[tuple[TaskSpec, ...], ...] = ()
    """Several task sequences instead of one, [[sst2, qqp], [qqp, sst2]]: each trial learns all of them, and its score
    is the mean."""

    space: Space = field(default_factory=Space, metadata={"group": "the space of rates"})
    goal: Goal = field(default_factory=Goal, metadata={"group": "the objective"})

    trials: int = 50
    """Number of trials of the whole study, over all workers and starts, queued ones included."""

    seeds: tuple[int, ...] = (0,)
    """Random seeds: each trial makes one run per seed, and its score is their mean. On the command line, 0..4 stands
    for 0 1 2 3 4."""

    queued: tuple[TaskSpec, ...] = ()
    """Distributions to try first; one outside the space is tried as the nearest inside it."""

    pruner: str = "auto"
    """What stops poor trials early: wilcoxon compares a trial with the best one on the sequences and seeds that it has
    finished, hyperband after the epochs of the first seed, none stops nothing. auto is wilcoxon with five sequences
    times seeds or more, and otherwise hyperband."""

    confirm: int = 0
    """Run this many of the best trials again with fresh seeds when the study is complete, and the flat rates that may
    be the best."""

    confirm_seeds: int = 3
    """Number of fresh seeds for --confirm."""

    sampler_seed: int | None = None
    """Seed of the sampler, which makes the trials of a single worker repeatable; by default another one each time."""

    first: str | None = None
    """Rates of the first task, flat:lr=1e-4, the same in every trial: only those of the later tasks are searched, and
    the first task is learned once for each sequence and seed."""

    keep_stages: bool = field(default=True, metadata=KEPT)
    """With --first: keep the weights after the first task in the output folder until the study is complete, so that
    all trials go on from them. The results are the same without (true or false)."""

    retention: str | None = field(default=None, metadata=MEASURES)
    """Measure what each run loses of the pre-training: a file of plain text, one text a line, with settings as in
    FILE,texts=50,fit_texts=1000. A trial that loses more than --most-lost violates the constraint; with --objective
    retention, what is lost is an objective instead."""

    most_lost: float = field(default=0.1, metadata=MEASURES)
    """With --retention: the most that a trial may lose, as a mean over its runs, in nats a token of the text, with a
    refitted head. --objective retention has no such bound."""

    settings: SequenceSettings = field(
        default_factory=lambda: replace(SequenceSettings(), evaluate_on="dev"), kw_only=True, metadata=TRAINING
    )

    def __post_init__(self) -> None:
        if not self.sequences or not all(self.sequences):
            raise ConfigurationError("Nothing to learn: give --tasks, e.g. --tasks sst2 qqp.")
        for sequence in self.sequences:
            if self.goal.mode in TWO_TASKS and len(sequence) < 2 and not _is_shift(sequence[0]):
                raise ConfigurationError(
                    f"The objective {self.goal.mode} weighs an earlier task against a later one, and {list(sequence)} "
                    "is a single task. Use --objective relative or sum, or give two tasks or a shift such as "
                    "sst2@length."
                )
        if self.start is not None and self.first is not None:
            raise ConfigurationError(
                f"The start {self.start} has learned the first task, so no rates are left to give it. Leave out "
                f"--first {self.first}."
            )
        if self.start is not None and len({str(sequence[0]) for sequence in self.sequences}) > 1:
            raise ConfigurationError(
                f"The start {self.start} has learned one task, and the sequences begin with different ones. Let all "
                "begin with its task, or search from each start in a study of its own."
            )
        if not is_whole(self.trials) or self.trials < 1:
            raise ConfigurationError(f"trials must be a whole number from 1, not {shown(self.trials)}.")
        if not self.seeds or not all(is_whole(seed) and seed >= 0 for seed in self.seeds):
            raise ConfigurationError(f"seeds must be one or more whole numbers from 0, not {shown(self.seeds)}.")
        if not isinstance(self.pruner, str) or self.pruner not in (AUTO, *PRUNERS):
            raise ConfigurationError(f"pruner must be {one_of(('auto', *PRUNERS), self.pruner)}")
        if self.goal.mode == "retention" and self.retention is None:
            raise ConfigurationError(
                "The objective retention needs a text to measure what is lost of the pre-training: add --retention "
                "FILE, such as a part of the pre-training text."
            )
        if self.goal.several and self.pruner in (WILCOXON, HYPERBAND):
            raise ConfigurationError(f"Two objectives cannot be pruned: leave out --pruner {self.pruner}.")
        for name, least in (("confirm", 0), ("confirm_seeds", 1)):
            number = getattr(self, name)
            if not is_whole(number) or number < least:
                raise ConfigurationError(f"{name} must be a whole number from {least}, not {shown(number)}.")
        if self.confirm and self.goal.several:
            raise ConfigurationError(
                f"Two objectives have no best trials: leave out --confirm, or --objective {self.goal.mode}."
            )
        if self.first is not None:
            _ = self.first_rates
            if self.space.staged:
                raise ConfigurationError(
                    "A staged space searches a factor for the later tasks; with --first they have rates of their own. "
                    "Leave out --first, or --staged true."
                )
        check_finite("most_lost", self.most_lost, error=ConfigurationError)
        if self.methods:
            # Imported here: methods are Lightning callbacks, and reading a study must not import Lightning.
            from lr_dist.methods import build_method

            for method in self.methods:
                build_method(method)
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"seeds contains duplicates: {shown(self.seeds)}.")
        if self.sampler_seed is not None and not (is_whole(self.sampler_seed) and 0 <= self.sampler_seed < 2**32):
            raise ConfigurationError(
                f"sampler_seed must be a whole number from 0 to 2^32 - 1, not {shown(self.sampler_seed)}."
            )

    @property
    def directions(self) -> list[str]:
        """Optuna's direction for each objective."""
        return ["maximize"] * len(self.goal.names)

    @property
    def instances(self) -> int:
        """Number of runs of a trial: sequences times seeds."""
        return len(self.sequences) * len(self.seeds)

    @property
    def chosen_pruner(self) -> str:
        """The pruner of a new study."""
        if self.goal.several:
            return NO_PRUNER
        if self.pruner != AUTO:
            return self.pruner
        return WILCOXON if self.instances >= LEAST_INSTANCES else HYPERBAND

    @property
    def first_rates(self) -> StageRates | None:
        """The rates of the first stage; None if they are searched.

        Raises:
            ConfigurationError: more than one stage.
            LRDistError: an invalid text.
        """
        if self.first is None:
            return None
        from lr_dist.presets import resolve_plan

        plan = resolve_plan(self.first)
        if len(plan.stages) > 1:
            raise ConfigurationError(
                f"--first gives the rates of the first task; {shown(self.first)} has {len(plan.stages)} stages."
            )
        return plan.stages[0]

    def with_first(self, plan: RatePlan) -> RatePlan:
        """The plan of a trial: `plan`, from the second stage on if the first one's rates are given."""
        first = self.first_rates
        return plan if first is None else RatePlan((first, *plan.stages))

    def identity(self, weights: str, data: Sequence[Sequence[str]]) -> dict[str, Any]:
        """The configuration that must stay the same within a study; what is not in it, such as `trials`, may change.

        Args:
            weights: fingerprint of the model's weights.
            data: fingerprints of the tasks of each sequence.
        """
        first = self.first_rates
        return {
            "model": self.model,
            "weights": weights,
            "sequences": [[task if isinstance(task, str) else dict(task) for task in s] for s in self.sequences],
            "data": [list(fingerprints) for fingerprints in data],
            "space": self.space.to_dict(),
            "goal": self.goal.to_dict(),
            "seeds": list(self.seeds),
            "limit": self.limit,
            "settings": self.settings.identity(self.methods),
            # Left out where it is not used: studies made before must be found as they were written.
            **({} if first is None else {"first": str(first)}),
        }


def _is_shift(task: TaskSpec) -> bool:
    # Tasks need NumPy, which would double the time of `lr-dist --help`.
    from lr_dist.tasks.registry import split_shift

    return split_shift(task)[1] is not None
