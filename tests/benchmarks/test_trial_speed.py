"""The benchmark of a trial's speed at its smallest: what is done is kept, and bf16 products are forbidden."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("trial_speed.py")


@pytest.mark.minilm
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or torch.cuda.is_available(),
    reason="bf16 products can be forbidden on x86 processors only",
)
def test_it_alternates_the_kinds_of_trial_and_goes_on_where_it_was_stopped(minilm_path: Path, tmp_path: Path) -> None:
    state, output = tmp_path / "state.jsonl", tmp_path / "speed.json"
    # As if it had been stopped after the first plain trial, which took long.
    trial = {"seconds": 500.0, "cpu_seconds": 400.0, "final": [0.5, 0.5]}
    kept = {"same": [32, 16, 1, 1, True, "32-true"], "kind": "plain", "number": 1, "trial": trial}
    other = {**kept, "same": [64, 16, 1, 1, True, "32-true"], "trial": {**trial, "seconds": 1e9}}
    state.write_text("".join(json.dumps(line) + "\n" for line in (kept, other)), encoding="utf-8")
    sizes = ["--limit", "32", "--dev-size", "16", "--epochs", "1", "--rounds", "1"]
    command = [sys.executable, str(SCRIPT), *sizes, "--no-bf16", "--state", str(state), "--output", str(output)]
    # Generated tasks stand in for GLUE.
    environment = {**os.environ, "LR_DIST_DATA": str(tmp_path / "nothing"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    # The end of the process's output is the JSON that is also in the file.
    assert json.loads(output.read_text(encoding="utf-8")) == json.loads(run.stdout)
    speed = json.loads(run.stdout)
    assert (speed["precision"]["chosen"], speed["generated_stand_in"]) == ("32-true", True)
    assert speed["trials"]["plain"] == [trial]
    for kind in ("ours", "first"):
        [measured] = speed["trials"][kind]
        assert all(0 <= score <= 1 for score in measured["final"])
        for key, plain in (("seconds", 500.0), ("cpu_seconds", 400.0)):
            assert speed["times_as_fast"][kind][key] == pytest.approx(plain / measured[key], abs=0.006)
        assert speed["products_at_full_rate"][kind] > 0
    assert [json.loads(line)["kind"] for line in state.read_text(encoding="utf-8").splitlines()[2:]] == [
        "ours",
        "first",
    ]
