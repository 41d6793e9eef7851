"""torchtune's models: its decoders have their layers under the same names as Llama's, also with its own LoRA.

Skipped where torchtune is not installed (docs/parity.md says how it was run).
"""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lr_dist import LayerwiseLR, param_groups

pytest.importorskip("torchtune")
llama = pytest.importorskip("torchtune.models.llama3_2")
peft = pytest.importorskip("torchtune.modules.peft")

SIZE = {
    "vocab_size": 64,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 32,
    "intermediate_dim": 64,
    "max_seq_len": 32,
}
TEXT = "decay:lr=1e-3,factor=0.5"
RATES = {"embeddings": 1e-3 / 32, **{f"layers.{i}": 1e-3 / 2 ** (4 - i) for i in range(4)}, "head": 1e-3}


def rate_of(model: torch.nn.Module, groups: list) -> dict[str, float]:
    """The rate of every parameter by name."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


def layer_of(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "layers":
        return ".".join(parts[:2])
    return "embeddings" if parts[0] == "tok_embeddings" else "head"


def test_every_parameter_of_a_decoder_is_in_its_layer() -> None:
    model = llama.llama3_2(**SIZE)
    rates = rate_of(model, param_groups(model, TEXT))
    assert set(rates) == {name for name, _ in model.named_parameters()}
    assert all(rate == pytest.approx(RATES[layer_of(name)]) for name, rate in rates.items())


def test_lora_of_torchtune_trains_its_adapters_at_their_layers_rates() -> None:
    size = SIZE | {"lora_rank": 4, "lora_alpha": 8.0}
    model = llama.lora_llama3_2(lora_attn_modules=["q_proj", "v_proj"], apply_lora_to_mlp=False, **size)
    peft.set_trainable_params(model, peft.get_adapter_params(model))
    rates = rate_of(model, param_groups(model, TEXT))
    assert rates
    assert all("lora" in name and rate == pytest.approx(RATES[layer_of(name)]) for name, rate in rates.items())


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = llama.llama3_2(**SIZE)

    def training_step(self, batch, _):
        return cross_entropy(self.model(batch[:, :-1]).transpose(1, 2), batch[:, 1:])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def test_a_decoder_in_a_trainer_learns_with_the_callback_and_frozen_layers_stay() -> None:
    L.seed_everything(0)
    module = Module()
    tokens = torch.arange(12).repeat(16, 1) + torch.randint(0, 40, (16, 1))  # the next token is the last one plus 1
    before = {name: p.detach().clone() for name, p in module.model.named_parameters()}
    trainer = L.Trainer(
        max_epochs=30,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LayerwiseLR("flat:lr=3e-3,freeze=embeddings..layers.0")],
    )
    trainer.fit(module, DataLoader(tokens, batch_size=8))
    moved = {name for name, p in module.model.named_parameters() if not torch.equal(p, before[name])}
    assert {layer_of(name) for name in moved} == {"layers.1", "layers.2", "layers.3", "head"}
    with torch.no_grad():
        logits = module.model(tokens[:, :-1])
    assert cross_entropy(logits.transpose(1, 2), tokens[:, 1:]) < 2.0  # ln 64 is 4.2
