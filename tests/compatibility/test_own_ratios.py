"""Groups of one layer with rates of their own, two optimizers that share the layers, and factors that nothing reads."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_trainer import layerwise as hf_layerwise
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist.errors import OwnRatiosWarning, UnreadScaleWarning, UnsupportedOptimizerError

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)
LAYERS = [f"layers.{index}" for index in range(tiny.LAYERS)]

pytestmark = pytest.mark.filterwarnings("error::lr_dist.errors.RatesOffPlanWarning")


def said(kind: type, act: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(warning.message) for warning in caught if warning.category is kind]


def layerwise(distribution: Any = DISTRIBUTION, **options: Any) -> LayerwiseLR:
    return LayerwiseLR(distribution, verbose=False, **options)


def matrices_and_rest(model: Any) -> tuple[list[Any], list[Any]]:
    """Matrices of the transformer's layers, and all else: what Muon's users write."""
    inside = {id(p) for p in model.bert.encoder.parameters() if p.ndim == 2}
    return [p for p in model.parameters() if id(p) in inside], [p for p in model.parameters() if id(p) not in inside]


def rates(run: Any, index: int = 0) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in run.optimizers[index].param_groups}


def with_ratio(optimizer: Any, ratio: float = 16.0, lr: float = 1e-4) -> Any:
    def configure(module: Any) -> Any:
        matrices, rest = matrices_and_rest(module.model)
        return optimizer([{"params": matrices, "lr": ratio * lr}, {"params": rest, "lr": lr}], lr=lr)

    return configure


@pytest.mark.parametrize("ratio", [16.0, 0.1])
def test_an_absolute_distribution_keeps_the_users_ratio_within_a_layer_and_says_so(ratio: float) -> None:
    recorder = tiny.Recorder()

    def act() -> None:
        tiny.fit(tiny.Classifier(with_ratio(torch.optim.AdamW, ratio)), layerwise(), recorder, max_steps=2)

    (text,) = said(OwnRatiosWarning, act)
    assert "0.0001" in text
    assert f"({ratio:g} times)" in text
    for name in LAYERS:
        # The first of the user's groups holds the matrices; the rate of the distribution is that of the default lr.
        assert recorder.rates[name] == pytest.approx([ratio * tiny.RATES[name]] * 2)
        assert recorder.rates[f"{name}/2"] == pytest.approx([tiny.RATES[name]] * 2)
    assert recorder.rates["embeddings"] == [1e-5] * 2
    assert recorder.rates["head"] == [7e-3] * 2


def test_a_relative_distribution_multiplies_them_and_nothing_is_said() -> None:
    runs: list[Any] = []
    relative = DISTRIBUTION.relative_to(1e-4)
    module = tiny.Classifier(with_ratio(torch.optim.AdamW))
    assert said(OwnRatiosWarning, lambda: runs.append(tiny.fit(module, layerwise(relative), max_steps=1))) == []
    assert rates(runs[0])["layers.1"] == pytest.approx(16 * 2e-4)


def test_the_ratio_stays_under_a_schedule_with_a_floor_and_in_a_second_fit() -> None:
    def configure(module: Any) -> Any:
        optimizer = with_ratio(torch.optim.SGD)(module)
        return [optimizer], [{"scheduler": sch.CosineAnnealingLR(optimizer, 6, eta_min=1e-5), "interval": "step"}]

    module, recorder = tiny.Classifier(configure), tiny.Recorder()
    tiny.fit(module, layerwise(), recorder)
    # At its end the floor is a tenth of the rate of A, and for B, as without a distribution, a 160th of its own.
    assert recorder.rates["layers.1/2"][6] == pytest.approx(2e-4 / 10)
    assert recorder.rates["layers.1"][6] == pytest.approx(16 * 2e-4 / 160)
    for name in ("layers.0", "layers.2"):
        factor = tiny.RATES[name] / 2e-4
        assert recorder.rates[name] == pytest.approx([rate * factor for rate in recorder.rates["layers.1"]])


def test_where_only_the_head_has_two_rates_none_exceeds_the_distributions() -> None:
    def configure(module: Any) -> Any:
        classifier = {"params": module.model.classifier.parameters(), "lr": 1e-3}
        return torch.optim.SGD([{"params": module.model.bert.parameters()}, classifier], lr=2e-5)

    runs: list[Any] = []
    (text,) = said(
        OwnRatiosWarning, lambda: runs.append(tiny.fit(tiny.Classifier(configure), layerwise(), max_steps=1))
    )
    # BERT's pooler is of the head here, and of the backbone there.
    assert rates(runs[0]) == {**tiny.RATES, "head": pytest.approx(7e-3 / 50), "head/2": 7e-3}
    assert "within head." in text


def test_rates_of_whole_layers_are_replaced_in_silence() -> None:
    def configure(module: Any) -> Any:
        bert, classifier = module.model.bert, module.model.classifier
        parts = [bert.embeddings, *bert.encoder.layer, torch.nn.ModuleList([bert.pooler, classifier])]
        return torch.optim.SGD([{"params": p.parameters(), "lr": 0.1 * 2**k} for k, p in enumerate(parts)], lr=0.1)

    runs: list[Any] = []
    module = tiny.Classifier(configure)
    assert said(OwnRatiosWarning, lambda: runs.append(tiny.fit(module, layerwise(), max_steps=1))) == []
    assert rates(runs[0]) == tiny.RATES


def test_the_mixin_keeps_the_ratio_and_says_so(tmp_path: Path) -> None:
    model = tiny.bert()
    matrices, rest = matrices_and_rest(model)
    optimizer = torch.optim.AdamW([{"params": rest, "lr": 1e-4}, {"params": matrices, "lr": 16e-4}], lr=1e-4)
    trainer, seen = hf_layerwise(tmp_path, model=model, optimizers=(optimizer, None), max_steps=2)
    (text,) = said(OwnRatiosWarning, trainer.train)
    assert "(16 times)" in text
    assert {g["name"]: g["layer_lr"] for g in optimizer.param_groups if "layers.1" in g["name"]} == pytest.approx(
        {"layers.1": 2e-4, "layers.1/2": 32e-4}
    )
    assert len(seen.seen) == 2


# Two optimizers ------------------------------------------------------------------------------------------


class MuonAndAdamW(tiny.Classifier):
    """torch's Muon takes matrices only, so all else has an AdamW: manual optimization."""

    def __init__(self, lrs: tuple[float, float] = (2e-2, 1e-3)) -> None:
        super().__init__(None)
        self.automatic_optimization = False
        self.lrs = lrs

    def configure_optimizers(self) -> Any:
        matrices, rest = matrices_and_rest(self.model)
        both = [torch.optim.Muon(matrices, lr=self.lrs[0]), torch.optim.AdamW(rest, lr=self.lrs[1])]
        return both, [sch.ExponentialLR(optimizer, 0.5) for optimizer in both]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.model(input_ids=batch[0], labels=batch[1]).loss)
        for optimizer, schedule in zip(self.optimizers(), self.lr_schedulers(), strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


class PerOptimizer(tiny.L.Callback):
    def __init__(self) -> None:
        self.rates: dict[str, dict[str, list[float]]] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        own = self.rates.setdefault(type(optimizer).__name__, {})
        for group in optimizer.param_groups:
            own.setdefault(group["name"], []).append(group["lr"])


@pytest.mark.parametrize(("muon", "ratio"), [(2e-2, 20.0), (1e-3, 1.0)])
def test_both_optimizers_that_share_the_layers_are_split_and_follow_their_schedules(muon: float, ratio: float) -> None:
    module, recorder = MuonAndAdamW((muon, 1e-3)), PerOptimizer()
    found = said(OwnRatiosWarning, lambda: tiny.fit(module, layerwise(), recorder, data=tiny.batches(3)))
    assert len(found) == (ratio != 1)
    factors = [1.0, 0.5, 0.25]
    assert list(recorder.rates["Muon"]) == LAYERS
    for name in LAYERS:
        assert recorder.rates["Muon"][name] == pytest.approx([ratio * tiny.RATES[name] * f for f in factors])
    assert list(recorder.rates["AdamW"]) == list(tiny.RATES)
    for name, rate in tiny.RATES.items():
        assert recorder.rates["AdamW"][name] == pytest.approx([rate * factor for factor in factors])


def test_a_run_with_two_optimizers_is_resumed_exactly(tmp_path: Path) -> None:
    def saved(module: Any, epochs: int, ckpt: Any = None) -> Any:
        options = {"weights_only": True} if ckpt else {}
        return tiny.fit(module, layerwise(), data=tiny.batches(3), max_epochs=epochs, ckpt=ckpt, **options)

    whole, first, second = MuonAndAdamW(), MuonAndAdamW(), MuonAndAdamW()
    saved(whole, 2)
    saved(first, 1).save_checkpoint(tmp_path / "a.ckpt")
    saved(second, 2, tmp_path / "a.ckpt")
    for (name, ours), theirs in zip(second.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_unfreezing_beside_two_optimizers_is_refused() -> None:
    with pytest.raises(UnsupportedOptimizerError, match="2 optimizers hold"):
        tiny.fit(MuonAndAdamW(), layerwise(unfreeze_every_n_steps=1))


# Factors that nothing reads, and counts of steps ---------------------------------------------------------


@pytest.mark.parametrize("key", ["lr_scale", "lr_mult"])
def test_factors_in_the_groups_that_nothing_reads_are_said_once_and_change_no_rate(key: str) -> None:
    def configure(module: Any) -> Any:
        model = module.model
        parts = [{"params": model.bert.parameters(), key: 0.1}, {"params": model.classifier.parameters(), key: 1.0}]
        return torch.optim.SGD(parts, lr=1e-3)

    recorder = tiny.Recorder()
    (text,) = said(UnreadScaleWarning, lambda: tiny.fit(tiny.Classifier(configure), layerwise(), recorder))
    assert f"'{key}': 0.1, 1" in text
    assert "layer_decay" in text
    assert recorder.rates["layers.1"] == [2e-4] * 8


def test_factors_of_one_are_not_said(tmp_path: Path) -> None:
    model = tiny.bert()
    optimizer = torch.optim.SGD([{"params": model.parameters(), "lr_scale": 1.0}], lr=1e-3)
    trainer, _ = hf_layerwise(tmp_path, model=model, optimizers=(optimizer, None), max_steps=1)
    assert said(UnreadScaleWarning, trainer.train) == []


class Counting(torch.optim.Optimizer):
    """Adam without its first moment; counts its steps in the group, in a number and in a tensor."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            group["ticks"] = torch.zeros(())

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            group.setdefault("ticks", torch.zeros(())).add_(1)
            for p in group["params"]:
                if p.grad is not None:
                    square = self.state[p].setdefault("square", torch.zeros_like(p))
                    square.mul_(0.9).addcmul_(p.grad, p.grad, value=0.1)
                    # Corrected for the start at 0; of a first step with another count, 10 times too large or small.
                    root = (square / (1 - 0.9 ** group["step"])).sqrt() + 1e-12
                    p.sub_(group["lr"] * p.grad / root)
        return loss


def test_a_group_that_is_added_starts_its_own_count_of_steps() -> None:
    moved: dict[str, float] = {}

    class Adding(tiny.Classifier):
        def configure_optimizers(self) -> Any:
            self.model.bert.requires_grad_(False)
            return Counting(self.model.classifier.parameters(), lr=1e-3)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.model.bert.encoder.requires_grad_(True)
                self.optimizers().optimizer.add_param_group({"params": list(self.model.bert.encoder.parameters())})
                self.before = tiny.weights(self)

        def on_train_batch_end(self, *_: Any) -> None:
            if self.current_epoch == 1 and not moved:
                for name, p in self.named_parameters():
                    moved[name] = float((p - self.before[name]).abs().max())

    run = tiny.fit(Adding(lambda m: None), layerwise(), max_epochs=2)
    counts = {group["name"]: (group["step"], float(group["ticks"])) for group in run.optimizers[0].param_groups}
    assert counts == {"head": (16, 16.0), **dict.fromkeys(LAYERS, (8, 8.0))}
    # A first step moves each weight by the rate, whatever its gradient.
    assert moved["model.bert.encoder.layer.1.output.dense.weight"] == pytest.approx(2e-4, rel=1e-3)


def test_a_count_in_a_tensor_is_not_shared_by_the_split_groups() -> None:
    run = tiny.fit(tiny.Classifier(lambda m: Counting(m.parameters(), lr=1e-3)), layerwise(), max_steps=4)
    assert [float(group["ticks"]) for group in run.optimizers[0].param_groups] == [4.0] * 5
