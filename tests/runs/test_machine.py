"""What this process may use of its machine: cores, threads, fused steps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lr_dist.runs import machine
from lr_dist.runs.fused import has_fused_adamw
from lr_dist.runs.machine import processor_name, threads_of, usable_cores, use_usable_cores


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Eight cores and no quota; the folder in which a test writes one."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(machine, "QUOTA_V1", (tmp_path / "quota_us", tmp_path / "period_us"))
    return tmp_path


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({"quota_us": "300000\n", "period_us": "100000\n"}, 3),
        ({"quota_us": "-1\n", "period_us": "100000\n"}, 8),
        ({"quota_us": "300000\n"}, 8),
    ],
)
def test_a_containers_quota_counts(files: dict[str, str], cores: int, free: Path) -> None:
    for name, text in files.items():
        (free / name).write_text(text)
    assert usable_cores() == cores
    assert threads_of(2) == max(1, cores // 2)


def test_threads_are_lowered_to_the_usable_cores_and_said(free: Path) -> None:
    before = torch.get_num_threads()
    (free / "cpu.max").write_text("100000 100000\n")
    try:
        torch.set_num_threads(4)
        said = use_usable_cores()
        assert said is not None
        assert said.startswith("threads: 1 (this process may use 1 core")
        assert torch.get_num_threads() == 1
        assert use_usable_cores() is None
    finally:
        torch.set_num_threads(before)


def test_the_threads_that_the_user_asked_for_stay(free: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    (free / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    try:
        torch.set_num_threads(3)
        assert use_usable_cores() is None
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_fused_step_is_used_where_the_device_has_one() -> None:
    assert has_fused_adamw("cpu")
    assert not has_fused_adamw("meta")
    assert not has_fused_adamw("no-such-device")


def test_the_processor_has_a_name() -> None:
    assert processor_name().strip()
