"""Which measurement is the best so far, and when to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lr_dist.checks import as_float, check_whole
from lr_dist.errors import ConfigurationError, ScoringError, shown
from lr_dist.monitor.measurement import Measurement
from lr_dist.monitor.old_tasks import OldTask
from lr_dist.monitor.rule import Bounds, WeightedSum, parse_bounds, parse_rule

_OURS = ("old", "forgotten", "moved")


@dataclass(frozen=True)
class TradeOff:
    """What is kept and what stops the fit.

    Attributes:
        keep: bounds or a weighted sum; None keeps nothing.
        monitor: a metric of the new task to choose by within the bounds; None chooses the latest.
        mode: "max" or "min", of `monitor`.
        stop_when: bounds that stop the fit; None never does.
        patience: for how many measurements in a row they have to hold.
    """

    keep: Bounds | WeightedSum | None
    monitor: str | None
    mode: str
    stop_when: Bounds | None
    patience: int

    @classmethod
    def of(
        cls,
        tasks: Iterable[OldTask],
        keep: str | None,
        monitor: str | None,
        mode: str,
        stop_when: str | None,
        patience: int,
    ) -> TradeOff:
        """Check the user's options.

        Raises:
            ConfigurationError: a malformed rule, an unknown task in it, options that do not go together.
        """
        made = cls(
            None if keep is None else parse_rule("keep", keep),
            monitor,
            mode,
            None if stop_when is None else parse_bounds("stop_when", stop_when),
            check_whole("patience", patience, 1, error=ConfigurationError),
        )
        if mode not in ("max", "min"):
            raise ConfigurationError(f"mode must be 'max' or 'min', not {shown(mode)}.")
        if monitor is not None and (not isinstance(monitor, str) or not monitor):
            raise ConfigurationError(f"monitor must be the name of a logged metric, not {shown(monitor)}.")
        if monitor is not None and not isinstance(made.keep, Bounds):
            raise ConfigurationError(
                f"monitor={shown(monitor)} chooses among the measurements within a bound. Give one, "
                "keep='old >= 0.98', or put the metric into the sum: keep='0.5*old + 0.5*val_acc'."
            )
        made._check_names(list(tasks))
        return made

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the new task that a judgement needs; others log them."""
        names = [*(self.keep.names if self.keep else ()), *(self.stop_when.names if self.stop_when else ())]
        names += [self.monitor] if self.monitor else []
        return tuple(dict.fromkeys(name for name in names if name.partition("/")[0] not in _OURS))

    def settings(self) -> dict[str, Any]:
        """Plain data, by which a checkpoint is compared."""
        return {"keep": self.keep.text if self.keep else None, "monitor": self.monitor, "mode": self.mode}

    def worth(self, values: dict[str, float], best: float | None) -> float | None:
        """How good a measurement is, if it takes the place of the best so far; otherwise None.

        Args:
            values: from `values_of`, with `metrics`.
            best: the worth of the best so far.
        """
        if isinstance(self.keep, WeightedSum):
            worth = self.keep.total(values)
        elif self.keep is None or not self.keep.hold(values):
            return None
        elif self.monitor is None:
            return 0.0  # the later one is better: it knows more of the new task
        else:
            worth = values[self.monitor] if self.mode == "max" else -values[self.monitor]
        # Not <=, so that NaN is never the best.
        return worth if worth > (-float("inf") if best is None else best) else None

    def stops(self, values: dict[str, float]) -> bool:
        """Whether this measurement is one that counts toward stopping."""
        return self.stop_when is not None and self.stop_when.hold(values)

    def _check_names(self, tasks: list[OldTask]) -> None:
        known = [task.name for task in tasks]
        for rule in (self.keep, self.stop_when):
            for name in rule.names if rule else ():
                kind, slash, task = name.partition("/")
                if kind in ("old", "forgotten") and slash and task not in known:
                    raise ConfigurationError(
                        f"{shown(rule.text if rule else '')} reads {name}, and the old tasks are {', '.join(known)}."
                    )
                if name == "old" and any(task.sign < 0 for task in tasks):
                    raise ConfigurationError(
                        "`old` is the share of a score that is left, which has no meaning where a lower score is "
                        "better. Use `forgotten` in its place: 'forgotten <= 0.02'."
                    )


def values_of(row: Measurement, start: dict[str, float], needed: Iterable[str]) -> dict[str, float]:
    """What rules can read of a measurement.

    `old/TASK`, `forgotten/TASK` and `moved/LAYER` as logged; `forgotten`: the largest of the losses; `old`: the
    smallest share that a task has left of its score when the fit began.

    Args:
        row: the measurement.
        start: task -> its score when the fit began.
        needed: the names that the rules read.

    Raises:
        ScoringError: `old`, and a score was 0 or less when the fit began; or a layer that was not measured.
    """
    values = {**row.logged(), "forgotten": max(row.forgotten.values())}
    if "old" in needed:
        for task, score in start.items():
            if score <= 0:
                raise ScoringError(
                    f"The score of the old task {shown(task)} was {score:g} when the fit began, so no share of it can "
                    "be kept. Use `forgotten` in place of `old` in the rule, or look at the model: it may be the wrong "
                    "one, or the task's labels may be in another order."
                )
        values["old"] = min(row.old[task] / score for task, score in start.items())
    for name in needed:
        if name.startswith("moved") and name not in values:
            raise ScoringError(f"A rule reads {name}, and what is measured is {', '.join(values)}.")
    return values


def read_metrics(names: Iterable[str], lookup: Callable[[str], Any]) -> dict[str, float] | None:
    """The metrics of the new task as numbers; None where one is not logged yet."""
    found = {name: lookup(name) for name in names}
    return None if any(value is None for value in found.values()) else {n: as_float(v) for n, v in found.items()}
