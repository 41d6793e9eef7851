"""Describes a run in its checkpoints, and checks that a resumed run matches the description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lr_dist._lightning import L
from lr_dist.distribution import LRDistribution, shown_distribution
from lr_dist.errors import ResumeMismatchError
from lr_dist.layers import Overrides

_NEW_RUN = "or start a new run from the checkpoint's weights alone, without ckpt_path."
# Key -> its name in an error, and what has to be the same.
_FACTS = {
    "overrides": ("overrides", "overrides"),
    "schedule": ("schedule by layer", "options of the schedule by layer"),
    "phases": ("phases", "phases"),
    "num_layers": ("num_layers", "model"),
    "optimizers": ("optimizers", "optimizers"),
    "schedulers": ("schedulers", "schedulers"),
    "groups": ("groups", "model and optimizer groups"),
    "sizes": ("numbers of parameters in the optimizer's groups", "model and optimizer groups"),
}
# Known from the start: compared even if only one of the two runs has a value.
_ALWAYS_KNOWN = ("overrides", "schedule", "phases")
# Empty before `on_fit_start`, and in checkpoints written before it.
_NOT_YET_KNOWN = ("num_layers", "groups")


def identity(
    distribution: LRDistribution,
    overrides: Overrides | None,
    num_layers: int | None,
    groups: Sequence[str],
    optimization: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What must be the same when a run is resumed; plain data, so that a checkpoint loads with `weights_only=True`.

    Args:
        distribution: the run's distribution.
        overrides: the run's overrides.
        num_layers: the model's number of layers; None before it is known.
        groups: names of the optimizer's groups; empty before they are known.
        optimization: further values to compare, with the keys "optimizers", "schedulers" and "sizes".
    """
    items = overrides.items() if isinstance(overrides, Mapping) else overrides or ()
    return {
        "distribution": distribution.to_dict(),
        "fingerprint": distribution.fingerprint,
        "overrides": [[pattern, group] for pattern, group in items],
        "num_layers": num_layers,
        "groups": list(groups),
        **(optimization or {}),
    }


def check_present(state: Mapping[str, Any] | None, distribution: LRDistribution, path: Any = None) -> Mapping[str, Any]:
    """`state`, unless the checkpoint `path` was written without the callback.

    Raises:
        ResumeMismatchError: there is no state.
    """
    if state is None:
        raise ResumeMismatchError(
            "The checkpoint was written by a run without LayerwiseLR, so its optimizer state does not have the "
            f"groups of {distribution}. Resume without the callback; or {_from_weights(path)}"
        )
    return state


def check_complete(checkpoint: Mapping[str, Any], path: Any = None) -> None:
    """Refuse a checkpoint without optimizer state and schedule.

    Raises:
        ResumeMismatchError: the checkpoint holds weights only.
    """
    if "callbacks" not in checkpoint:
        raise ResumeMismatchError(
            "The checkpoint holds weights only (it was saved with `save_weights_only` or `weights_only`), so there is "
            f"no optimizer state and no schedule to resume. To use it, {_from_weights(path)}"
        )


def check_same(loaded: Mapping[str, Any], current: Mapping[str, Any], distribution: LRDistribution) -> None:
    """Compare a checkpoint's `identity` with this run's.

    Raises:
        ResumeMismatchError: they differ in a value that both have.
    """
    if loaded.get("fingerprint") != current["fingerprint"]:
        raise ResumeMismatchError(
            f"The checkpoint was written under the distribution {shown_distribution(loaded.get('distribution'))}, "
            f"this run has {distribution}. Resuming would bring the old rates back. Give LayerwiseLR the checkpoint's "
            f"distribution, {_NEW_RUN}"
        )
    for key, (name, same) in _FACTS.items():
        before, value = loaded.get(key), current.get(key)
        known = key in _ALWAYS_KNOWN or (key in current and key in loaded)
        if key in _NOT_YET_KNOWN:
            known = bool(value and before)
        if known and before != value:
            instead = "." if key == "num_layers" else f", {_NEW_RUN}"
            raise ResumeMismatchError(
                f"The checkpoint was written with {name} = {before!s:.300}, this run has {value!s:.300}. "
                f"Use the same {same}{instead}"
            )


def _from_weights(path: Any) -> str:
    """How to start a new run from a checkpoint's weights, as code to copy."""
    convert = ""
    if path is not None and Path(path).is_dir():
        # A folder: a sharding strategy wrote the checkpoint in parts.
        convert = f"run `python -m {L.__name__}.utilities.consolidate_checkpoint {path}`, and then "
        path = f"{path}.consolidated"
    file = "path" if path is None else repr(str(path))
    return (
        f"start a new run from the weights alone: {convert}"
        f"model.load_state_dict(torch.load({file}, weights_only=True)['state_dict']), then fit without ckpt_path."
    )
