"""What the training step has logged since the epoch began, from which Lightning makes the epoch's metrics.

Lightning starts it anew when a run is resumed, so that an average over the epoch, which a ReduceLROnPlateau may
watch, would be one over the rest of the epoch.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import nn

_OPTIONS = (
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "metric_attribute",
)
_STATES = ("value", "cumulated_batch_size", "_forward_cache", "has_reset", "_update_count")

Snapshot = dict[str, tuple[Any, dict[str, Any]]]


def snapshot(results: dict[str, Any]) -> Snapshot:
    """The values so far. Lightning replaces its tensors and never changes them, so that no copy is needed."""
    return {
        key: (result, {name: getattr(result, name) for name in _STATES if hasattr(result, name)})
        for key, result in results.items()
    }


def plain(values: Snapshot) -> list[dict[str, Any]]:
    """`values` as plain data and tensors on the CPU."""
    return [_entry(result, state) for result, state in values.values() if result.meta.sync.group is None]


def restore(results: Any, entries: list[dict[str, Any]], module: nn.Module, reduce: Any) -> None:
    """Make `results`, the training loop's collection, what it was.

    Args:
        results: Lightning's collection, which is changed.
        entries: what `plain` returned.
        module: the LightningModule, which holds the logged torchmetrics.
        reduce: the strategy's function that reduces over the processes.
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    for entry in entries:
        metric = entry["metric"]
        value: Any = torch.zeros((), device=device)
        if metric is not None:
            value = attrgetter(entry["metric_attribute"])(module)
        results.log(
            entry["fx"],
            entry["name"],
            value,
            reduce_fx=getattr(torch, entry["reduce_fx"]),
            sync_dist=entry["sync_dist"],
            sync_dist_fn=reduce,
            rank_zero_only=entry["rank_zero_only"],
            batch_size=1,
            **{name: entry[name] for name in _OPTIONS},
        )
        result = results[_key(entry)]
        for name, state in entry["state"].items():
            setattr(result, name, _to(state, device))
        result._computed = None
        if metric is not None:
            for name, state in metric.items():
                setattr(value, name, _to(state, device))
            value._computed = None


def _entry(result: Any, state: dict[str, Any]) -> dict[str, Any]:
    meta, metric = result.meta, None
    if not result.is_tensor:
        # The module's own torchmetrics object: its state is what it is now.
        metric = {name: _to(getattr(result.value, name), "cpu") for name in result.value._defaults}
        metric["_update_count"] = result.value._update_count
    return {
        "fx": meta.fx,
        "name": meta.name,
        "reduce_fx": meta.reduce_fx.__name__,
        "sync_dist": meta.sync.should,
        "rank_zero_only": meta.sync.rank_zero_only,
        "metric": metric,
        "state": {name: _to(value, "cpu") for name, value in state.items() if result.is_tensor or name != "value"},
        **{name: getattr(meta, name) for name in _OPTIONS},
    }


def _key(entry: dict[str, Any]) -> str:
    return f"{entry['fx']}.{entry['name']}"


def _to(value: Any, device: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, copy=True)
    return [_to(item, device) for item in value] if isinstance(value, list) else value
