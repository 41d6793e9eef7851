"""The strategies on a GPU with nccl: one process, because two cannot share a GPU under nccl.

What needs two processes runs on the CPU (the other files here).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from strategies.runs import BASE
from torch import distributed

from lr_dist import LayerwiseLR

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none"),
]
DISTRIBUTION = "from_layers:embeddings=1e-5,layers=3e-5/2e-4/5e-4,head=7e-3,freeze=layers.0..layers.0"
STRATEGIES = {
    "single": lambda: "auto",
    "ddp": lambda: "ddp",
    "fsdp1": lambda: FSDPStrategy(use_orig_params=True),
    "fsdp2": lambda: ModelParallelStrategy(1, 1, save_distributed_checkpoint=False),
    "fsdp2-distributed": lambda: ModelParallelStrategy(1, 1, save_distributed_checkpoint=True),
}


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    yield
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


class Module(tiny.Classifier):
    """A classifier, which FSDP2 shards in `configure_model`."""

    def __init__(self, strategy: str, *, fused: bool = False) -> None:
        super().__init__(lambda own: torch.optim.AdamW(own.parameters(), lr=BASE, eps=1e-4, fused=fused))
        if strategy.startswith("fsdp2"):
            self.configure_model = self._shard  # type: ignore[method-assign]

    def _shard(self) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if not isinstance(self.model, FSDPModule):
            for layer in self.model.bert.encoder.layer:
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


class Keeper(L.Callback):
    """The weights in the end, on the CPU."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            self.weights[name.replace("_fsdp_wrapped_module.", "").replace("_orig_mod.", "")] = whole.detach().cpu()


def run(strategy: str, module: Module | None = None, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    rates, kept = tiny.Recorder(), Keeper()
    made: Strategy | str = STRATEGIES[strategy]()  # type: ignore[assignment]
    callbacks = [LayerwiseLR(DISTRIBUTION), rates, kept]
    # Lightning's sampler for several processes shuffles, that of one does not.
    given = {"accelerator": "cuda", "strategy": made, "use_distributed_sampler": False, **options}
    tiny.fit(module or Module(strategy), *callbacks, **given)
    return rates.rates, kept.weights


def assert_close(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert set(ours) == set(expected)
    for name, weight in expected.items():
        assert (ours[name].reshape(weight.shape) - weight).abs().max() < tolerance, name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_has_the_rates_and_the_weights_of_the_cpu(strategy: str) -> None:
    rates, weights = run(strategy)
    expected_rates, expected = run("single", accelerator="cpu")
    assert rates == expected_rates
    assert rates["head"] == [7e-3] * 8
    assert_close(weights, expected, 1e-4)


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp2"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_with_a_fused_optimizer(strategy: str, precision: str) -> None:
    if strategy == "fsdp2" and precision == "16-mixed":
        pytest.skip("Lightning has no gradient scaler for sharded gradients")
    rates, weights = run(strategy, Module(strategy, fused=True), precision=precision)
    assert rates["head"] == [7e-3] * 8
    start = {f"model.{name}": weight for name, weight in tiny.weights(tiny.bert()).items()}
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, start[name]) == ("encoder.layer.0." in name), name


def test_a_compiled_module_is_split_like_the_plain_one() -> None:
    module = Module("single")
    module.model = torch.compile(module.model)
    rates, weights = run("single", module)
    expected_rates, expected = run("single")
    assert rates == expected_rates
    assert_close(weights, expected, 1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_resumes_where_it_was_stopped(strategy: str, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    def fit(ckpt: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
        rates, kept = tiny.Recorder(), Keeper()
        saver = ModelCheckpoint(tmp_path, "at-{step}", every_n_train_steps=4, save_top_k=-1)
        tiny.fit(
            Module(strategy),
            LayerwiseLR(DISTRIBUTION),
            rates,
            kept,
            saver,
            accelerator="cuda",
            strategy=STRATEGIES[strategy](),
            enable_checkpointing=True,
            ckpt=ckpt,
        )
        return rates.rates, kept.weights

    unbroken_rates, unbroken = fit(None)
    rates, weights = fit(tmp_path / "at-step=4.ckpt")
    assert rates == {name: group[4:] for name, group in unbroken_rates.items()}
    # Kernels of a GPU may add in another order.
    assert_close(weights, unbroken, 1e-5)
