"""Kinds of models from public reports: flat lists of sublayers, blocks inside a stage, poolings, towers."""

from __future__ import annotations

import ast
import re
from typing import Any

import lightning as L
import pytest
import torch
import transformers as hf
from torch import nn

from lr_dist import LayerwiseLR
from lr_dist.cli import main
from lr_dist.errors import (
    InvalidGroupPrefixError,
    InvalidOverrideError,
    InvalidScheduleError,
    InvalidStacksError,
    LayersNotFoundError,
    LRDistError,
    UnplacedParametersError,
)
from lr_dist.groups import param_groups
from lr_dist.layers import assign_layers
from lr_dist.names import layer_of

SIZE = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_qkv, self.to_out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.to_qkv(x).chunk(3, -1)
        return self.to_out(torch.softmax(q @ k.mT, -1) @ v)


def feed_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), feed_forward()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


# Sublayers in one flat list ------------------------------------------------------------------------------


class Flat(nn.Module):
    """Embedding, a flat list of sublayers, a final norm and a head."""

    def __init__(self, entries: list[nn.Module]) -> None:
        super().__init__()
        self.emb, self.layers = nn.Embedding(20, 8), nn.ModuleList(entries)
        self.last, self.out = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.emb(ids)
        for layer in self.layers:
            x = layer(x)
        return self.out(self.last(x))


class Unpacked(Flat):
    """Each entry a ModuleList of norm and block, the lists zipped through a tuple, as x-transformers does."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, variables = self.emb(ids), (self.layers, range(len(self.layers)))
        for (norm, block), _ in zip(*tuple(tuple(v[i] for i in range(len(self.layers))) for v in variables)):  # noqa: B905
            x = x + block(norm(x))
        return self.out(self.last(x))


def entry(block: nn.Module) -> nn.Module:
    return nn.ModuleList([nn.LayerNorm(8), block])


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (Flat([m for _ in range(3) for m in (Attention(), feed_forward())]), [0, 0, 1, 1, 2, 2]),
        (Unpacked([entry(m) for _ in range(3) for m in (Attention(), feed_forward())]), [0, 0, 1, 1, 2, 2]),
        (Flat([m for _ in range(2) for m in (nn.LayerNorm(8), Attention(), feed_forward())]), [0, 0, 0, 1, 1, 1]),
        (Flat([m for _ in range(2) for m in (feed_forward(), Attention(), feed_forward())]), [0, 0, 0, 1, 1, 1]),
        # Without a rhythm, each sublayer is a layer: depth is relative.
        (Flat([Attention(), Attention(), feed_forward(), Attention(), feed_forward()]), [0, 1, 2, 3, 4]),
    ],
    ids=["pairs", "unpacked", "with norms", "macaron", "sandwich"],
)
def test_sublayers_in_a_flat_list_are_taken_together(model: nn.Module, layers: list[int]) -> None:
    group_of = assign_layers(model).group_of
    assert {name.split(".")[1]: group for name, group in group_of.items() if name.startswith("layers.")} == {
        str(k): f"layers.{layer}" for k, layer in enumerate(layers)
    }
    assert group_of["emb.weight"] == "embeddings"
    assert group_of["last.weight"] == group_of["out.weight"] == "head"


def test_a_list_with_the_embedding_and_the_head_in_it_is_no_list_of_sublayers() -> None:
    with pytest.raises(LayersNotFoundError, match="no stack"):
        assign_layers(nn.Sequential(nn.Embedding(20, 8), Attention(), feed_forward(), Attention(), nn.Linear(8, 2)))


# Modules that run their children themselves --------------------------------------------------------------


class InTurn(nn.Sequential):
    def forward(self, x: Any, **options: Any) -> Any:
        for name, module in self.named_children():
            x = module(x, **options.get(name, {}))
        return x


class ByIndex(nn.ModuleList):
    def forward(self, x: Any) -> Any:
        for k in range(len(self)):
            x = self[k](x)
        return x


class BySuper(nn.Sequential):
    def forward(self, x: Any, plain: bool = True) -> Any:
        return super().forward(x) if plain else x


class Together(nn.ModuleList):
    def forward(self, x: Any) -> Any:
        return sum(module(x) for module in self)


def test_modules_behind_a_pooling_are_the_head_however_the_list_runs_them() -> None:
    for kind in (InTurn, BySuper, lambda *modules: ByIndex(modules)):
        model = kind(
            nn.Embedding(20, 8), nn.Sequential(Block(), Block()), nn.Identity(), nn.Linear(8, 4), nn.LayerNorm(4)
        )
        groups = assign_layers(model).groups
        assert groups["embeddings"] == ("0.weight",)
        assert groups["head"] == ("3.weight", "3.bias", "4.weight", "4.bias")


def test_layers_in_a_list_with_a_forward_of_its_own_are_found_and_parallel_ones_are_not() -> None:
    assert assign_layers(nn.ModuleDict({"a": ByIndex([Block(), Block(), Block()])})).num_layers == 3
    with pytest.raises(LayersNotFoundError):
        assign_layers(nn.Sequential(nn.Linear(8, 8), Together([Block(), Block(), Block()])))


# Blocks inside a stage -----------------------------------------------------------------------------------


class Staged(nn.Module):
    """Twins: a position block after the first layer of every stage."""

    def __init__(self, test: str) -> None:
        super().__init__()
        self.embeds = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.blocks = nn.ModuleList([nn.ModuleList([Block(), Block(), Block()]) for _ in range(2)])
        self.pos = nn.ModuleList([nn.Conv1d(8, 8, 1) for _ in range(2)])
        self.norm, self.test = nn.LayerNorm(8), test


class StagedFirst(Staged):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for embed, blocks, pos in zip(self.embeds, self.blocks, self.pos, strict=True):
            x = embed(x)
            for k, block in enumerate(blocks):
                x = block(x)
                if k == 1 and self.test:
                    x = pos(x)
        return self.norm(x)


class StagedSomewhere(Staged):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for embed, blocks, pos in zip(self.embeds, self.blocks, self.pos, strict=True):
            x = embed(x)
            for k, block in enumerate(blocks):
                x = block(x)
                if k % 2:
                    x = pos(x)
        return self.norm(x)


class StagedBehind(Staged):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for embed, blocks, pos in zip(self.embeds, self.blocks, self.pos, strict=True):
            x = embed(x)
            for block in blocks:
                x = block(x)
            x = pos(x)
        return self.norm(x)


def test_a_block_inside_a_stage_is_in_the_layer_beside_which_it_is_called() -> None:
    group_of = assign_layers(StagedFirst("x")).group_of
    assert [group_of[f"pos.{k}.weight"] for k in range(2)] == ["layers.1", "layers.4"]
    assert [group_of[f"embeds.{k}.weight"] for k in range(2)] == ["embeddings", "layers.2"]


def test_a_block_behind_a_stage_is_in_its_last_layer() -> None:
    group_of = assign_layers(StagedBehind("x")).group_of
    assert [group_of[f"pos.{k}.weight"] for k in range(2)] == ["layers.2", "head"]


def test_a_block_that_is_called_beside_unknown_layers_of_a_stage_is_in_doubt() -> None:
    with pytest.raises(UnplacedParametersError, match=r"pos\.0\.weight") as caught:
        assign_layers(StagedSomewhere("x"))
    assert "overrides={" not in str(caught.value)


# The source of a parameter -------------------------------------------------------------------------------


class Tower(nn.Module):
    """Positions behind view, expand, casts and slices; a scale behind exp; a dtype asked of the layers."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])

        def compute_type(self) -> torch.dtype:
            return self.blocks[0].attn.to_out.weight.dtype

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    def __init__(self) -> None:
        super().__init__()
        self.words, self.run = nn.Embedding(20, 8), self.Layers()
        for name in ("a", "b", "c", "d", "e", "f"):
            self.register_parameter(name, nn.Parameter(torch.zeros(1, 5, 8)))
        self.s, self.t, self.u = (nn.Parameter(torch.zeros(1)) for _ in range(3))
        self.mix = nn.Parameter(torch.zeros(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        kind = self.run.compute_type()
        x = self.words(ids).to(kind)
        x = x + self.a.view(1, -1, 8)[:, : x.size(1)].to(kind) + self.b.expand(len(x), -1, -1).type_as(x)
        x = x + self.f * torch.ones(1, dtype=kind)
        x = torch.cat([self.c.repeat(x.shape[0], 1, 1), x, self.d.unsqueeze(0).squeeze(0)], 1)
        x = x + nn.functional.interpolate(self.e.permute(0, 2, 1), size=x.shape[1]).mT
        y = self.run(x)
        layers = [x, y]
        y = sum(weight * layer for weight, layer in zip(torch.softmax(self.mix, 0), layers, strict=True))
        return y * self.s.exp() * torch.exp(self.t).to(kind) + self.u.clamp(0, 1).view(1, 1, 1) * y


def test_a_parameter_is_followed_through_methods_and_functions() -> None:
    group_of = assign_layers(Tower()).group_of
    assert {name: group_of[name] for name in "abcdef"} == dict.fromkeys("abcdef", "embeddings")
    assert {name: group_of[name] for name in "stu"} == dict.fromkeys("stu", "head")
    assert group_of["words.weight"] == "embeddings"


class Mixed(nn.Module):
    """Weighted layer pooling: learnable weights over the outputs of all layers."""

    def __init__(self, form: int) -> None:
        super().__init__()
        config = hf.BertConfig(vocab_size=50, num_hidden_layers=3, max_position_embeddings=20, **SIZE)
        self.bert, self.form = hf.BertModel(config, add_pooling_layer=False), form
        self.layer_weights, self.gamma = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(1))
        self.scalars = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(4)])


class Stacked(Mixed):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        every = torch.stack(self.bert(ids, output_hidden_states=True).hidden_states, 0)
        weights = self.layer_weights.view(-1, 1, 1, 1).expand(every.size())
        scalars = torch.cat([1 * scalar for scalar in self.scalars])
        return self.gamma * ((weights * every).sum(0) / self.layer_weights.sum()) + scalars.sum() * every[0]


def test_learnable_weights_over_the_layers_outputs_are_the_head() -> None:
    group_of = assign_layers(Stacked(0)).group_of
    assert {name: group_of[name] for name in ("layer_weights", "gamma", "scalars.0", "scalars.3")} == {
        "layer_weights": "head", "gamma": "head", "scalars.0": "head", "scalars.3": "head",
    }  # fmt: skip


# Advice --------------------------------------------------------------------------------------------------


def advised(error: LRDistError, what: str) -> Any:
    found = re.search(what + r"=(\{.*?\}|\(.*?\))", str(error), re.S)
    return ast.literal_eval(found[1]) if found else None


def llava() -> nn.Module:
    vision = hf.CLIPVisionConfig(num_hidden_layers=2, image_size=32, patch_size=8, **SIZE)
    text = hf.LlamaConfig(vocab_size=50, num_hidden_layers=3, num_key_value_heads=2, **SIZE)
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=49)
    )


def clip() -> nn.Module:
    text = {"vocab_size": 50, "num_hidden_layers": 3, "bos_token_id": 1, "eos_token_id": 2, **SIZE}
    vision = {"num_hidden_layers": 2, "image_size": 8, "patch_size": 4, **SIZE}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def test_the_override_for_a_model_that_sees_keeps_the_language_model() -> None:
    model = llava()
    with pytest.raises(LayersNotFoundError, match="2 stacks") as caught:
        assign_layers(model)
    overrides = advised(caught.value, "overrides")
    assert overrides == {r"^model\.vision_tower\.": "embeddings"}
    group_of = assign_layers(model, overrides).group_of
    assert group_of["model.language_model.layers.2.mlp.up_proj.weight"] == "layers.2"
    assert group_of["model.multi_modal_projector.linear_1.weight"] == "embeddings"
    towers = advised(caught.value, "stacks")
    assert assign_layers(model, {"multi_modal": f"{towers[0]}/head"}, towers).towers == {
        "model.vision_tower": 2, "model.language_model": 3,
    }  # fmt: skip


def test_no_override_is_printed_for_towers_of_which_neither_feeds_the_other() -> None:
    with pytest.raises(LayersNotFoundError) as caught:
        assign_layers(clip())
    assert advised(caught.value, "overrides") is None
    assert advised(caught.value, "stacks") == ("text_model", "vision_model")


def test_advice_keeps_the_overrides_that_were_given() -> None:
    model = llava()
    with pytest.raises(LayersNotFoundError) as caught:
        assign_layers(model, {"lm_head": "layers.-1"})
    overrides = advised(caught.value, "overrides")
    assert list(overrides) == ["lm_head", r"^model\.vision_tower\."]
    assert assign_layers(model, overrides).group_of["lm_head.weight"] == "layers.2"


def test_a_table_that_no_source_mentions_is_advised_to_the_input_side_and_a_mystery_is_not_advised() -> None:
    model = Stacked(0)
    model.bert.register_parameter("extra_positions", nn.Parameter(torch.zeros(1)))
    model.register_parameter("mystery", nn.Parameter(torch.zeros(1)))
    with pytest.raises(UnplacedParametersError, match=r'does not show where r"\^mystery\$"') as caught:
        assign_layers(model)
    assert advised(caught.value, "overrides") == {r"^bert\.extra_positions$": "embeddings"}


# Towers --------------------------------------------------------------------------------------------------


def test_each_tower_has_a_depth_of_its_own_and_what_follows_both_is_the_common_head() -> None:
    layers = assign_layers(clip(), stacks={"image": "vision_model", "text": "text_model"})
    assert list(layers.groups) == [
        "image/embeddings", "image/layers.0", "image/layers.1", "image/head",
        "text/embeddings", "text/layers.0", "text/layers.1", "text/layers.2", "text/head", "head",
    ]  # fmt: skip
    group_of = layers.group_of
    assert group_of["text_model.embeddings.token_embedding.weight"] == "text/embeddings"
    assert group_of["vision_model.encoder.layers.1.mlp.fc1.weight"] == "image/layers.1"
    assert (group_of["visual_projection.weight"], group_of["text_projection.weight"]) == ("image/head", "text/head")
    assert group_of["logit_scale"] == "head"


def test_the_distribution_is_applied_to_each_tower_by_its_own_number_of_layers() -> None:
    groups = param_groups(clip(), "decay:lr=1,factor=0.5", stacks=("vision_model", "text_model"))
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["vision_model/embeddings"] == 1 / 8
    assert rates["text_model/embeddings"] == 1 / 16
    assert rates["vision_model/layers.1"] == rates["text_model/layers.2"] == 1 / 2
    assert rates["vision_model/head"] == rates["text_model/head"] == rates["head"] == 1


def test_overrides_name_a_towers_group() -> None:
    towers = ("vision_model", "text_model")
    overrides = {"^logit_scale$": "text_model/layers.-1"}
    assert assign_layers(clip(), overrides, towers).group_of["logit_scale"] == "text_model/layers.2"
    with pytest.raises(InvalidOverrideError, match=r"layers\.0.*vision_model/embeddings"):
        assign_layers(clip(), {"^logit_scale$": "layers.0"}, towers)


@pytest.mark.parametrize(
    ("stacks", "message"),
    [
        ("vision_model", "at least two"),
        (("vision_model",), "at least two"),
        (("vision_model", "text"), "'text'.*its submodules are text_model"),
        (("vision_model", "vision_model"), "twice"),
        (("vision_model", "vision_model.encoder"), "inside it"),
        ({"a/b": "vision_model", "c": "text_model"}, "slash"),
        (3, "at least two"),
    ],
)
def test_bad_stacks_name_themselves(stacks: Any, message: str) -> None:
    with pytest.raises(InvalidStacksError, match=message):
        assign_layers(clip(), stacks=stacks)


def test_two_towers_in_one_optimizer_by_prefixes() -> None:
    groups = [
        group
        for name in ("vision", "text")
        for group in param_groups(getattr(clip(), f"{name}_model"), "flat:lr=1", prefix=name, weight_decay=0.1)
    ]
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names)
    assert {"vision/layers.1", "vision/layers.1/no_decay", "text/embeddings"} <= set(names)
    for prefix in ("", "a/b", 3):
        with pytest.raises(InvalidGroupPrefixError):
            param_groups(clip().text_model, "flat:lr=1", prefix=prefix)  # type: ignore[arg-type]


class Pair(L.LightningModule):
    """A question and an answer encoder, as in DPR."""

    def __init__(self) -> None:
        super().__init__()
        self.question, self.answer = Unpooled(2), Unpooled(3)

    def training_step(self, batch: tuple[torch.Tensor, ...], index: int) -> torch.Tensor:
        ids = batch[0][:, :4] % 20
        return (self.question(ids) * self.answer(ids)).sum()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)]


class Unpooled(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(20, 8), nn.Sequential(*[Block() for _ in range(depth)])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.words(ids)).mean(1)


def test_the_callback_trains_both_towers_at_their_own_rates(tmp_path: Any) -> None:
    module = Pair()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randint(0, 20, (4, 4))), batch_size=2)
    callback = LayerwiseLR("decay:lr=1e-2,factor=0.5", stacks=("question", "answer"), verbose=False)
    trainer = L.Trainer(
        max_steps=2, callbacks=[callback], logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    rates = {group["name"]: group["layer_lr"] for group in trainer.optimizers[0].param_groups}
    assert rates == pytest.approx(
        {
            "question/embeddings": 1e-2 / 8, "question/layers.0": 1e-2 / 4, "question/layers.1": 1e-2 / 2,
            "answer/embeddings": 1e-2 / 16, "answer/layers.0": 1e-2 / 8, "answer/layers.1": 1e-2 / 4,
            "answer/layers.2": 1e-2 / 2,
        }
    )  # fmt: skip


def test_unfreezing_over_several_towers_is_refused() -> None:
    with pytest.raises(InvalidScheduleError, match="stacks"):
        LayerwiseLR("flat:lr=1", stacks=("a", "b"), unfreeze_every_n_epochs=1)


# The command ---------------------------------------------------------------------------------------------


def test_the_command_takes_the_flags_that_its_errors_advise(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    clip().config.save_pretrained(tmp_path)
    assert main(["layers", "--model", str(tmp_path)]) == 2
    assert "stacks=('text_model', 'vision_model')" in capsys.readouterr().err
    assert main(["layers", "--model", str(tmp_path), "--stacks", "[text_model, vision_model]"]) == 0
    assert "text_model/layers.2" in capsys.readouterr().out
    overrides = '{"^(vision|visual)": "embeddings"}'
    assert main(["layers", "--model", str(tmp_path), "--overrides", overrides, "--trust-remote-code", "false"]) == 0
    assert "layers.2" in capsys.readouterr().out


def test_a_library_that_a_model_needs_is_named(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hf.TimmWrapperConfig(architecture="resnet18").save_pretrained(tmp_path)
    assert main(["layers", "--model", str(tmp_path)]) == 2
    assert re.search("MissingLibraryError: .*timm", capsys.readouterr().err)


def test_the_layer_of_a_group_keeps_the_towers_name() -> None:
    for layer in ("a/layers.3", "layers.3", "a.b/head", "head"):
        assert {layer_of(layer + half) for half in ("", "/no_decay", "/2", "/no_decay/2")} == {layer}
