"""What the monitor of retention does, whichever Trainer it runs in: hold the reference, measure, save and load."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from lr_dist.errors import ResumeMismatchError
from lr_dist.layers import Overrides, Stacks
from lr_dist.monitor.host import Host
from lr_dist.monitor.movement import Movement
from lr_dist.monitor.snapshot import Snapshot
from lr_dist.monitor.undisturbed import reshard
from lr_dist.retention.cka import cka_by_layer
from lr_dist.retention.hidden_states import Run, hidden_states
from lr_dist.retention.reference import Reference


@dataclass(frozen=True)
class LayerChanges:
    """What was measured after `step` steps of the optimizer, against the reference.

    Attributes:
        step: steps that the optimizer has taken.
        epoch: epochs that were completed.
        drift: layer -> relative L2 distance of its weights.
        cka: layer -> unbiased linear CKA of its hidden states; empty without texts.
        seconds: what the measurement took.
    """

    step: int
    epoch: int
    drift: Mapping[str, float]
    cka: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def logged(self) -> dict[str, float]:
        """`drift/LAYER` and `cka/LAYER`."""
        parts = {"drift": self.drift, "cka": self.cka}
        return {f"{kind}/{layer}": value for kind, values in parts.items() for layer, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerChanges:
        """The inverse of `to_dict`."""
        return cls(**data)


class RetentionWatch:
    """One fit under observation.

    Args:
        batches: what hidden states are computed of; None for drift alone.
        fingerprint: of the batches, as far as it is known.
        reference: given weights; None for those at the start of the fit.
        pool: see `hidden_states`.
        run: see `hidden_states`.
        overrides: see `assign_layers`.
        stacks: see `assign_layers`.
    """

    def __init__(
        self,
        batches: Iterable[Any] | None,
        fingerprint: str | None,
        reference: Reference | None,
        pool: str,
        run: Run | None,
        overrides: Overrides | None,
        stacks: Stacks | None,
    ) -> None:
        self.history: list[LayerChanges] = []
        self._batches = batches
        self._fingerprint = fingerprint
        self._reference = reference
        self._pool = pool
        self._run = run
        self._places = overrides, stacks
        self._movement = Movement(overrides, stacks, frozen=True)
        self._states: dict[str, Tensor] = {}

    def place(self, module: nn.Module) -> None:
        """Find the layers, and check that the reference is of this architecture.

        Raises:
            LRDistError: layers that cannot be found, or another architecture.
        """
        self._movement.place(module)
        if self._reference is not None:
            self._movement.load_state_dict(self._reference.of(module))

    def begin(self, module: nn.Module, host: Host, step: int, epoch: int) -> LayerChanges | None:
        """Take the reference and measure before the first step; None in a fit that is resumed, which has done so."""
        reshard(module)
        self._movement.hold(module)
        if self._batches is not None and not self._states:
            self._states = self._states_of_reference(module, host)
        return None if self.history else self.measure(module, host, step, epoch)

    def measured(self, step: int) -> bool:
        """Whether there is a measurement of this step."""
        return bool(self.history) and self.history[-1].step >= step

    def measure(self, module: nn.Module, host: Host, step: int, epoch: int) -> LayerChanges:
        """Measure the change since the reference. Every process has to call it.

        Raises:
            DivergedError: hidden states are NaN or infinite.
            ConfigurationError: fewer than 4 texts, or a batch of unknown form.
        """
        began = time.perf_counter()
        reshard(module)
        drift = self._movement.by_layer(module)
        cka = {} if self._batches is None else cka_by_layer(self._states, self._states_of(module, host))
        row = LayerChanges(step, epoch, drift, cka, time.perf_counter() - began)
        self.history.append(row)
        return row

    # Hidden states ---------------------------------------------------------------------------------------

    def _states_of(self, module: nn.Module, host: Host) -> dict[str, Tensor]:
        overrides, stacks = self._places
        return hidden_states(
            module,
            self._batches or (),
            pool=self._pool,
            run=self._run,
            overrides=overrides,
            stacks=stacks,
            host=host,
        )

    def _states_of_reference(self, module: nn.Module, host: Host) -> dict[str, Tensor]:
        if self._reference is None:
            return self._states_of(module, host)
        own = Snapshot.of(module)
        given = Snapshot.from_state_dict(self._reference.of(module))
        given.adopt(module)
        try:
            given.restore(module)
            return self._states_of(module, host)
        finally:
            reshard(module)
            own.restore(module)

    # Checkpoints -----------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What a checkpoint has to agree with."""
        return {
            "reference": None if self._reference is None else self._reference.fingerprint,
            "texts": self._fingerprint if self._batches is not None else None,
            "pool": self._pool,
        }

    def plain_state(self) -> dict[str, Any]:
        """All but tensors, as plain data."""
        return {"settings": self.settings(), "history": [row.to_dict() for row in self.history]}

    def weights_state(self) -> dict[str, dict[str, Tensor]]:
        """The weights at the start, unless they were given, and the hidden states of the reference.

        Under FSDP2 every process has to call it.
        """
        start = self._movement.state_dict() if self._reference is None else {}
        return {"start": start, "states": dict(self._states)}

    def load(self, plain: Mapping[str, Any], weights: Mapping[str, dict[str, Tensor]]) -> None:
        """Continue a fit.

        Raises:
            ResumeMismatchError: the state was written with other settings.
        """
        self.check_settings(plain["settings"])
        self.history = [LayerChanges.from_dict(row) for row in plain["history"]]
        # Lightning brings the tensors of a checkpoint to the device.
        self._states = {layer: states.cpu() for layer, states in weights["states"].items()}
        if self._reference is None:
            self._movement.load_state_dict(weights["start"])

    def check_settings(self, written: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of other settings.

        Raises:
            ResumeMismatchError: see above.
        """
        if dict(written) != self.settings():
            raise ResumeMismatchError(
                f"The checkpoint was written by a monitor of retention with {dict(written)}, and this one has "
                f"{self.settings()}, so its measurements would not continue those. Use the same reference, texts and "
                "pool, or start a new run from the checkpoint's weights alone."
            )
