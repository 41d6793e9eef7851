"""The protocol: tune every arm on the search sequences, fix it, compare on the held-out sequences.

Each step is a comparison with a folder of its own, whose finished runs are kept. So an evidence run continues where it
stopped, and several processes can work on one, each on another sequence.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lr_dist.errors import ConfigurationError, OutputInUseError
from lr_dist.evidence.config import EvidenceConfig, TaskSpec, sequence_name
from lr_dist.evidence.tuning import Choice, choose, taken_choices
from lr_dist.retention.measure import retention_of
from lr_dist.runs.atomic import write_json
from lr_dist.sequence.compare import Listener, compare
from lr_dist.sequence.result import ComparisonResult, read_json

_WAIT = 15.0  # seconds
TUNING, HELD_OUT, CHOSEN = "tuning", "held-out", "chosen.json"


@dataclass(frozen=True)
class Step:
    """One comparison of the protocol.

    Attributes:
        part: `tuning` or `held-out`.
        tasks: the sequence.
        texts: the arms from the second stage on.
        seeds: its seeds.
        given_up: the number of seeds after which its arms are given up; None for arms that have all.
    """

    part: str
    tasks: tuple[TaskSpec, ...]
    texts: tuple[str, ...]
    seeds: tuple[int, ...]
    given_up: int | None = None

    def folder(self, output: Path) -> Path:
        """Where its runs are: arms with fewer seeds are a comparison of their own."""
        name = sequence_name(self.tasks)
        return output / self.part / (name if self.given_up is None else f"{name}-seeds-{self.given_up}")


class Evidence:
    """An evidence run in a folder.

    Args:
        config: the protocol.
        output: folder for all comparisons, `chosen.json` and the results.

    Raises:
        ConfigurationError: the folder holds another evidence run.
    """

    def __init__(self, config: EvidenceConfig, output: Path) -> None:
        self.config = config
        self.output = output

    def tuning_steps(self) -> list[Step]:
        """One comparison for each search sequence, with every combination of every arm."""
        texts = tuple(arm.written(settings) for arm in self.config.arms().values() for settings in arm.combinations())
        return [
            Step(TUNING, tasks, tuple(dict.fromkeys(texts)), self.config.tuning_seeds) for tasks in self.config.search
        ]

    def held_out_steps(self, choices: Mapping[str, Choice]) -> list[Step]:
        """Comparisons of the tuned arms and their curves: all sequences with the first seed, then with two, and so on.

        So wherever the run stops, every sequence has about the same number of seeds.
        """
        every = len(self.config.seeds)
        arms = self.config.arms()
        given_up = {name: self.config.given_up_after(arm) for name, arm in arms.items()}
        texts: dict[int | None, list[str]] = {}
        seen: set[str] = set()
        # Arms with more seeds first: one of the same text has its runs already.
        for name in sorted(given_up, key=lambda name: -(given_up[name] or every)):
            curve = arms[name].curve_of(choices[name].settings)
            new = dict.fromkeys(arms[name].written(settings) for settings in curve)
            texts.setdefault(given_up[name], []).extend(text for text in new if text not in seen)
            seen |= set(new)
        return [
            Step(HELD_OUT, tasks, tuple(of_these), self.config.seeds[:count], number)
            for count in range(1, every + 1)
            for tasks in self.config.held_out
            for number, of_these in texts.items()
            if of_these and count <= (number or every)
        ]

    def run(self, listener_of: Callable[[Step, int, int], Listener], *, command: str = "") -> dict[str, Choice]:
        """Run everything that is not finished, and return the choices.

        Args:
            listener_of: step, its number, number of steps -> what receives the progress of its comparison.
            command: the command line, for the result files.
        """
        tuning = self.tuning_steps()
        if tuning:
            self._run_steps(tuning, listener_of, command)
        choices = self.choices() or self._choose([self.result(step) for step in tuning])
        self._run_steps(self.held_out_steps(choices), listener_of, command)
        return choices

    def choices(self) -> dict[str, Choice]:
        """The choices that were made, here or in another evidence run; empty before the tuning is finished.

        Raises:
            ConfigurationError: they were made for other arms.
            InvalidResultError: the file cannot be read.
        """
        if self.config.choices is not None:
            return taken_choices(self.config.arms(), Path(self.config.choices))
        path = self.output / CHOSEN
        if not path.exists():
            return {}
        data = read_json(path)
        if data.get("contenders") != _fingerprint(self.config):
            raise ConfigurationError(
                f"The settings in {path} were chosen for other arms or sequences. Give another --output, or delete "
                "the file to choose again."
            )
        return {name: Choice(**entry) for name, entry in data["choices"].items()}

    def result(self, step: Step) -> ComparisonResult:
        """The result of a step that has begun."""
        return ComparisonResult.load(step.folder(self.output) / "result.json")

    def held_out_results(self, choices: Mapping[str, Choice]) -> list[ComparisonResult]:
        """The results of the held-out sequences that have begun; a sequence has several if arms have fewer seeds."""
        folders = dict.fromkeys(step.folder(self.output) for step in self.held_out_steps(choices))
        return [ComparisonResult.load(f / "result.json") for f in folders if (f / "result.json").exists()]

    def _choose(self, results: Sequence[ComparisonResult]) -> dict[str, Choice]:
        choices = choose(self.config, results)
        content = {name: choice.to_dict() for name, choice in choices.items()}
        write_json(self.output / CHOSEN, {"contenders": _fingerprint(self.config), "choices": content})
        return choices

    def _seeds(self, step: Step) -> tuple[int, ...]:
        """The step's seeds, and others that its comparison has finished: its result file must not lose their runs.

        Other steps of the folder may come first: in an earlier start, or while this one waited for another process.
        """
        path = step.folder(self.output) / "result.json"
        if step.part == TUNING or not path.exists():
            return step.seeds
        done: dict[int, set[str]] = {}
        for run in ComparisonResult.load(path).runs:
            if run["status"] != "done" or set(self.config.measured) <= set(run["metrics"]):
                done.setdefault(run["seed"], set()).add(run["arm"])
        labels = {self.config.arm_text(text) for text in step.texts}
        return tuple(seed for seed in self.config.seeds if seed in step.seeds or labels <= done.get(seed, set()))

    def _run_steps(self, steps: Sequence[Step], listener_of: Callable[..., Listener], command: str) -> None:
        # One head for all sequences.
        retention = retention_of(self.config.retention, self.config.model, self.output / "retention")
        waiting = list(enumerate(steps, 1))
        busy = 0
        while waiting:
            number, step = waiting.pop(0)
            config = self.config.comparison(
                step.tasks, list(step.texts), self._seeds(step), "dev" if step.part == TUNING else "validation"
            )
            measures = retention if step.part == HELD_OUT else ()
            listener = listener_of(step, number, len(steps))
            try:
                compare(config, step.folder(self.output), listener=listener, command=command, measures=measures)
            except OutputInUseError:
                # Another process works on this sequence; come back, and wait when all that is left is theirs.
                waiting.append((number, step))
                busy += 1
                if busy >= len(waiting):
                    time.sleep(_WAIT)
                    busy = 0
            else:
                busy = 0


def _fingerprint(config: EvidenceConfig) -> str:
    content: Any = [
        config.first,
        {name: [arm.text, {k: list(v) for k, v in arm.settings.items()}] for name, arm in config.arms().items()},
        [list(sequence) for sequence in config.search],
        list(config.tuning_seeds),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
