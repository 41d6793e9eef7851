"""LayerwiseLR in real Trainers: what it does to optimizers, layers and logs, and what it refuses."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist.errors import (
    InvalidDistributionError,
    OptimizerCoverageError,
    UnplacedParametersError,
    UnsupportedOptimizerError,
    UnsupportedStrategyError,
    UnsupportedTrainerError,
    ZeroRateError,
)

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)


def adamw(module: Any, **options: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), **{"lr": 1e-3, **options})


def layerwise(distribution: Any = DISTRIBUTION, **options: Any) -> LayerwiseLR:
    return LayerwiseLR(distribution, **{"verbose": False, **options})


def groups_after(configure: Any, callback: LayerwiseLR | None = None, **options: Any) -> list[dict[str, Any]]:
    run = tiny.fit(tiny.Classifier(configure), callback or layerwise(), max_steps=1, **options)
    return run.optimizers[0].param_groups


# What the optimizer becomes ------------------------------------------------------------------------------


def test_each_layer_has_its_rate_and_every_other_option_stays() -> None:
    groups = groups_after(lambda m: adamw(m, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.3, amsgrad=True))
    assert {group["name"]: group["lr"] for group in groups} == tiny.RATES
    assert [group["name"] for group in groups] == list(tiny.RATES)
    for group in groups:
        assert group["betas"] == (0.8, 0.95)
        assert (group["eps"], group["weight_decay"], group["amsgrad"]) == (1e-7, 0.3, True)


def test_the_optimizer_and_its_list_of_groups_stay_the_same_objects() -> None:
    kept: list[Any] = []

    def configure(module: Any) -> Any:
        optimizer = adamw(module)
        kept.extend([optimizer, optimizer.param_groups])
        return optimizer

    run = tiny.fit(tiny.Classifier(configure), layerwise(), max_steps=1)
    assert run.optimizers[0] is kept[0]
    assert run.optimizers[0].param_groups is kept[1]
    assert len(kept[1]) == len(tiny.RATES)


def test_every_parameter_is_in_exactly_one_group() -> None:
    module = tiny.Classifier(adamw)
    run = tiny.fit(module, layerwise(), max_steps=1)
    held = [id(parameter) for group in run.optimizers[0].param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in module.parameters())


def test_the_users_halves_with_and_without_weight_decay_are_split_and_named() -> None:
    def configure(module: Any) -> Any:
        decayed = [p for p in module.parameters() if p.ndim > 1]
        rest = [p for p in module.parameters() if p.ndim < 2]
        halves = [{"params": rest, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
        return torch.optim.AdamW(halves, lr=1e-3)

    groups = {group["name"]: group for group in groups_after(configure)}
    assert set(groups) == set(tiny.RATES) | {f"{name}/no_decay" for name in tiny.RATES}
    for name, rate in tiny.RATES.items():
        assert groups[name]["lr"] == groups[f"{name}/no_decay"]["lr"] == rate
        assert (groups[name]["weight_decay"], groups[f"{name}/no_decay"]["weight_decay"]) == (0.2, 0.0)
        assert {p.ndim for p in groups[f"{name}/no_decay"]["params"]} == {1}
    assert [name.split("/")[0] for name in groups] == [name for name in tiny.RATES for _ in range(2)]


def test_further_groups_of_one_layer_get_numbers_and_keep_their_options() -> None:
    def configure(module: Any) -> Any:
        parameters = list(module.parameters())
        parts = [{"params": parameters[i::3], "betas": (0.5 + i / 10, 0.99)} for i in range(3)]
        return torch.optim.AdamW(parts, lr=1e-3, weight_decay=0.0)

    groups = {group["name"]: group for group in groups_after(configure)}
    assert {"layers.0", "layers.0/2", "layers.0/3"} <= set(groups)
    assert [groups[f"layers.0{end}"]["betas"][0] for end in ("", "/2", "/3")] == [0.5, 0.6, 0.7]
    assert {groups[f"layers.0{end}"]["lr"] for end in ("", "/2", "/3")} == {3e-5}


def test_names_of_parameters_are_split_along_with_them() -> None:
    module = tiny.Classifier(lambda m: torch.optim.AdamW(m.named_parameters(), lr=1e-3))
    run = tiny.fit(module, layerwise(), max_steps=1)
    named = dict(module.named_parameters())
    for group in run.optimizers[0].param_groups:
        assert [id(named[name]) for name in group["param_names"]] == [id(p) for p in group["params"]]
    assert run.optimizers[0].param_groups[-1]["param_names"] == [
        "model.bert.pooler.dense.weight",
        "model.bert.pooler.dense.bias",
        "model.classifier.weight",
        "model.classifier.bias",
    ]


def test_rates_in_tensors_stay_tensors_of_their_own() -> None:
    groups = groups_after(lambda m: adamw(m, lr=torch.tensor(1e-3)))
    assert [float(group["lr"]) for group in groups] == pytest.approx(list(tiny.RATES.values()))
    assert all(isinstance(group["lr"], torch.Tensor) for group in groups)
    assert len({group["lr"].data_ptr() for group in groups}) == len(groups)


def test_the_rates_are_used_not_only_shown() -> None:
    class Movement(L.Callback):
        largest = 0.0

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.before = tiny.weights(pl_module)
            self.gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters()}

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            layer = {id(p): g["name"] for g in trainer.optimizers[0].param_groups for p in g["params"]}
            factor = 0.5**trainer.global_step * 2
            for name, p in pl_module.named_parameters():
                step = -tiny.RATES[layer[id(p)]] * factor
                moved = p - self.before[name]
                assert torch.allclose(moved, step * self.gradients[name], rtol=1e-9, atol=1e-15), name
                self.largest = max(self.largest, moved.abs().max().item())
            self.checked = trainer.global_step

    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
        return [optimizer], [{"scheduler": sch.ExponentialLR(optimizer, 0.5), "interval": "step"}]

    movement = Movement()
    tiny.fit(tiny.Classifier(configure).double(), layerwise(), movement, max_steps=4)
    assert movement.checked == 4
    assert movement.largest > 1e-4


def test_a_flat_distribution_at_the_optimizers_rate_changes_nothing() -> None:
    def configure(module: Any) -> Any:
        optimizer = adamw(module)
        return [optimizer], [{"scheduler": sch.CosineAnnealingLR(optimizer, 5, 1e-4), "interval": "step"}]

    plain, layered = tiny.Classifier(configure, dropout=0.1), tiny.Classifier(configure, dropout=0.1)
    tiny.fit(plain)
    tiny.fit(layered, layerwise("flat:lr=1e-3"))
    for (name, theirs), ours in zip(plain.named_parameters(), layered.parameters(), strict=True):
        assert torch.equal(theirs, ours), name


def test_a_relative_distribution_multiplies_the_rate_of_each_of_the_users_groups() -> None:
    def configure(module: Any) -> Any:
        parts = [{"params": module.model.bert.parameters()}, {"params": module.model.classifier.parameters(), "lr": 1}]
        return torch.optim.SGD(parts, lr=1e-2)

    groups = groups_after(configure, layerwise("decay:lr=2,factor=0.5,relative=true"))
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == pytest.approx(
        {
            "embeddings": 1e-2 / 8,
            "layers.0": 1e-2 / 4,
            "layers.1": 1e-2 / 2,
            "layers.2": 1e-2,
            "head": 2e-2,
            "head/2": 2,
        }
    )


def test_overrides_move_parameters_to_another_layer() -> None:
    groups = {g["name"]: g for g in groups_after(adamw, layerwise(overrides={r"pooler": "layers.2"}))}
    assert len(groups["layers.2"]["params"]) == 16 + 2
    assert len(groups["head"]["params"]) == 2


# Freezing ------------------------------------------------------------------------------------------------


def test_layers_with_rate_zero_are_frozen_before_the_optimizer_exists_and_stay_bit_identical() -> None:
    seen: list[bool] = []

    def configure(module: Any) -> Any:
        seen.append(any(p.requires_grad for p in module.model.bert.encoder.layer[1].parameters()))
        return adamw(module, weight_decay=0.5)

    module = tiny.Classifier(configure)
    before = tiny.weights(module)
    run = tiny.fit(module, layerwise(DISTRIBUTION.freeze("embeddings").freeze("layers.1")))
    assert seen == [False]
    for name, parameter in module.named_parameters():
        frozen = "embeddings" in name or "encoder.layer.1." in name
        assert torch.equal(parameter, before[name]) == frozen, name
    rates = {group["name"]: group["lr"] for group in run.optimizers[0].param_groups}
    assert rates == {**tiny.RATES, "embeddings": 0.0, "layers.1": 0.0}


def test_frozen_layers_that_the_user_leaves_out_have_no_group() -> None:
    def configure(module: Any) -> Any:
        return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)

    groups = groups_after(configure, layerwise(DISTRIBUTION.freeze("embeddings", "layers.1")))
    assert [group["name"] for group in groups] == ["layers.2", "head"]


def test_a_model_built_in_configure_model_is_frozen_and_grouped() -> None:
    class Late(tiny.Classifier):
        def __init__(self, configure: Any) -> None:
            super().__init__(configure)
            self.model = None

        def configure_model(self) -> None:
            if self.model is None:
                self.model = tiny.bert()

    module = Late(adamw)
    run = tiny.fit(module, layerwise(DISTRIBUTION.freeze("layers.0")))
    assert [group["lr"] for group in run.optimizers[0].param_groups] == [1e-5, 0.0, 2e-4, 5e-4, 7e-3]
    for name, parameter in module.model.bert.encoder.layer[0].named_parameters():
        assert torch.equal(parameter, tiny.bert().bert.encoder.layer[0].get_parameter(name))


def test_the_table_is_printed_once_with_every_layer(capsys: pytest.CaptureFixture[str]) -> None:
    module, callback = tiny.Classifier(adamw), LayerwiseLR(DISTRIBUTION.freeze("layers.1"))
    tiny.fit(module, callback, max_steps=1)
    printed = capsys.readouterr().out
    for words in (["embeddings", "960", "1e-5"], ["layers.1", "2,224", "frozen"], ["head", "306", "7e-3"]):
        assert any(all(word in line for word in words) for line in printed.splitlines()), (words, printed)
    tiny.fit(module, callback, max_steps=1)
    tiny.fit(module, layerwise(), max_steps=1)
    assert "layers.1" not in capsys.readouterr().out


# What is refused -----------------------------------------------------------------------------------------


def refusal(kind: type[Exception], match: str, configure: Any, callback: LayerwiseLR | None = None) -> None:
    module = tiny.Classifier(configure)
    before = tiny.weights(module)
    with pytest.raises(kind, match=match):
        tiny.fit(module, callback or layerwise())
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())


def test_a_distribution_that_cannot_be_read_is_refused_at_once() -> None:
    with pytest.raises(InvalidDistributionError, match="flatt"):
        LayerwiseLR("flatt:lr=1e-3")


def test_a_module_without_an_optimizer_is_refused() -> None:
    refusal(UnsupportedOptimizerError, "no optimizer", lambda m: None)


def test_lbfgs_is_refused() -> None:
    refusal(UnsupportedOptimizerError, "LBFGS", lambda m: torch.optim.LBFGS(m.parameters()))


def test_the_zero_redundancy_optimizer_is_refused() -> None:
    from torch import distributed
    from torch.distributed.optim import ZeroRedundancyOptimizer

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        refusal(
            UnsupportedOptimizerError,
            "ZeroRedundancyOptimizer shards",
            lambda m: ZeroRedundancyOptimizer(m.parameters(), torch.optim.AdamW, lr=1e-3),
        )
    finally:
        distributed.destroy_process_group()


def test_an_optimizer_that_sets_its_own_rate_is_refused() -> None:
    from transformers.optimization import Adafactor

    refusal(UnsupportedOptimizerError, r"Adafactor .*relative_step=False", lambda m: Adafactor(m.parameters()))


def test_deepspeed_is_refused_in_setup() -> None:
    # DeepSpeed itself is not needed to see its strategy.
    run = tiny.trainer()
    run._accelerator_connector.strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
    with pytest.raises(UnsupportedStrategyError, match="param_groups"):
        layerwise().setup(run, tiny.Classifier(adamw), "fit")


def test_a_trainer_that_is_not_lightnings_is_refused_by_name() -> None:
    class Trainer:
        pass

    with pytest.raises(UnsupportedTrainerError, match=r"Trainer.*import lightning\.pytorch"):
        layerwise().setup(Trainer(), tiny.Classifier(adamw), "fit")  # type: ignore[arg-type]


def test_an_optimizer_that_holds_no_layer_is_refused() -> None:
    refusal(
        OptimizerCoverageError,
        r"48 trainable.*encoder\.layer\.0\.attention\.self\.query\.weight",
        lambda m: adamw(m.model.classifier),
    )


def test_an_optimizer_that_holds_nothing_of_the_transformer_is_refused() -> None:
    refusal(
        OptimizerCoverageError,
        "None of the optimizers",
        lambda m: torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=1e-3),
    )


def test_with_every_layer_frozen_the_head_alone_is_trained() -> None:
    def configure(module: Any) -> Any:
        return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)

    groups = groups_after(configure, layerwise(DISTRIBUTION.freeze("embeddings", "layers.-1")))
    assert [group["name"] for group in groups] == ["head"]


def test_layers_that_no_optimizer_holds_are_refused_by_name() -> None:
    def configure(module: Any) -> Any:
        return torch.optim.AdamW([p for n, p in module.named_parameters() if "layer.1.output" not in n], lr=1e-3)

    refusal(OptimizerCoverageError, r"4 trainable.*bert\.encoder\.layer\.1\.output\.dense\.weight", configure)


def test_a_head_that_no_optimizer_holds_is_a_warning() -> None:
    module = tiny.Classifier(lambda m: adamw(m.model.bert))
    with pytest.warns(UserWarning, match=r"2 trainable.*outside the layers.*classifier\.weight"):
        tiny.fit(module, layerwise())


def test_parameters_from_outside_the_module_are_refused() -> None:
    stranger = nn.Parameter(torch.ones(3, 5))
    refusal(
        OptimizerCoverageError,
        r"without a depth: \(not in the module, shape \(3, 5\)\)",
        lambda m: torch.optim.AdamW([*m.parameters(), stranger], lr=1e-3),
    )


def test_a_parameter_without_a_place_is_refused_and_an_override_places_it() -> None:
    class Extra(tiny.Classifier):
        def __init__(self, configure: Any) -> None:
            super().__init__(configure)
            self.mystery = nn.Parameter(torch.ones(3))

    with pytest.raises(UnplacedParametersError, match="mystery"):
        tiny.fit(Extra(adamw), layerwise())
    run = tiny.fit(Extra(adamw), layerwise(overrides={"mystery": "embeddings"}), max_steps=1)
    assert len(run.optimizers[0].param_groups[0]["params"]) == 5 + 1


def test_a_relative_distribution_on_a_rate_of_zero_is_refused() -> None:
    refusal(
        ZeroRateError,
        "rate above 0",
        lambda m: torch.optim.SGD(m.parameters(), lr=0.0),
        layerwise("flat:lr=1,relative=true"),
    )
