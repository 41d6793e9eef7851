"""Weights that are kept after a stage are those that gave the matrix, and fit the real model."""

from __future__ import annotations

from pathlib import Path

import torch
from comparison import TASKS
from safetensors import safe_open
from safetensors.torch import load_file

from lr_dist import LRDistribution
from lr_dist.methods import Needs
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.evaluate import evaluate
from lr_dist.sequence.keep_stages import KeepStages
from lr_dist.sequence.observers import Observer, SequenceState, TestAfterStages
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.sequence.stage import Stage


def test_the_kept_weights_give_the_scores_of_their_stage_in_the_real_model(tiny_model: str, tmp_path: Path) -> None:
    settings = SequenceSettings(epochs=1, batch_size=16, precision="32-true")
    bench = Bench.prepare(tiny_model, TASKS, settings, limit=48)
    arm = Arm.of(LRDistribution.flat(1e-3))
    modules = []

    class Module(Observer):
        def sequence_started(self, run: SequenceState) -> None:
            modules.append(run.module)

        def stage_ended(self, run: SequenceState, stage: Stage) -> None:
            # Observers are given the live module: after the second stage, the file of the first one is another.
            if stage.index == 1:
                assert not torch.equal(
                    load_file(tmp_path / "kept" / "stage-1.safetensors")["heads.demo-entailment.bias"],
                    run.module.heads["demo-entailment"].bias,
                )

    run = run_sequence(bench, arm, 0, TestAfterStages(), [KeepStages(tmp_path / "kept"), Module()])
    plain = run_sequence(bench, arm, 0, TestAfterStages())
    assert run.matrix == plain.matrix  # whole embeddings change nothing
    for index in range(2):
        path = tmp_path / "kept" / f"stage-{index + 1}.safetensors"
        weights = load_file(path)
        backbone = {n.removeprefix("backbone."): w for n, w in weights.items() if n.startswith("backbone.")}
        bench.backbone.load_state_dict(backbone)  # strict: every weight of the real model, in its shape
        modules[0].load_state_dict(weights)
        view = bench.view(Needs(full_vocabulary=True))
        for task, tokens, score in zip(bench.tasks, view.tokens, run.matrix[index + 1], strict=True):
            assert evaluate(modules[0], task, tokens.validation, view.pad_token_id)[task.primary] == score
        with safe_open(path, "pt") as file:
            assert file.metadata() == {
                "task": TASKS[index],
                "seed": "0",
                "model": bench.model_info["fingerprint"],
            }
