"""`interpolate:alpha=auto` with two processes, each with scores of its own: both choose the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import lightning.pytorch as L
import tiny
import torch
from strategies.runs import STRATEGIES, Case, ShardedModule

from lr_dist.methods import Interpolate

kind, folder = sys.argv[2:]
WORDS = "model.bert.encoder.layer.0.attention.self.query.weight"


def whole(weight):
    return (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).detach().clone()


start = tiny.weights(tiny.bert())[WORDS.removeprefix("model.")]


class Ends(L.Callback):
    def on_train_end(self, trainer, pl_module):
        self.after = whole(pl_module.get_parameter(WORDS))


ends = Ends()


def score(module):
    # Highest at .2 of the way in one process, at .6 in the other: the mean is highest at .4.
    goal = 0.2 if module.global_rank == 0 else 0.6
    way = ends.after - start
    here = ((whole(module.get_parameter(WORDS)) - start) * way).sum() / (way * way).sum()
    return -float(here - goal) ** 2


optimizer = lambda module: torch.optim.SGD(module.parameters(), lr=0.1)
module = ShardedModule(Case("auto", kind, optimizer="sgd")) if kind == "fsdp2" else tiny.Classifier(optimizer)
method = Interpolate("auto", held_out={"old": score, "new": score})
tiny.fit(module, ends, method, strategy=STRATEGIES[kind](), devices=2)
rank = module.global_rank
outcome = {"single": method.choice.single, "weight": whole(module.get_parameter(WORDS)).flatten().tolist()}
outcome["expected"] = torch.lerp(start, ends.after, 0.4).flatten().tolist()
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(outcome, file)
"""


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_all_processes_choose_the_same_by_the_mean_of_their_scores(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, str(script), str(tests), kind, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["single"] == second["single"] == 0.4
    assert first["weight"] == second["weight"]
    assert first["weight"] == pytest.approx(first["expected"], abs=1e-6)
