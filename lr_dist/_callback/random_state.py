"""The state of every global random number generator, as plain data."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class RandomState:
    """The states of the generators of Python, numpy, torch and one device, and of the data loaders' generators.

    Reading them draws no number. The fields hold what each library's getter returns.
    """

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    cpu: torch.Tensor
    device: torch.Tensor | None
    loaders: tuple[torch.Tensor, ...]

    @classmethod
    def now(cls, device: torch.device, loaders: Sequence[torch.Generator] = ()) -> RandomState:
        """The current states; `device` is the model's device, and the CPU's generator is always included."""
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(legacy=False),  # type: ignore[arg-type]
            cpu=torch.get_rng_state(),
            device=_device_state(device),
            loaders=tuple(generator.get_state() for generator in loaders),
        )

    def restore(self, device: torch.device, loaders: Sequence[torch.Generator] = ()) -> None:
        """Set every generator to this state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            _set_device_state(self.device, device)
        # Restored only if the number of the loaders' generators is unchanged.
        if len(loaders) == len(self.loaders):
            for generator, state in zip(loaders, self.loaders, strict=True):
                generator.set_state(state)

    def plain(self) -> dict[str, Any]:
        """As numbers, lists and tensors, which `torch.load` reads with `weights_only=True`."""
        return {
            "python": _plain(self.python),
            "numpy": _plain(self.numpy),
            "cpu": self.cpu,
            "device": self.device,
            "loaders": list(self.loaders),
        }

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> RandomState:
        """The inverse of `plain`; it also reads the format of earlier versions of lr-dist."""
        version, internal, gauss = data["python"]
        python = (version, tuple(internal), gauss)
        # Lightning moves a loaded checkpoint's tensors to the device, and generators take states on the CPU only.
        device = None if data["device"] is None else data["device"].cpu()
        cpu = data["cpu"] if "cpu" in data else data["torch"]  # the key in old checkpoints
        return cls(python, data["numpy"], cpu.cpu(), device, tuple(s.cpu() for s in data["loaders"]))


def loader_generators(loaders: Iterable[Any]) -> list[torch.Generator]:
    """The generators that were given to data loaders or to their samplers, each once."""
    generators: dict[int, torch.Generator] = {}
    for loader in loaders:
        batches = getattr(loader, "batch_sampler", None)
        for owner in (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                generators[id(generator)] = generator
    return list(generators.values())


def _device_state(device: torch.device) -> torch.Tensor | None:
    if device.type == "cpu":
        return None
    backend = torch.get_device_module(device)
    # MPS has one device, and its functions take no argument.
    return backend.get_rng_state() if device.type == "mps" else backend.get_rng_state(device)


def _set_device_state(state: torch.Tensor, device: torch.device) -> None:
    if device.type == "mps":
        torch.get_device_module(device).set_rng_state(state)
    elif device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state, device)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
