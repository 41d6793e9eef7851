"""EK-FAC factors of a stage, fitted by kronfluence, kept on disk and used again.

EK-FAC (George et al., arXiv 1806.03884; Grosse et al., arXiv 2308.03296) approximates the Gauss-Newton matrix of each
linear layer by Q diag(Lambda) Q', where Q is the Kronecker product of the eigenvectors of the layer's inputs and of its
output gradients, and Lambda holds the mean squared gradients in that basis. Layers are independent of each other.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lr_dist.checks import check_finite, check_whole
from lr_dist.errors import InfluenceError, SingularCurvatureError
from lr_dist.extras import require_libraries
from lr_dist.retention.influence.labels import Labels, check_labels
from lr_dist.retention.influence.model_stage import ModelStage
from lr_dist.runs.atomic import write_json

_NAME = "factors"
# A fit that is stopped goes on after the last finished part.
_PARTS = 4
# 2: the curvature of masked tokens is that of their mean loss.
_FORMAT = 2


@dataclass(frozen=True)
class LayerFactors:
    """Of one layer.

    Attributes:
        inputs: eigenvectors of the inputs' second moments [inputs (+ 1), same].
        outputs: eigenvectors of the output gradients' second moments [outputs, same].
        values: Lambda [outputs, inputs (+ 1)].
    """

    inputs: Tensor
    outputs: Tensor
    values: Tensor


@dataclass(frozen=True)
class Factors:
    """Of one stage.

    Attributes:
        layers: path of a layer -> its factors.
        about: labels, seed, number of rows, layers that were left out and why, and versions; plain data.
    """

    layers: Mapping[str, LayerFactors]
    about: Mapping[str, Any]

    def relative_damping(self, share: float = 0.1) -> dict[str, float]:
        """For each layer `share` times its mean eigenvalue."""
        check_finite("damping", share, error=InfluenceError)
        return {name: share * float(each.values.mean()) for name, each in self.layers.items()}

    def constant_damping(self, value: float) -> dict[str, float]:
        """The same number for each layer."""
        check_finite("damping", value, error=InfluenceError)
        return dict.fromkeys(self.layers, float(value))

    def mean_value(self) -> float:
        """Mean eigenvalue over all weights of all layers."""
        total = sum(float(each.values.double().sum()) for each in self.layers.values())
        return total / sum(each.values.numel() for each in self.layers.values())


class InverseCurvature:
    """(EK-FAC + damping)^-1 of each layer. Nothing that it is applied to changes it.

    Args:
        factors: of a stage.
        damping: layer -> number that is added to its eigenvalues.

    Raises:
        SingularCurvatureError: a layer has an eigenvalue of 0 and no damping.
    """

    def __init__(self, factors: Factors, damping: Mapping[str, float]) -> None:
        self.factors = factors
        self.damping = dict(damping)
        for name, each in factors.layers.items():
            lowest, highest = float(each.values.min()) + self.damping[name], float(each.values.max())
            if not lowest > torch.finfo(each.values.dtype).eps * highest:
                raise SingularCurvatureError(
                    f"The curvature of {name} has an eigenvalue of {lowest:.3g} (largest: {highest:.3g}) with a "
                    f"damping of {self.damping[name]:.3g}, so it cannot be inverted. Raise the damping, or fit the "
                    "factors on more examples."
                )

    def apply(self, name: str, gradients: Tensor) -> Tensor:
        """Multiply gradients [rows, outputs, inputs (+ 1)] of a layer with its inverse curvature."""
        each = self.factors.layers[name]
        turned = each.outputs.T @ gradients @ each.inputs
        return each.outputs @ (turned / (each.values + self.damping[name])) @ each.inputs.T


def fit_factors(
    stage: ModelStage, folder: str | Path, *, labels: Labels = "sampled", seed: int = 0, mixed: bool = False
) -> Factors:
    """Fit the factors of a stage, or read them if they are in the folder.

    A fit that was stopped goes on where it was, and gives the same factors: the labels are drawn from numbers that
    belong to the rows.

    Args:
        stage: model and rows; all rows are used.
        folder: each stage, kind of labels and seed gets a folder in it.
        labels: sampled, or expected (a pass for each label; only for few classes, or regression).
        seed: of the sampled labels.
        mixed: compute the passes in bf16 autocast.

    Raises:
        MissingExtraError: kronfluence is not installed (extra `influence`).
        InfluenceError: labels that are neither, or expected ones of masked tokens.
    """
    check_labels(labels)
    check_whole("seed", seed, 0, error=InfluenceError)
    require_libraries("influence", "kronfluence")
    several = stage.objective.labels_of(stage.model, next(stage.batches())) if labels == "expected" else 1
    about = {
        "format": _FORMAT,
        "stage": stage.fingerprint(),
        "labels": labels,
        "seed": seed if labels == "sampled" else None,
        "precision": "bf16-mixed" if mixed else "32-true" if stage.dtype == torch.float32 else "64-true",
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    place = Path(folder).expanduser() / key
    about |= {"rows": len(stage.rows), "layers": list(stage.layers), "left_out": dict(stage.excluded)}
    fitted_now = not (place / "about.json").exists()
    if fitted_now:
        try:
            _fit(stage, place, labels, several, seed, mixed)
        # Of a file that was cut when an earlier fit was killed.
        except _damage():
            shutil.rmtree(place)
            _fit(stage, place, labels, several, seed, mixed)
        write_json(place / "about.json", about)
    damage: tuple[type[Exception], ...] = (*_damage(), OSError, KeyError)
    try:
        return Factors(_read(stage, place, several), about)
    except damage:
        if fitted_now:  # not a damaged file: fitting again would not help
            raise
        shutil.rmtree(place)
        return fit_factors(stage, folder, labels=labels, seed=seed, mixed=mixed)


def _damage() -> tuple[type[Exception], ...]:
    from safetensors import SafetensorError

    return (SafetensorError, json.JSONDecodeError)


def _fit(stage: ModelStage, place: Path, labels: Labels, several: int, seed: int, mixed: bool) -> None:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.utils.dataset import DataLoaderKwargs

    rows = _Rows(stage, several, seed)
    dtype = stage.dtype
    parts = _PARTS if len(rows) >= 4 * _PARTS * stage.batch_size else 1
    arguments = FactorArguments(
        strategy="ekfac",
        amp_dtype=torch.bfloat16 if mixed else None,
        has_shared_parameters=stage.shared_calls,
        covariance_max_examples=None,
        lambda_max_examples=None,
        covariance_data_partitions=parts,
        lambda_data_partitions=parts,
        activation_covariance_dtype=dtype,
        gradient_covariance_dtype=dtype,
        per_sample_gradient_dtype=dtype,
        lambda_dtype=dtype,
    )
    task = _task(stage, labels)
    device = next(stage.model.parameters()).device
    analyzer = Analyzer(
        place.name,
        prepare_model(copy.deepcopy(stage.model), task),
        task,
        cpu=device.type == "cpu",
        log_level=logging.ERROR,
        disable_tqdm=True,
        output_dir=str(place.parent),
    )
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=rows.collate))
    common = {"factors_name": _NAME, "factor_args": arguments}
    data = {"dataset": rows, "per_device_batch_size": stage.batch_size}
    # kronfluence collects garbage at every step, which takes long where a program has many objects: they are set aside.
    gc.collect()
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*GradScaler.*", FutureWarning)
            analyzer.fit_covariance_matrices(**common, **data)
            analyzer.perform_eigendecomposition(**common)
            analyzer.fit_lambda_matrices(**common, **data)
    finally:
        gc.unfreeze()
    for path in place.rglob("*_data_partition*.safetensors"):
        path.unlink()


def _read(stage: ModelStage, place: Path, several: int) -> dict[str, LayerFactors]:
    from kronfluence.factor.eigen import load_eigendecomposition, load_lambda_matrices

    folder = place / f"factors_{_NAME}"
    eigen, curved = load_eigendecomposition(output_dir=folder), load_lambda_matrices(output_dir=folder)
    device = next(stage.model.parameters()).device
    return {
        name: LayerFactors(
            eigen["activation_eigenvectors"][name].to(device),
            eigen["gradient_eigenvectors"][name].to(device),
            # Summed over rows; with expected labels each example has a row for each label.
            (curved["lambda_matrix"][name] / curved["num_lambda_processed"][name] * several).to(device),
        )
        for name in stage.layers
    }


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """A stage's rows, once for each label, with the numbers that determine their sampled labels."""

    def __init__(self, stage: ModelStage, several: int, seed: int) -> None:
        self._stage, self._several, self._seed = stage, several, seed

    def __len__(self) -> int:
        return len(self._stage.rows) * self._several

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, number = divmod(index, self._several)
        return {"row": self._stage.rows[row], "number": number, "index": row}

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self._stage.collate([item["row"] for item in items]))
        labels = batch["labels"]
        uniform = torch.full(labels.shape, 0.5, dtype=torch.float64)
        for place, item in enumerate(items):
            draws = np.random.default_rng([self._seed, item["index"]])
            uniform[place] = torch.from_numpy(np.asarray(draws.random(labels.shape[1:])))
        return {**batch, "uniform": uniform, "number": torch.tensor([item["number"] for item in items])}


def _task(stage: ModelStage, labels: Labels) -> Any:
    from kronfluence.task import Task

    objective = stage.objective

    class _StageTask(Task):
        """The stage as kronfluence asks about it."""

        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            inputs = {name: value for name, value in batch.items() if name not in ("uniform", "number")}
            outputs = objective.outputs(model, inputs)
            if outputs.dtype == torch.bfloat16:
                outputs = outputs.float()
            if labels == "sampled":
                return objective.sampled_loss(outputs, batch["labels"], batch["uniform"])
            return _each_number(objective.expected_loss, outputs, batch["number"])

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            raise NotImplementedError  # only factors are fitted here

        def get_influence_tracked_modules(self) -> list[str]:
            return list(stage.layers)

        def get_attention_mask(self, batch: Any) -> Any:
            mask = batch.get("attention_mask")
            return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    return _StageTask()


def _each_number(loss: Callable[[Tensor, int], Tensor], outputs: Tensor, numbers: Tensor) -> Tensor:
    """The losses of rows with different label numbers."""
    parts = [loss(outputs[numbers == number], int(number)) for number in numbers.unique()]
    return torch.stack(parts).sum()
