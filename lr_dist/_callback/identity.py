"""What a checkpoint says about the run that wrote it, and whether this run may continue it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lr_dist.distribution import LRDistribution
from lr_dist.errors import ResumeMismatchError
from lr_dist.layers import Overrides

_NEW_RUN = "or start a new run from the checkpoint's weights alone, without ckpt_path."


def identity(
    distribution: LRDistribution, overrides: Overrides | None, num_layers: int | None, groups: list[str]
) -> dict[str, Any]:
    """What must not change when a run is resumed; plain data, so that a checkpoint loads with `weights_only=True`."""
    items = overrides.items() if isinstance(overrides, Mapping) else overrides or ()
    return {
        "distribution": distribution.to_dict(),
        "fingerprint": distribution.fingerprint,
        "overrides": [[pattern, group] for pattern, group in items],
        "num_layers": num_layers,
        "groups": list(groups),
    }


def check_present(state: Mapping[str, Any] | None, distribution: LRDistribution) -> Mapping[str, Any]:
    """`state`, unless the checkpoint was written without the callback.

    Raises:
        ResumeMismatchError: there is no state.
    """
    if state is None:
        raise ResumeMismatchError(
            "The checkpoint was written by a run without LayerwiseLR, so its optimizer state does not have the "
            f"groups of {distribution}. Resume without the callback; or start a new run from the weights "
            "alone: model.load_state_dict(torch.load(path, weights_only=True)['state_dict']), then fit without "
            "ckpt_path."
        )
    return state


def check_same(loaded: Mapping[str, Any], own: Mapping[str, Any], distribution: LRDistribution) -> None:
    """Compare a checkpoint's `identity` with this run's.

    Raises:
        ResumeMismatchError: they differ in what both know.
    """
    if loaded.get("fingerprint") != own["fingerprint"]:
        raise ResumeMismatchError(
            f"The checkpoint was written under the distribution {_shown(loaded.get('distribution'))}, this run has "
            f"{distribution}. Resuming would bring the old rates back. Give LayerwiseLR the checkpoint's "
            f"distribution, {_NEW_RUN}"
        )
    for key in ("overrides", "schedule", "num_layers", "groups"):
        # The last two are not known before `on_fit_start`, nor in a checkpoint that was written before it.
        known = key in ("overrides", "schedule") or (own[key] and loaded.get(key))
        then, now = loaded.get(key), own.get(key)
        if known and then != now:
            raise ResumeMismatchError(
                f"The checkpoint was written with {key} = {then!s:.300}, this run has {now!s:.300}. "
                f"Use the same model, optimizer groups, overrides and options of the schedule by layer, {_NEW_RUN}"
            )


def _shown(data: Any) -> str:
    """A distribution from a checkpoint as text, whatever wrote it."""
    try:
        return str(LRDistribution.from_dict(data))
    except Exception:
        return repr(data)
