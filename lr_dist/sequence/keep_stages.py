"""`KeepStages`: an observer that keeps the weights after every stage."""

from __future__ import annotations

from pathlib import Path

from lr_dist.methods import Needs
from lr_dist.runs.atomic import write_bytes
from lr_dist.sequence.observers import Observer, SequenceState
from lr_dist.sequence.stage import Stage


class KeepStages(Observer):
    """Writes `stage-1.safetensors`, `stage-2.safetensors`, ... into a folder.

    Each file holds all weights, under the names of `SequenceClassifier` (`backbone.*`, `heads.TASK.*`); those of the
    backbone fit the pre-trained model, because the word embeddings are kept whole. The file's metadata names the task,
    the seed and the fingerprint of the pre-trained weights.

    Args:
        folder: made if needed; files of an earlier run in it are replaced.

    Raises:
        UnwritableFileError: when a stage ends, a file that cannot be written.
    """

    needs = Needs(full_vocabulary=True)
    needs_training = False

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, stage: Stage) -> Path:
        """The file of a stage."""
        return stage_file(self.folder, stage.index)

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        from safetensors.torch import save

        # A clone each: safetensors refuses tensors that share memory, as tied weights do.
        weights = {name: value.detach().cpu().clone() for name, value in run.module.state_dict().items()}
        about = {"task": stage.task.name, "seed": str(run.seed), "model": run.bench.model_info.get("fingerprint", "")}
        write_bytes(self.path(stage), save(weights, about))


def stage_file(folder: Path, index: int) -> Path:
    """The file with the weights after stage `index` (from 0)."""
    return folder / f"stage-{index + 1}.safetensors"


def weights_folder(output: Path, identity: str) -> Path:
    """Where a comparison in `output` keeps the weights of the run with this identity."""
    return output / "weights" / identity[:32]
