"""Two processes under torchrun on the CPU, with DDP and FSDP, train as one does with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_trainer import layerwise

from lr_dist import LRDistribution

# SGD without clipping, because both hide a gradient of the wrong size.
SETTINGS: dict[str, Any] = {"optim": "sgd", "max_grad_norm": 0.0, "weight_decay": 0.1, "max_steps": 6}
FROZEN = LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0").scale(10)


def build(folder: Path, batch: int, **options: Any) -> tuple[Any, Any]:
    trainer, rates = layerwise(folder, FROZEN, **SETTINGS, per_device_train_batch_size=batch, **options)
    # The Trainer believes that the loss averages over all items of a step, which BERT's for classes does not.
    trainer.model_accepts_loss_kwargs = False
    return trainer, rates


def shard(trainer: Any) -> None:
    """Set what accelerate sets for FSDP 2; it knows FSDP on accelerators only, though torch has it on the CPU too."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BertLayer"],
        cpu_ram_efficient_loading=False,
        state_dict_type="SHARDED_STATE_DICT",
    )
    shared = AcceleratorState._shared_state
    shared.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin, device=torch.device("cpu"))
    PartialState._shared_state["device"] = torch.device("cpu")
    trainer.is_fsdp_enabled = True


def in_one_of_the_processes(folder: Path, strategy: str) -> None:
    """Train, resume from the checkpoint after four steps, and write what came out (first process)."""
    found: dict[str, Any] = {}
    weights = []
    for checkpoint, seed in ((None, 0), (folder / "checkpoint-4", 3)):
        model = tiny.bert(seed=seed)
        saved = {"ddp_backend": "gloo", "save_strategy": "steps", "save_steps": 4}
        trainer, rates = build(folder, 4, model=model, **saved)
        if strategy == "fsdp":
            shard(trainer)
        trainer.train(resume_from_checkpoint=checkpoint)
        kinds = {type(p).__name__ for group in trainer.optimizer.param_groups for p in group["params"]}
        state = trainer.model.state_dict()
        weights.append({name: value.full_tensor() if strategy == "fsdp" else value for name, value in state.items()})
        found["resumed" if checkpoint else "whole"] = rates.seen
    wrapped = type(trainer.model_wrapped).__name__
    found |= {"processes": trainer.args.world_size, "parameters": sorted(kinds), "wrapped": wrapped}
    if trainer.is_world_process_zero():
        (folder / "found.json").write_text(json.dumps(found))
        torch.save(weights, folder / "weights.pt")
    torch.distributed.barrier()


HELD = {"ddp": ("DistributedDataParallel", ["Parameter"]), "fsdp": ("FSDPBertForSequenceClassification", ["DTensor"])}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", HELD)
def test_two_processes_have_the_rates_and_the_weights_of_one_and_resume(strategy: str, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # One thread each: two processes with all threads each wait for one another.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*launcher, __file__, str(tmp_path), strategy]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    ours, resumed = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert (found["processes"], found["wrapped"], found["parameters"]) == (2, *HELD[strategy])

    single, rates = build(tmp_path, 8)
    single.train()
    assert found["whole"] == rates.seen
    assert found["resumed"] == rates.seen[4:]
    expected = {name: 10 * rate for name, rate in tiny.RATES.items() if name != "layers.0"}
    assert {name: rate for name, rate in rates.seen[2].items() if "/" not in name} == pytest.approx(expected)
    fresh = tiny.bert().state_dict()
    for name, value in single.model.state_dict().items():
        assert torch.allclose(ours[name], value, rtol=1e-5, atol=1e-7), name
        assert torch.equal(ours[name], resumed[name]), name
        assert torch.equal(value, fresh[name]) is ("encoder.layer.0." in name), name


if __name__ == "__main__":
    in_one_of_the_processes(Path(sys.argv[1]), sys.argv[2])
