"""What cannot work is refused by a named error, in every process and before a step; each by a real Trainer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy, SingleDeviceXLAStrategy, Strategy, XLAStrategy
from strategies.checks import Outcome, Run
from strategies.runs import BASE, Case
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from lr_dist import LayerwiseLR
from lr_dist._callback.strategies import check_strategy
from lr_dist.errors import UnsupportedStrategyError

DECAY = "decay:lr=4e-3,factor=0.5"


def refused(outcomes: list[Outcome], kind: str, *words: str) -> None:
    assert len(outcomes) == 2
    for outcome in outcomes:
        assert outcome["error"] is not None
        assert outcome["error"]["type"] == kind, outcome["error"]
        assert "LRDistError" in outcome["error"]["kinds"]
        assert all(word in outcome["error"]["message"] for word in words), outcome["error"]["message"]
        assert outcome["rates"] == {}


def test_deepspeed_is_refused_in_setup_with_what_to_do(together: Run) -> None:
    outcomes = together(Case("ds", "deepspeed"))
    refused(outcomes, "UnsupportedStrategyError", "param_groups(self, distribution)", "FSDP")
    assert [outcome["configured"] for outcome in outcomes] == [False, False]


def test_the_zero_redundancy_optimizer_is_refused(together: Run) -> None:
    refused(together(Case("z", "ddp", optimizer="zero")), "UnsupportedOptimizerError", "ZeroRedundancyOptimizer shards")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp1"])
def test_lbfgs_is_refused(strategy: str, together: Run) -> None:
    refused(together(Case("lbfgs", strategy, optimizer="lbfgs")), "UnsupportedOptimizerError", "LBFGS", "one")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_module_without_an_optimizer_is_refused(strategy: str, together: Run) -> None:
    refused(together(Case("none", strategy, optimizer="none")), "UnsupportedOptimizerError", "no optimizer")


def test_a_scheduler_that_is_on_no_list_is_refused_with_the_way_to_allow_it(together: Run) -> None:
    outcomes = together(Case("own", "ddp", "own"))
    refused(outcomes, "UnsupportedSchedulerError", "Halving", "allow_schedulers=(Halving,)")


def test_the_way_to_allow_a_scheduler_works(together: Run) -> None:
    for outcome in together(Case("own", "ddp", "own", allow_own_schedule=True)):
        assert outcome["error"] is None
        for name, rate in tiny.RATES.items():
            expected = [0.0 if name == "layers.0" else rate / 2**step for step in range(12)]
            assert outcome["rates"][name] == pytest.approx(expected, rel=1e-12), name


def test_processes_with_different_distributions_are_refused(together: Run) -> None:
    # DDP would average their gradients and let their weights drift apart.
    outcomes = together(Case("drift", "ddp", distribution="decay:lr=1e-3,factor=0.RANK5"))
    refused(outcomes, "RankMismatchError", "process 0 has ('embeddings', ", "process 1 has ('embeddings', ")


def test_a_refused_run_leaves_the_processes_fit_for_the_next(together: Run) -> None:
    refused(together(Case("none", "ddp", optimizer="none")), "UnsupportedOptimizerError")
    assert [outcome["error"] for outcome in together(Case("next", "ddp"))] == [None, None]


# In one process --------------------------------------------------------------------------------------------


@pytest.fixture
def group_of_one() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_a_module_that_flattens_its_own_parameters_is_refused() -> None:
    class Flat(tiny.Classifier):
        def configure_model(self) -> None:
            self.model = FullyShardedDataParallel(self.model, device_id=torch.device("cpu"))

    with pytest.raises(UnsupportedStrategyError, match=r"use_orig_params=True.*FullyShardedDataParallel\(\.\.\.\)"):
        tiny.fit(Flat(adamw), LayerwiseLR(DECAY))


def adamw(module: nn.Module) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=BASE)


class OwnStrategy(Strategy):
    """A user's strategy for one CPU."""

    root_device = torch.device("cpu")
    is_global_zero = True
    global_rank = local_rank = node_rank = 0
    world_size = 1

    def model_to_device(self) -> None:
        pass

    def reduce(self, tensor: Any, *_: Any, **__: Any) -> Any:
        return tensor

    def all_gather(self, tensor: Any, *_: Any, **__: Any) -> Any:
        return tensor

    def barrier(self, *_: Any) -> None:
        pass

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj


def test_a_strategy_that_was_never_run_is_a_warning() -> None:
    rates = tiny.Recorder()
    with pytest.warns(UserWarning, match=r"not tested under OwnStrategy.*LearningRateMonitor"):
        tiny.fit(tiny.Classifier(adamw), LayerwiseLR(DECAY), rates, strategy=OwnStrategy())
    assert rates.rates["head"] == [4e-3] * 8
    assert rates.rates["layers.2"] == [2e-3] * 8


@pytest.mark.parametrize("kind", [SingleDeviceXLAStrategy, XLAStrategy])
def test_tpus_are_a_warning(kind: type[Strategy]) -> None:
    # Without torch_xla they cannot be run; they are subclasses of strategies that were.
    run = tiny.trainer()
    run._accelerator_connector.strategy = kind.__new__(kind)
    with pytest.warns(UserWarning, match=f"not tested under {kind.__name__}"):
        check_strategy(run)


def test_one_device_is_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    tiny.fit(tiny.Classifier(adamw), LayerwiseLR(DECAY), strategy=SingleDeviceStrategy(torch.device("cpu")))
    assert [str(warning.message) for warning in recwarn if "LayerwiseLR" in str(warning.message)] == []


def test_the_callback_can_be_sent_to_another_process_before_and_after_a_fit() -> None:
    # The launchers spawn and notebook do, with the Trainer that holds it.
    callback = LayerwiseLR(DECAY, verbose=False)
    for _ in range(2):
        for copied in (pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)):
            rates = tiny.Recorder()
            tiny.fit(tiny.Classifier(adamw), copied, rates, max_steps=1)
            assert rates.rates["head"] == [4e-3]
        tiny.fit(tiny.Classifier(adamw), callback, max_steps=1)


def test_configure_model_is_the_users_again_after_a_fit() -> None:
    class Late(tiny.Classifier):
        made = 0

        def configure_model(self) -> None:
            self.made += 1

    module = Late(adamw)
    for times in (1, 2):
        tiny.fit(module, LayerwiseLR(DECAY), max_steps=1)
        assert module.made == times
        assert "configure_model" not in vars(module)
