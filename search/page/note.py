"""The note of a study in optuna-dashboard: what is searched, and the rates of the best trial over depth."""

from __future__ import annotations

import contextlib
import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from optuna.exceptions import OptunaError

from lr_dist.errors import InvalidTrialsError
from lr_dist.rate_plan import highest
from lr_dist.runs.redact import redact
from lr_dist.search.trials.config import OWN
from lr_dist.search.trials.record import TrialRecord
from lr_dist.search.trials.study import IDENTITY
from lr_dist.search.trials.summary import StudySummary, plan_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

# A note without it is somebody's own, and is left alone.
MARK = "<!-- lr-dist -->"
_BAR = 24


def write_note(study: Study) -> bool:
    """Write or renew the study's note, if optuna-dashboard is installed.

    Returns:
        Whether it was written. It is not for a study that is not of lr-dist or has damaged trials, nor in place of
        somebody's own note.
    """
    identity = study.user_attrs.get(IDENTITY)
    if find_spec("optuna_dashboard") is None or not isinstance(identity, dict):
        return False
    from optuna_dashboard import get_note, save_note

    before = get_note(study)
    try:
        text = note(identity, StudySummary.of(study))
    except InvalidTrialsError:
        return False
    if before == text or (before and MARK not in before):
        return False
    # A note is no reason to end a search.
    with contextlib.suppress(OptunaError):
        save_note(study, text)
    return True


def note(identity: dict[str, Any], summary: StudySummary) -> str:
    """The note in Markdown."""
    sequences = "; ".join(" > ".join(_name(task) for task in sequence) for sequence in identity["sequences"])
    goal = identity["goal"]["mode"]
    lines = [
        MARK,
        f"**Learning-rate distributions for {_code(sequences)}**" + _with_model(identity),
        f"Space {_code(identity['space']['family'])}; "
        + ("the score is that of the user's program." if goal == OWN else f"objective {_code(goal)}, to be maximised.")
        + f" {summary.done} of {summary.slots} trials are done.",
    ]
    if summary.best is not None and TrialRecord.of(summary.best).tried is not None:
        lines.append(f"Best trial so far: {summary.best.number}, value {summary.best.values[0]:.4f}")
        # Studies of the first versions do not record it.
        if "num_layers" in identity:
            lines.append(depth_figure(summary.best, identity["num_layers"]))
    return "\n\n".join(lines)


def depth_figure(trial: FrozenTrial, num_layers: int) -> str:
    """The trial's rates as bars in a code block, head on top, on a logarithmic scale, a block for each stage;
    of phases, the highest rate of each layer.

    Args:
        trial: one that has started.
        num_layers: of the model.
    """
    stages = plan_of(trial).stages
    blocks = []
    for number, stage in enumerate(stages):
        rates = highest(stage).rates(num_layers)
        positive = [rate for rate in rates.values() if rate > 0]
        low, high = (math.log(min(positive)), math.log(max(positive))) if positive else (0.0, 0.0)
        title = f"stage {number + 1}{' and later' if number == len(stages) - 1 else ''}\n" if len(stages) > 1 else ""
        rows = []
        for group, rate in reversed(list(rates.items())):
            share = 1.0 if high == low else (math.log(rate) - low) / (high - low) if rate > 0 else 0.0
            bar = "#" * (1 + round(share * (_BAR - 1))) if rate > 0 else ""
            rows.append(f"{group:<12}{rate:>9.2e}  {bar}")
        blocks.append(title + "\n".join(rows))
    return "```\n" + "\n\n".join(blocks) + "\n```"


def _with_model(identity: dict[str, Any]) -> str:
    return f" with {_code(identity['model'])}" if identity["model"] else ""


def _name(task: Any) -> str:
    return task if isinstance(task, str) else str(task.get("name", task))


def _code(text: str) -> str:
    return f"`{redact(text).replace('`', chr(39))}`"
