"""What docs/parity.md says of other libraries, where it can be run without them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import optuna
import pytest
import tiny
import torch
import yaml
from optuna_integration import PyTorchLightningPruningCallback
from test_layers import TimmViT
from test_readme import blocks

from lr_dist import LayerwiseLR, LRDistribution, assign_layers, param_groups
from lr_dist.methods import METHODS
from lr_dist.presets import resolve_plan
from lr_dist.search import Space, optimize

PAGE = "docs/parity.md"
ROOT = Path(__file__).parents[2]


def section(title: str) -> str:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


class Waiting(L.Callback):
    """Which groups train in each step: their weights have a gradient when the optimizer takes it."""

    def __init__(self) -> None:
        self.training: list[set[str]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        groups = optimizer.param_groups
        self.training.append({g["name"] for g in groups if any(p.grad is not None for p in g["params"])})


def test_a_generated_schedule_starts_one_more_layer_in_each_part() -> None:
    (text,) = re.findall(r'LayerwiseLR\("(.* @ gradual)"\)', section("finetuning-scheduler"))
    seen = Waiting()
    module = tiny.Classifier(lambda own: torch.optim.SGD(own.parameters(), lr=1e-4))
    tiny.fit(module, LayerwiseLR(text, verbose=False), seen, data=tiny.batches(10))
    order = ["head", "layers.2", "layers.1", "layers.0", "embeddings"]
    assert seen.training == [set(order[: 1 + step // 2]) for step in range(10)]


def test_the_phases_in_the_file_are_those_of_the_text(tmp_path: Path) -> None:
    (text,) = re.findall(r'LayerwiseLR\("(.* @ 20% > .*)"\)', section("finetuning-scheduler"))
    (file,) = re.findall(r"```yaml\n(stages.*?)```", section("finetuning-scheduler"), flags=re.DOTALL)
    (tmp_path / "schedule.yaml").write_text(file)
    assert resolve_plan(str(tmp_path / "schedule.yaml")) == resolve_plan(text)
    seen = Waiting()
    module = tiny.Classifier(lambda own: torch.optim.SGD(own.parameters(), lr=1e-4))
    callback = LayerwiseLR(str(tmp_path / "schedule.yaml"), verbose=False)
    tiny.fit(module, callback, seen, data=tiny.batches(10))
    assert seen.training[:2] == [{"head"}] * 2
    assert all(len(groups) == 5 for groups in seen.training[2:])


def timm_scale(name: str, depth: int, decay: float) -> float:
    """timm 1.0.31: decay ** (last - i), i being 0 before the blocks, k + 1 in block k, and last for the head; a final
    norm counts to the last block."""
    if name.startswith("blocks."):
        layer = int(name.split(".")[1]) + 1
    elif name.startswith("norm."):
        layer = depth
    else:
        layer = depth + 1 if name.startswith("head.") else 0
    return decay ** (depth + 1 - layer)


def test_the_rates_are_those_of_timms_layer_decay_but_for_the_final_norm() -> None:
    model = TimmViT(depth=4)
    depth = len(model.blocks)

    def different(**options: Any) -> set[str]:
        groups = param_groups(model, "decay:lr=1e-3,factor=0.75", weight_decay=0.05, **options)
        rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        expected = {name: 1e-3 * timm_scale(name, depth, 0.75) for name, _ in model.named_parameters()}
        return {n for n, p in model.named_parameters() if rates[id(p)] != pytest.approx(expected[n], rel=1e-9)}

    assert different() == {"norm.weight", "norm.bias"}
    (override,) = re.findall(r"overrides=(\{.*?\})\)", (ROOT / "docs" / "timm.md").read_text())
    assert different(overrides=eval(override)) == set()


def test_torchs_schedulers_ignore_lr_scale() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    groups = [{"params": [p], "lr_scale": 0.5**k} for k, p in enumerate(parameters)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    optimizer.step()
    schedule.step()
    assert len({group["lr"] for group in optimizer.param_groups}) == 1
    # The optimizer ignores it too: equal gradients, equal steps.
    for parameter in parameters:
        parameter.grad = torch.ones(2)
    optimizer.step()
    assert all(torch.equal(parameters[0], other) for other in parameters[1:])


def test_what_axolotl_groups_by_name_is_a_range_of_depth() -> None:
    """Its `embedding_lr` and `lr_groups` for the top layers, in our text; here norms and biases have the rate too."""
    (config,) = re.findall(r"```yaml\n(learning_rate.*?)```", section("torchtune and axolotl"), flags=re.DOTALL)
    (text,) = re.findall(r'layerwise_lr="([^"]+)"', section("torchtune and axolotl"))
    written = yaml.safe_load(config)
    rates = LRDistribution.parse(text).rates(32)
    assert rates["embeddings"] == float(written["embedding_lr"])
    (group,) = written["lr_groups"]
    for layer, rate in rates.items():
        if layer.startswith("layers."):
            inside = layer in group["modules"]
            assert rate == float(group["lr"] if inside else written["learning_rate"])
    # Substrings of names, as axolotl compares them.
    assert "layers.3" in "model.layers.30.mlp.up_proj.weight"
    model = tiny.bert()
    top = assign_layers(model).groups["layers.2"]
    by_id = {id(p): g["lr"] for g in param_groups(model, text, weight_decay=0.1) for p in g["params"]}
    parameters = dict(model.named_parameters())
    assert {by_id[id(parameters[name])] for name in top} == {1e-4}
    assert any("LayerNorm" in name for name in top)


def test_the_methods_that_stand_beside_avalanches_exist() -> None:
    cells = [line.split("|")[2] for line in section("Avalanche").splitlines() if line.startswith("| `")]
    ours = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert len(ours) == 9
    assert ours <= {method.__name__ for method in METHODS.values()}


def test_optunas_pruning_callback_works_beside_the_callback(tmp_path: Path) -> None:
    class Module(tiny.Classifier):
        def __init__(self) -> None:
            super().__init__(lambda own: torch.optim.AdamW(own.parameters(), lr=1e-4))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_acc", (self.model(input_ids=batch[0]).logits.argmax(-1) == batch[1]).float().mean())

    (text,) = [block for block in blocks(PAGE, "python") if "PyTorchLightningPruningCallback" in block]
    text = text.replace("sqlite:///study.db", f"sqlite:///{tmp_path}/study.db").replace("trials=30", "trials=3")
    text = text.replace("trainer.fit(Module(), data)", "trainer.fit(Module(), data, data)")
    text = text.replace("max_epochs=3", "max_epochs=2, accelerator='cpu', logger=False, enable_checkpointing=False")
    names: dict[str, Any] = {
        **{"__name__": "__main__", "L": L, "LayerwiseLR": LayerwiseLR, "Space": Space, "optimize": optimize},
        **{"PyTorchLightningPruningCallback": PyTorchLightningPruningCallback},
        **{"Module": Module, "data": tiny.batches(2)},
    }
    exec(compile(text, PAGE, "exec"), names)
    trials = names["study"].trials
    assert len(trials) == 3
    assert all(trial.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED) for trial in trials)
    assert trials[0].intermediate_values


def test_every_library_of_the_table_has_a_section_with_code() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[[^\]]+\]\(#([\w-]+)\) ([\d., ]+) \|", text, flags=re.MULTILINE)
    assert len(rows) == 5
    for title in ("finetuning-scheduler", "timm's layer decay", "torchtune and axolotl", "Avalanche"):
        assert "```python" in section(title)
    assert importlib.util.find_spec("lr_dist.search")
