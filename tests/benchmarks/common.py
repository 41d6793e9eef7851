"""What the benchmarks share: the machine's matrix rate, and the JSON that they print and write."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from lr_dist.sequence.environment import describe_environment


def parser(description: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--output", type=Path, help="also write the JSON there")
    return p


def publish(name: str, figures: dict[str, Any], output: Path | None) -> None:
    """Print the figures with the environment as JSON, and write them where asked."""
    text = json.dumps({"benchmark": name, **figures, "environment": describe_environment()}, indent=1)
    print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")


def matrix_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 7) -> float:
    """Floating-point operations a second of this machine on a square matrix product; the median of `repeats`."""
    left, right = torch.randn(2, size, size).to(dtype)
    for _ in range(2):
        left @ right
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds)
