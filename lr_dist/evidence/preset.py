"""A preset from an evidence run: only an arm that beats the tuned control becomes one."""

from __future__ import annotations

from datetime import UTC, datetime

from lr_dist.advice.case import family_and_layers
from lr_dist.errors import ConfigurationError
from lr_dist.evidence.analysis import Estimate, Finding
from lr_dist.evidence.config import EvidenceConfig, names_of, sequence_name
from lr_dist.evidence.summary import Outcome
from lr_dist.evidence.table import percent, with_interval
from lr_dist.presets import resolve_plan
from lr_dist.presets.schema import Preset, Provenance
from lr_dist.rate_plan import highest
from lr_dist.runs.numbers import number
from lr_dist.sequence.environment import versions_text


def preset_of(config: EvidenceConfig, outcome: Outcome, arm: str, name: str) -> Preset:
    """The tuned arm as a preset, with its figures as provenance.

    Args:
        config: the protocol.
        outcome: of the run.
        arm: name of the arm.
        name: of the preset.

    Raises:
        ConfigurationError: an unknown arm, the control, an arm tuned in another evidence run, one whose p_o is not
            clearly above the control's, or one whose p_s is clearly below it and whose p_o at equal p_s is not clearly
            above the control's curve.
        InvalidPresetError: an invalid name.
        ModelLoadError: the model's configuration cannot be read.
    """
    if config.choices is not None:
        raise ConfigurationError(
            f"The arms were tuned in another evidence run ({config.choices}); a preset is made where its arm was tuned."
        )
    control, *others = outcome.findings
    found = next((finding for finding in others if finding.name == arm), None)
    if found is None:
        raise ConfigurationError(
            f"A preset is made from one of the arms {', '.join(each.name for each in others)}, not {arm!r}."
        )
    gain, cost, at_equal_p_s = found.differences["p_o"], found.differences["p_s"], found.at_equal_p_s
    learns_less = cost.is_clear and cost.mean < 0
    if not _is_above(gain) or (learns_less and not _is_above(at_equal_p_s)):
        raise ConfigurationError(
            f"The arm {arm} has not earned a preset: against the tuned control its p_o differs by "
            f"{with_interval(gain)} and its p_s by {with_interval(cost)}; p_o at equal p_s by "
            f"{with_interval(at_equal_p_s)}. A preset needs a higher p_o and no lower p_s, or a higher p_o at equal "
            "p_s, beyond the intervals."
        )
    rates, *methods = config.arm_text(found.text).split(" + ")
    plan = resolve_plan(rates)
    family, layers = family_and_layers(config.model)
    cautions = []
    if outcome.finished < outcome.planned:
        cautions.append(f"Preliminary: {outcome.finished} of {outcome.planned} runs.")
    if found.given_up is not None:
        cautions.append(f"Compared with {found.given_up} of {len(config.seeds)} seeds.")
    than = "the tuned flat rate" if not learns_less else "any flat rate that learns as much of the later one"
    return Preset(
        name=name,
        purpose=f"To keep an earlier task with {config.model}: more of it is left than with {than}.",
        caution=" ".join(cautions) or None,
        distribution=highest(plan.stages[0]),
        plan=plan,
        methods=tuple(methods),
        provenance=Provenance(
            source="lr-dist evidence",
            model=config.model,
            tasks=tuple(">".join(names_of(sequence)) for sequence in config.search),
            trials=outcome.choices[arm].tried,
            seeds=len(config.tuning_seeds),
            version="1",
            date=datetime.now(UTC).date().isoformat(),
            evidence=tuple(_lines(outcome, control, found)),
            families=(family,),
            layers=(layers,),
            batch_size=config.settings.batch_size,
            examples=None if config.limit is None else (config.limit, config.limit),
            shown_for=f"Held-out sequences: {', '.join(map(sequence_name, config.held_out))}.",
            not_shown_for="Other models, tasks and sizes of tasks.",
        ),
    )


def _lines(outcome: Outcome, control: Finding, found: Finding) -> list[str]:
    gain, cost = found.differences["p_o"], found.differences["p_s"]
    versions = versions_text(outcome.environment)
    gone = found.forgetting_gone
    lines = [
        outcome.command,
        f"Tuned control {control.text}: p_o {number(control.means['p_o'])}, p_s {number(control.means['p_s'])}; "
        f"this one ({found.text} from the second task on): p_o {number(found.means['p_o'])}, "
        f"p_s {number(found.means['p_s'])}.",
        f"p_o {with_interval(gain)}, p_s {with_interval(cost)}: "
        f"{gain.pairs} pairs of runs in {gain.sequences} held-out sequences.",
    ]
    if found.at_equal_p_s is not None:
        lines.append(f"p_o at equal p_s, minus the control's curve: {with_interval(found.at_equal_p_s)}.")
    if gone is not None:
        lines.append(f"Share of the control's forgetting that is gone: {percent(gone)}.")
    return [*lines, f"{outcome.environment.get('processor', '')}; {versions}."]


def _is_above(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.is_clear and estimate.mean > 0
