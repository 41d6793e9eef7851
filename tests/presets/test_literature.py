"""The presets from the literature against rates computed by the formula of each source."""

from __future__ import annotations

import pytest

from lr_dist.names import group_names
from lr_dist.presets import get_preset, list_presets
from lr_dist.rate_plan import Phases

FROM_PAPERS = [
    e.preset for e in list_presets() if e.source == "shipped" and e.preset and not e.preset.provenance.trials
]


def electra(lr: float, decay: float, n: int) -> list[float]:
    """google-research/electra, `_get_layer_lrs`: depth of each variable, then lr x decay^(n + 2 - depth)."""
    depths = {"embeddings": 0, "head": n + 2, **{f"layers.{j}": j + 1 for j in range(n)}}
    return [lr * decay ** (n + 2 - depths[group]) for group in group_names(n)]


def vit(lr: float, decay: float, n: int) -> list[float]:
    """facebookresearch/mae, microsoft/unilm (BEiT), LightDXY/FT-CLIP: layer 0, j + 1, and n + 1 for all else."""
    scales = [decay ** (n + 1 - i) for i in range(n + 2)]
    ids = [0, *(j + 1 for j in range(n)), n + 1]
    return [lr * scales[i] for i in ids]


def zhang(lr: float, decay: float, n: int) -> list[float]:
    """asappresearch/revisit-bert-finetuning: from the last layer down to the embeddings, one decay more each."""
    rates = [lr]
    for _ in range(n + 1):
        rates.append(rates[-1] * decay)
    return rates[::-1]


def only_layers(lr: float, decay: float, n: int) -> list[float]:
    """xuyige/BERT4doc-Classification and zihangdai/xlnet: decay^(n - 1 - j) in the layers; all else has lr."""
    return [lr, *(lr * decay ** (n - 1 - j) for j in range(n)), lr]


def five_groups(lr: float, factor: float, n: int) -> list[float]:
    """fastai's train_clas.py (ULMFiT), 3 layers: lr / 2.6^4, ..., lr / 2.6, lr."""
    assert n == 3
    return [lr / factor**4, lr / factor**3, lr / factor**2, lr / factor, lr]


SOURCES = [
    ("electra", electra, 1e-4, 0.8, 12),
    ("electra-large", electra, 5e-5, 0.9, 24),
    ("mae-vit-b", vit, 5e-4 * 1024 / 256, 0.65, 12),
    ("mae-vit-l", vit, 1e-3 * 1024 / 256, 0.75, 24),
    ("mae-vit-h", vit, 1e-3 * 1024 / 256, 0.75, 32),
    ("beit-base", vit, 4e-3, 0.65, 12),
    ("beit-large", vit, 1e-3, 0.75, 24),
    ("beit-base-ft22k", vit, 2e-5, 0.85, 12),
    ("beit-large-ft22k", vit, 2e-5, 0.9, 24),
    ("clip-vit-b16", vit, 6e-4, 0.6, 12),
    ("clip-vit-l14", vit, 4e-4, 0.65, 24),
    ("bert-sun2019", only_layers, 2e-5, 0.95, 12),
    ("bert-zhang2021", zhang, 2e-5, 0.95, 24),
    ("xlnet-large-squad", only_layers, 3e-5, 0.75, 24),
    ("ulmfit", five_groups, 1.0, 2.6, 3),
]


@pytest.mark.parametrize(("name", "formula", "lr", "decay", "layers"), SOURCES)
def test_the_rates_are_those_of_the_sources_formula(name, formula, lr, decay, layers) -> None:
    rates = get_preset(name).distribution.rates(layers)
    assert list(rates.values()) == pytest.approx(formula(lr, decay, layers), rel=1e-12)
    assert get_preset(name).provenance.layers == (layers,)


def test_every_preset_from_a_paper_is_compared_with_its_source() -> None:
    assert {preset.name for preset in FROM_PAPERS} == {name for name, *_ in SOURCES} | {"lp-ft"}


def test_the_assigned_values_of_clip_are_those_of_the_published_log() -> None:
    # LightDXY/FT-CLIP, logs/CLIP_B16.log, "Assigned values".
    log = (
        "0.0013060694015999993 0.002176782335999999 0.0036279705599999985 0.006046617599999997 0.010077695999999997 "
        "0.016796159999999994 0.027993599999999993 0.04665599999999999 0.07775999999999998 0.1296 0.21599999999999997 "
        "0.36 0.6 1.0"
    )
    scales = [rate / 6e-4 for rate in get_preset("clip-vit-b16").distribution.rates(12).values()]
    assert scales == pytest.approx([float(value) for value in log.split()], rel=1e-12)


def test_electra_has_two_steps_of_the_decay_below_the_head() -> None:
    rates = get_preset("electra").distribution.rates(12)
    assert rates["layers.11"] / rates["head"] == pytest.approx(0.8**2)
    assert rates["layers.10"] / rates["layers.11"] == pytest.approx(0.8)


@pytest.mark.parametrize("preset", FROM_PAPERS, ids=lambda preset: preset.name)
def test_each_names_file_commit_setting_and_limits(preset) -> None:
    provenance = preset.provenance
    assert "commit " in provenance.source
    assert "arXiv" in provenance.source
    for text in (provenance.shown_for, provenance.not_shown_for, provenance.translation):
        assert text
    assert provenance.batch_size
    assert provenance.families
    assert preset.schedule is not None


def test_lp_ft_trains_the_head_alone_and_then_all_at_one_rate() -> None:
    [stage] = get_preset("lp-ft").plan.stages
    assert isinstance(stage, Phases)
    head, everything = (phase.distribution.rates(4) for phase in stage.phases)
    assert list(head.values()) == [0, 0, 0, 0, 0, 1]
    assert set(everything.values()) == {1}
    assert stage.starts(100) == (0, 50)


def test_ulmfit_unfreezes_the_head_then_the_last_layer_then_all() -> None:
    preset = get_preset("ulmfit")
    [stage] = preset.plan.stages
    assert isinstance(stage, Phases)
    trained = [[group for group, rate in phase.distribution.rates(3).items() if rate] for phase in stage.phases]
    assert trained == [["head"], ["layers.2", "head"], ["embeddings", "layers.0", "layers.1", "layers.2", "head"]]
    # 1, 1 and 50 epochs.
    assert stage.starts(5200) == (0, 100, 200)
    assert preset.schedule is not None
    assert (preset.schedule.warmup, preset.schedule.end) == (0.1, 1 / 32)
