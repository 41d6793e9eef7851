"""The findings as a table, in the terminal and as Markdown, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lr_dist.evidence.analysis import Estimate, Finding
from lr_dist.evidence.summary import Outcome
from lr_dist.runs.markdown import code
from lr_dist.runs.numbers import number, signed

if TYPE_CHECKING:
    from rich.table import Table

HEADER = (
    "arm", "p_o", "p_s", "p_o - control", "p_s - control", "average - control", "forgetting gone", "p_o at equal p_s",
)  # fmt: skip
DIFFERENCES = ("p_o", "p_s", "average_accuracy")
PROBED = ("p_o, new head", "the encoder forgets")
MEASURED = ("probe_p_o", "probe_forgetting", "retention_lost")


def header(outcome: Outcome) -> tuple[str, ...]:
    """The names of the columns."""
    lost = any("retention_lost" in finding.means for finding in outcome.findings)
    return (*HEADER, *(PROBED if _is_probed(outcome) else ()), *(("nats lost",) if lost else ()), "s a run")


def rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """A row for each arm, in the columns of `header`."""
    return [_row(finding, index == 0) for index, finding in enumerate(outcome.findings)]


def _is_probed(outcome: Outcome) -> bool:
    return any("probe_p_o" in finding.means for finding in outcome.findings)


def _row(finding: Finding, is_control: bool) -> tuple[str, ...]:
    difference = finding.differences
    name = f"{finding.called}: {finding.text}" + (f" ({finding.diverged} diverged)" if finding.diverged else "")
    return (
        name,
        number(finding.means["p_o"]),
        number(finding.means["p_s"]),
        *("control" if is_control else with_interval(difference[name]) for name in DIFFERENCES),
        "0 %" if is_control else percent(finding.forgetting_gone),
        "0" if is_control else with_interval(finding.at_equal_p_s),
        *(number(finding.means[name]) for name in MEASURED if name in finding.means),
        f"{finding.seconds:.0f}",
    )


def terminal_table(outcome: Outcome) -> Table:
    """A rich table."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Held-out sequences", box=None, padding=(0, 2, 0, 0))
    for index, name in enumerate(header(outcome)):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows(outcome):
        table.add_row(*map(escape, row))
    return table


def markdown(outcome: Outcome) -> str:
    """The verdict and the table."""
    names = header(outcome)
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    lines += ["| " + " | ".join([code(row[0]), *row[1:]]) + " |" for row in rows(outcome)]
    return "\n\n".join([verdict(outcome), "\n".join(lines), NOTE])


NOTE = (
    "Mean over sequences and seeds; differences to the tuned control, paired by sequence and seed, with 95% bootstrap "
    "intervals over sequences and seeds. Average: accuracy over all tasks in the end. Forgetting gone: share of the "
    "control's forgetting that the arm lacks. p_o at equal p_s: p_o minus that of the control's curve (its other "
    "settings) at the same p_s, or at the curve's highest p_s if the arm's is above it; n/a where the curve does not "
    "reach it. New head: a linear head fitted to the frozen encoder; the encoder forgets what such a head "
    "loses. Nats lost: log likelihood of the pre-training text, per token, that a refitted masked-LM head cannot get "
    "back."
)


def verdict(outcome: Outcome) -> str:
    """What won and what is noise, in words: p_o at equal p_s, or the average if the control has no curve."""
    control, *others = outcome.findings
    has_curve = any(f.at_equal_p_s is not None for f in others)
    of = {f.called: f.at_equal_p_s if has_curve else f.differences["average_accuracy"] for f in others}
    clear = {name: each for name, each in of.items() if each is not None and each.is_clear}
    better = sorted((name for name in clear if clear[name].mean > 0), key=lambda name: -clear[name].mean)
    worse = [name for name in clear if clear[name].mean < 0]
    unclear = [name for name in of if name not in clear]
    where, what = ("At equal p_s as", "p_o") if has_curve else ("Against", "the average")
    parts = [f"{where} the control ({control.text}), with intervals that leave out zero:"]
    parts.append(f"{what} is higher with {_listed(better, clear)}." if better else f"{what} is higher with no arm.")
    if worse:
        parts.append(f"It is lower with {_listed(worse, clear)}.")
    if unclear:
        parts.append("Not told apart from the control: " + ", ".join(unclear) + ".")
    if outcome.diverged:
        parts.append("Diverged in every run so far: " + ", ".join(outcome.diverged) + ".")
    shown = {*outcome.diverged, *(f.name for f in outcome.findings)}
    waiting = [name for name in outcome.choices if name not in shown]
    if waiting:
        parts.append("Not run yet beside the control: " + ", ".join(waiting) + ".")
    if outcome.finished < outcome.planned:
        parts.append(f"{outcome.finished} of {outcome.planned} runs are finished, so this is preliminary.")
    return " ".join(parts)


def _listed(names: Sequence[str], of: Mapping[str, Estimate]) -> str:
    return ", ".join(f"{name} {with_interval(of[name])}" for name in names)


def with_interval(estimate: Estimate | None) -> str:
    """`+.011 [+.005, +.015]`; `n/a` for None."""
    if estimate is None:
        return "n/a"
    if estimate.low is None or estimate.high is None:
        return signed(estimate.mean)
    return f"{signed(estimate.mean)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def percent(estimate: Estimate | None) -> str:
    """`88 % [63, 103]`; `n/a` for None."""
    if estimate is None:
        return "n/a"
    if estimate.low is None or estimate.high is None:
        return f"{round(100 * estimate.mean)} %"
    return f"{round(100 * estimate.mean)} % [{round(100 * estimate.low)}, {round(100 * estimate.high)}]"
