"""The precision to train in on this machine: with `auto`, a probe of a few milliseconds decides.

On a processor with bf16 products (AMX, AVX-512 bf16) bf16 autocast trains up to three times as fast as fp32. On one
without them, the same product took 66 times as long. A list of processors would soon be out of date, so a product is
timed.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lr_dist.errors import ConfigurationError, SlowPrecisionWarning
from lr_dist.names import one_of
from lr_dist.runs.machine import processor_name, training_device

if TYPE_CHECKING:
    from torch import Tensor

AUTO, FULL, MIXED = "auto", "32-true", "bf16-mixed"
PRECISIONS = (AUTO, FULL, MIXED)

# Autocast casts every weight again in each step, and bf16 has 8 significant bits: a small gain is not worth it.
NEEDED = 0.8
# Rows and width of the products that are timed, small ones first. The last one is a layer of a small encoder.
_SHAPES = ((64, 64), (64, 128), (128, 384))
# Because of overhead, a small bf16 product can take 3 times as long as fp32 on machines where large ones are faster.
# Above this ratio the product itself is slow, and a larger one could take seconds.
_HOPELESS = 4.0
_REPEATS = 4
_ATTEMPTS = 3
# This thread's processor time, which other processes do not affect. Windows counts it in steps of 16 ms.
_clock = time.perf_counter if os.name == "nt" else time.thread_time
# From this compute capability on NVIDIA's GPUs have bf16 products.
_AMPERE = (8, 0)


@dataclass(frozen=True)
class Measurement:
    """The speed of bf16 on one device.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        name: name of the processor or the GPU.
        capability: torch's name of the processor's instruction set (`AVX512`), or the GPU's compute capability (`9.0`);
            empty for another device, on which bf16 is neither timed nor used.
        ratio: seconds of a training product (forward and backward) in bf16 autocast over the same in fp32; None if it
            was not timed.
        fast: whether bf16 is fast enough to be used.
        milliseconds: duration of the measurement.
    """

    device: str
    name: str
    capability: str
    ratio: float | None
    fast: bool
    milliseconds: float

    @property
    def reason(self) -> str:
        """The measurement in words, for one line on the terminal."""
        if not self.capability:
            return f"bf16 was not measured on {self.name}"
        if self.ratio is None:
            has = "has" if self.fast else "has no"
            return f"{self.name} {has} bf16 products: capability {self.capability}"
        if self.ratio > 1:
            # The probe stops at the first product above this ratio; larger ones are slower still.
            least = "at least " if self.ratio > _HOPELESS else ""
            return f"a bf16 product takes {least}{self.ratio:.1f} times as long as fp32 here"
        return f"a bf16 product is {1 / self.ratio:.1f} times as fast as fp32 here"


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision of a run, and why.

    Attributes:
        asked: the setting, `auto` or a precision.
        chosen: `32-true` or `bf16-mixed`.
        reason: why.
        ratio: see `Measurement`; None if nothing was timed.
        device, name, capability: those of the `Measurement`; empty without one.
    """

    asked: str
    chosen: str
    reason: str
    ratio: float | None = None
    device: str = ""
    name: str = ""
    capability: str = ""

    @property
    def line(self) -> str:
        """`precision: 32-true (a bf16 product takes at least 7.2 times as long as fp32 here)`."""
        return f"precision: {self.chosen} ({self.reason})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a result file."""
        return asdict(self)


def choose_precision(asked: str) -> PrecisionChoice:
    """The precision to train in on this machine.

    Args:
        asked: `auto`, or a precision, which is kept. `bf16-mixed` is measured nevertheless, so that a warning can say
            how slow it is here.

    Raises:
        ConfigurationError: another precision.

    Warns:
        SlowPrecisionWarning: `bf16-mixed` was asked for where it is slower than fp32.
    """
    if asked not in PRECISIONS:
        raise ConfigurationError(f"precision must be {one_of(PRECISIONS, asked)}")
    if asked == FULL:
        return PrecisionChoice(FULL, FULL, "asked for")
    measured = measure()
    facts = {key: getattr(measured, key) for key in ("ratio", "device", "name", "capability")}
    if asked == AUTO:
        return PrecisionChoice(AUTO, MIXED if measured.fast else FULL, measured.reason, **facts)
    if measured.capability and not measured.fast and (measured.ratio is None or measured.ratio > 1):
        warnings.warn(
            f"precision=bf16-mixed is slower than 32-true on this machine ({measured.reason}). Give auto or 32-true.",
            SlowPrecisionWarning,
            stacklevel=2,
        )
    return PrecisionChoice(MIXED, MIXED, "asked for", **facts)


def measure() -> Measurement:
    """Measure bf16 on the device that a fit would use; once per process and device."""
    device = training_device()
    if device not in _MEASURED:
        _MEASURED[device] = _measure(device)
    return _MEASURED[device]


def measured_before() -> tuple[Measurement, ...]:
    """The measurements of this process, to be passed to a process that it starts (`remember`)."""
    return tuple(_MEASURED.values())


def remember(measurements: tuple[Measurement, ...]) -> None:
    """Use the measurements of the process that started this one, so that both choose the same."""
    _MEASURED.update({measurement.device: measurement for measurement in measurements})


_MEASURED: dict[str, Measurement] = {}


def _measure(device: str) -> Measurement:
    import torch

    began = time.perf_counter()
    ratio: float | None = None
    if device == "cpu":
        name, capability, ratio = processor_name(), torch.backends.cpu.get_cpu_capability(), _ratio_on_cpu()
        fast = ratio <= NEEDED
    elif device == "cuda":
        compute = torch.cuda.get_device_capability()
        name, capability = torch.cuda.get_device_name(), ".".join(map(str, compute))
        # Older GPUs emulate bf16. ROCm devices are numbered differently; torch knows which of them have bf16.
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        fast = has and (torch.version.hip is not None or compute >= _AMPERE)
    else:
        name, capability, fast = device, "", False
    return Measurement(device, name, capability, ratio, fast, 1000 * (time.perf_counter() - began))


def _ratio_on_cpu() -> float:
    """Seconds of a training product in bf16 autocast over fp32, for the first clearly slow shape or the last one.

    The two are timed alternately, in one thread, and the best time of each counts. On a busy machine, several threads
    waiting for each other took eleven seconds instead of a few milliseconds.
    """
    import torch

    ratio = 1.0
    # Independent of the caller's contexts, which do not apply to a fit.
    with _threads(1), torch.enable_grad(), torch.inference_mode(False):
        for rows, width in _SHAPES:
            inputs = torch.ones(rows, width, dtype=torch.float32, device="cpu", requires_grad=True)
            weights = torch.ones(width, width, dtype=torch.float32, device="cpu", requires_grad=True)
            full, mixed = (partial(_training_product, inputs, weights, each) for each in (False, True))
            ratio = _ratio_of(mixed, full)
            if ratio > _HOPELESS:
                break
    return ratio


def _ratio_of(mixed: Callable[[], object], full: Callable[[], object]) -> float:
    """Best seconds of `mixed` over those of `full`; a ratio near the bound is measured again, up to three times in all.

    Two threads of one core share its units for products, so other work can make bf16 look half as fast as it is.
    """
    best_full = best_mixed = float("inf")
    for _ in range(_ATTEMPTS):
        seconds = _best_seconds(full, mixed)
        best_full, best_mixed = min(best_full, seconds[0]), min(best_mixed, seconds[1])
        if not NEEDED / 2 < best_mixed / best_full < NEEDED * 2:
            break
    return best_mixed / best_full


@contextmanager
def _threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if before != number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if before != number:
            torch.set_num_threads(before)


def _training_product(inputs: Tensor, weights: Tensor, mixed: bool) -> None:
    """One product [rows, width] x [width, width] and its two gradients, in bf16 autocast or in fp32."""
    import torch

    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        outputs = torch.nn.functional.linear(inputs, weights)
    torch.autograd.grad(outputs.sum(), (inputs, weights))


def _best_seconds(*calls: Callable[[], object]) -> tuple[float, ...]:
    """The shortest time of each call, over alternating repeats; the first, a warm-up, is not counted."""
    best = [float("inf")] * len(calls)
    for turn in range(1 + _REPEATS):
        for index, call in enumerate(calls):
            began = _clock()
            call()
            if turn:
                best[index] = min(best[index], _clock() - began)
    return tuple(best)
