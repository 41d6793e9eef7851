"""`compare --keep-weights`: the weights after every stage, with the same results and shared stages as without."""

from __future__ import annotations

from pathlib import Path

from comparison import FLAT, Listener, config_of
from safetensors import safe_open

from lr_dist.sequence.compare import compare
from lr_dist.sequence.keep_stages import stage_file, weights_folder

ARMS = (FLAT, f"{FLAT} | flat:lr=1e-4")


def test_weights_of_every_stage_are_kept_and_the_results_are_the_same(tiny_model: str, tmp_path: Path) -> None:
    config = {"distributions": ARMS, "seeds": (0,), "limit": 32, "epochs": 1}
    kept = compare(config_of(tiny_model, **config, keep_weights=True), tmp_path / "kept", listener=Listener())
    listener = Listener()
    plain = compare(config_of(tiny_model, **config), tmp_path / "plain", listener=Listener())
    assert [run["matrix"] for run in kept.runs] == [run["matrix"] for run in plain.runs]
    assert [run["taken_over"] for run in kept.runs] == [[], [0]]
    for run in kept.runs:
        for index in range(2):
            with safe_open(stage_file(weights_folder(tmp_path / "kept", run["identity"]), index), "pt") as file:
                assert file.metadata()["task"] == config_of(tiny_model).tasks[index]
    assert not (tmp_path / "plain" / "weights").exists()
    # The setting is no part of the comparison: it goes on with or without, and says what is missing.
    again = compare(config_of(tiny_model, **config, keep_weights=True), tmp_path / "plain", listener=listener)
    assert [run["matrix"] for run in again.runs] == [run["matrix"] for run in plain.runs]
    assert any("without --keep-weights" in note for note in listener.notes)
