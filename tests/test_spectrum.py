"""Rates from the spectra of weights: by hand, against NumPy's singular values, and on real pre-trained weights."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, MixtralConfig, MixtralModel

from lr_dist import LRDistribution
from lr_dist._distribution.spectrum import hill_exponent, layer_alphas
from lr_dist.errors import InvalidOverrideError, InvalidRateError, LayersNotFoundError, UnsupportedWeightsError


class Layer(nn.Module):
    """One matrix and a norm."""

    def __init__(self, weight: torch.Tensor | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        if weight is not None:
            self.linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
            self.linear.weight.data = weight.clone()


class Model(nn.Module):
    def __init__(self, *weights: torch.Tensor | None) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(Layer(weight) for weight in weights)
        self.head = nn.Linear(4, 2)
        self.config = SimpleNamespace(num_hidden_layers=len(weights))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def diagonal(*singular: float) -> torch.Tensor:
    return torch.diag(torch.tensor(singular, dtype=torch.float64))


# Squares 1, 4, 16, 64: k = 2, ln(64 / 4) + ln(16 / 4) = 6 ln 2.
POWERS_OF_TWO = diagonal(1, 2, 4, 8)
ALPHA_TWO = 1 + 2 / (6 * math.log(2))
# Squares 1, 9, 81, 729: 6 ln 3.
POWERS_OF_THREE = diagonal(1, 3, 9, 27)
ALPHA_THREE = 1 + 2 / (6 * math.log(3))
# Squares 1, 25, 625, 15625: 6 ln 5.
POWERS_OF_FIVE = diagonal(1, 5, 25, 125)
ALPHA_FIVE = 1 + 2 / (6 * math.log(5))


def by_numpy(matrix: np.ndarray[Any, Any]) -> float:
    """The formula as it is printed, from singular values."""
    values = np.sort(np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2)
    n = len(values)
    k = n // 2
    return 1 + k / sum(math.log(values[n - i] / values[n - k - 1]) for i in range(1, k + 1))


# The exponent --------------------------------------------------------------------------------------------


def test_the_exponent_of_a_known_spectrum_is_the_one_computed_by_hand() -> None:
    assert hill_exponent(POWERS_OF_TWO) == pytest.approx(1.480898346962987, rel=1e-12)
    assert hill_exponent(POWERS_OF_TWO) == pytest.approx(ALPHA_TWO, rel=1e-12)
    assert hill_exponent(POWERS_OF_THREE) == pytest.approx(ALPHA_THREE, rel=1e-12)


def test_with_an_odd_number_of_eigenvalues_k_is_rounded_down() -> None:
    # Squares 1, 4, 16, 64, 256: k = 2, ln(256 / 16) + ln(64 / 16).
    assert hill_exponent(diagonal(1, 2, 4, 8, 16)) == pytest.approx(1 + 2 / (6 * math.log(2)), rel=1e-12)
    # Squares 1, 4, 36: k = 1, ln(36 / 4); with k rounded up it would be ln(36 / 1) + ln(4 / 1).
    assert hill_exponent(diagonal(1, 2, 6)) == pytest.approx(1 + 1 / math.log(9), rel=1e-12)


@pytest.mark.parametrize("shape", [(40, 40), (30, 70), (70, 30)])
def test_the_exponent_equals_the_one_from_numpys_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert hill_exponent(matrix) == pytest.approx(by_numpy(matrix.numpy()), rel=1e-9)


def test_the_exponent_depends_neither_on_scale_nor_on_rotation() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    for scale in (1e-200, 1.0, 1e200):
        assert hill_exponent(rotation @ POWERS_OF_TWO * scale) == pytest.approx(ALPHA_TWO, rel=1e-9)


def test_eigenvalues_of_zero_are_left_out() -> None:
    assert hill_exponent(diagonal(0, 0, 0, 1, 2, 4, 8)) == pytest.approx(ALPHA_TWO, rel=1e-12)
    padded = torch.zeros(9, 300, dtype=torch.float64)
    padded[2:6, 100:104] = POWERS_OF_TWO
    assert hill_exponent(padded) == pytest.approx(ALPHA_TWO, rel=1e-12)


def test_a_matrix_without_full_rank_in_float32_has_the_exponent_of_its_rank() -> None:
    generator = torch.Generator().manual_seed(3)
    left, _ = torch.linalg.qr(torch.randn(200, 4, dtype=torch.float64, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(300, 4, dtype=torch.float64, generator=generator))
    assert hill_exponent((left @ POWERS_OF_TWO @ right.T).float()) == pytest.approx(ALPHA_TWO, rel=1e-5)


def test_matrices_with_fewer_than_two_eigenvalues_have_no_exponent() -> None:
    assert hill_exponent(torch.zeros(3, 3)) is None
    assert hill_exponent(torch.ones(3, 5)) is None  # rank one
    assert hill_exponent(torch.randn(1, 5)) is None


def test_equal_eigenvalues_have_an_infinite_exponent() -> None:
    assert hill_exponent(torch.eye(6)) == math.inf
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(4)))
    assert hill_exponent(rotation) == math.inf  # equal up to the rounding of float32


# The rates -----------------------------------------------------------------------------------------------


def test_the_rates_are_those_computed_by_hand() -> None:
    distribution = LRDistribution.from_spectrum(Model(POWERS_OF_THREE, POWERS_OF_FIVE, POWERS_OF_TWO), lr=2e-4)
    middle = (ALPHA_THREE - ALPHA_FIVE) / (ALPHA_TWO - ALPHA_FIVE)
    assert middle == pytest.approx(0.351739, rel=1e-5)
    assert distribution.rates(3) == pytest.approx(
        {"embeddings": 2e-4, "layers.0": 2e-4 * (0.5 + middle), "layers.1": 1e-4, "layers.2": 3e-4, "head": 2e-4}
    )
    other = LRDistribution.from_spectrum(Model(POWERS_OF_TWO, POWERS_OF_THREE), lr=1.0, s1=0.9, s2=4.0, relative=True)
    assert other == LRDistribution.from_layers(1.0, [4.0, 0.9], 1.0, relative=True)


def test_a_layers_exponent_is_the_mean_over_its_matrices() -> None:
    model = Model(POWERS_OF_TWO, POWERS_OF_TWO)
    model.layers[1].second = nn.Linear(4, 4)
    model.layers[1].second.weight.data = POWERS_OF_FIVE
    assert layer_alphas(model) == pytest.approx({"layers.0": ALPHA_TWO, "layers.1": (ALPHA_TWO + ALPHA_FIVE) / 2})


def test_a_berts_exponents_equal_numpys_over_all_its_matrices() -> None:
    model = tiny.bert()
    for i, layer in enumerate(model.bert.encoder.layer):
        matrices = [p.detach().numpy() for p in layer.parameters() if p.ndim == 2]
        assert len(matrices) == 6
        expected = sum(by_numpy(matrix) for matrix in matrices) / 6
        assert layer_alphas(model)[f"layers.{i}"] == pytest.approx(expected, rel=1e-6)


def test_an_override_moves_a_matrix_to_another_layer() -> None:
    model = Model(POWERS_OF_TWO, POWERS_OF_THREE)
    model.adapter = nn.Linear(4, 4)
    model.adapter.weight.data = POWERS_OF_FIVE
    alphas = layer_alphas(model, {"adapter": "layers.0"})
    assert alphas["layers.0"] == pytest.approx((ALPHA_TWO + ALPHA_FIVE) / 2)
    rates = LRDistribution.from_spectrum(model, 1e-3, overrides={"adapter": "layers.0"}).rates(2)
    assert rates["layers.0"] == pytest.approx(0.5e-3 if alphas["layers.0"] < ALPHA_THREE else 1.5e-3)
    with pytest.raises(InvalidOverrideError, match="nowhere"):
        LRDistribution.from_spectrum(model, 1e-3, overrides={"nowhere": "head"})


def test_each_expert_of_a_mixture_is_a_matrix() -> None:
    torch.manual_seed(5)
    config = MixtralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    model = MixtralModel(config)
    stacks = [p for p in model.layers[0].parameters() if p.ndim == 3]
    assert [len(stack) for stack in stacks] == [4, 4]
    flat = [p.detach().numpy() for p in model.layers[0].parameters() if p.ndim == 2]
    matrices = flat + [expert.detach().numpy() for stack in stacks for expert in stack]
    expected = sum(map(by_numpy, matrices)) / len(matrices)
    assert layer_alphas(model)["layers.0"] == pytest.approx(expected, rel=1e-6)


def test_a_convolution_is_one_matrix_and_an_embedding_in_a_layer_none() -> None:
    model = Model(POWERS_OF_TWO, POWERS_OF_THREE)
    torch.manual_seed(6)
    model.layers[0].convolution = nn.Conv1d(6, 8, 3)
    model.layers[0].positions = nn.Embedding(7, 4)
    matrix = model.layers[0].convolution.weight.detach().numpy().reshape(8, 18)
    assert layer_alphas(model)["layers.0"] == pytest.approx((ALPHA_TWO + by_numpy(matrix)) / 2, rel=1e-6)


def test_weights_in_bfloat16_are_read_as_the_numbers_they_are() -> None:
    # Powers of two are exact in bfloat16; its own arithmetic would not give the exponent to seven digits.
    assert hill_exponent(POWERS_OF_TWO.bfloat16()) == pytest.approx(ALPHA_TWO, rel=1e-12)
    half, full = tiny.bert().bfloat16(), tiny.bert().bfloat16().float()
    assert LRDistribution.from_spectrum(half, 1e-4) == LRDistribution.from_spectrum(full, 1e-4)


# Where the formula says nothing --------------------------------------------------------------------------


def test_a_layer_without_matrices_keeps_the_base_rate() -> None:
    rates = LRDistribution.from_spectrum(Model(POWERS_OF_TWO, None, POWERS_OF_THREE), lr=1e-3).rates(3)
    assert list(rates.values()) == pytest.approx([1e-3, 1.5e-3, 1e-3, 0.5e-3, 1e-3])


def test_equal_exponents_give_every_layer_the_middle() -> None:
    model = Model(POWERS_OF_TWO, POWERS_OF_TWO * 3, POWERS_OF_TWO.flip(0))
    assert LRDistribution.from_spectrum(model, 1e-3) == LRDistribution.from_layers(1e-3, [1e-3] * 3, 1e-3)
    assert dict(LRDistribution.from_spectrum(model, 1.0, s1=1.0, s2=4.0).values)["layers"] == (2.5,) * 3


def test_beside_an_infinite_exponent_the_finite_ones_are_the_lowest() -> None:
    model = Model(POWERS_OF_TWO, torch.eye(4), POWERS_OF_THREE, None)
    assert dict(LRDistribution.from_spectrum(model, 1.0).values)["layers"] == (0.5, 1.5, 0.5, 1.0)
    assert dict(LRDistribution.from_spectrum(Model(torch.eye(4), torch.eye(4)), 1.0).values)["layers"] == (1.0, 1.0)


# Forms and real weights ----------------------------------------------------------------------------------


def test_the_result_round_trips_as_text_as_a_dict_and_as_yaml() -> None:
    distribution = LRDistribution.from_spectrum(tiny.bert(), 3e-4)
    assert distribution.family == "from_layers"
    assert len({*distribution.rates(3).values()}) == 4  # three layers, and embeddings and head alike
    assert LRDistribution.parse(str(distribution)) == distribution
    assert LRDistribution.from_dict(distribution.to_dict()) == distribution
    assert LRDistribution.from_yaml(distribution.to_yaml()) == distribution


@pytest.mark.minilm
def test_the_rates_of_minilm_equal_numpys(minilm_path: Path) -> None:
    model = AutoModel.from_pretrained(minilm_path, dtype=torch.float32)
    alphas = [
        sum(by_numpy(p.detach().numpy()) for p in layer.parameters() if p.ndim == 2) / 6
        for layer in model.encoder.layer
    ]
    low, high = min(alphas), max(alphas)
    assert high - low > 0.05  # pre-trained layers differ
    rates = LRDistribution.from_spectrum(model, 2e-5).rates(6)
    expected = [2e-5 * (0.5 + (alpha - low) / (high - low)) for alpha in alphas]
    assert list(rates.values()) == pytest.approx([2e-5, *expected, 2e-5], rel=1e-6)


def test_the_weights_are_left_as_they_were() -> None:
    model = tiny.bert()
    before = tiny.weights(model)
    LRDistribution.from_spectrum(model, 1e-4)
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in model.named_parameters())


def test_the_distribution_module_still_imports_no_torch() -> None:
    code = "import sys; from lr_dist.distribution import LRDistribution; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# What is refused -----------------------------------------------------------------------------------------


def test_weights_on_the_meta_device_are_refused() -> None:
    with torch.device("meta"):
        model = BertModel(BertConfig(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32))
    with pytest.raises(UnsupportedWeightsError, match=r"encoder\.layer\.0.*meta device.*Load the weights first"):
        LRDistribution.from_spectrum(model, 1e-4)


def test_quantised_weights_are_refused_by_name() -> None:
    model = tiny.bert()
    dense = model.bert.encoder.layer[1].output.dense
    dense.weight = nn.Parameter(dense.weight.data.mul(50).to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedWeightsError, match=r"layer\.1\.output\.dense\.weight.*int8.*unquantised"):
        LRDistribution.from_spectrum(model, 1e-4)
    dense.weight = nn.Parameter(torch.zeros(16, 32).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UnsupportedWeightsError, match=r"layer\.1\.output\.dense\.weight.*float8_e4m3fn"):
        LRDistribution.from_spectrum(model, 1e-4)


def test_a_tensor_that_is_not_the_weight_itself_is_refused() -> None:
    class Packed(torch.Tensor):
        pass

    model = tiny.bert()
    dense = model.bert.encoder.layer[2].output.dense
    dense.weight = nn.Parameter(dense.weight.data.as_subclass(Packed))
    with pytest.raises(UnsupportedWeightsError, match=r"layer\.2\.output\.dense\.weight is a Packed"):
        LRDistribution.from_spectrum(model, 1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_model_is_refused(value: float) -> None:
    model = tiny.bert()
    model.bert.encoder.layer[0].output.dense.weight.data[3, 4] = value
    with pytest.raises(UnsupportedWeightsError, match=r"layer\.0\.output\.dense\.weight holds NaN or infinite"):
        LRDistribution.from_spectrum(model, 1e-4)


def test_a_model_without_matrices_is_refused() -> None:
    with pytest.raises(UnsupportedWeightsError, match="No layer of Model holds a weight matrix"):
        LRDistribution.from_spectrum(Model(None, torch.zeros(4, 4)), 1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lr": 0}, "lr=0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": 1e-4, "s1": 0.0}, r"s1=0\.0"),
        ({"lr": 1e-4, "s2": -1}, "s2=-1"),
        ({"lr": 1e-4, "s1": 2.0}, r"s1=2\.0 is above s2=1\.5"),
        ({"lr": 1e-4, "s1": "half"}, "s1='half'"),
    ],
)
def test_factors_that_are_no_factors_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidRateError, match=match):
        LRDistribution.from_spectrum(tiny.bert(), **options)


@pytest.mark.parametrize("model", [nn.Linear(3, 3), "bert", None])
def test_what_has_no_layers_is_refused(model: Any) -> None:
    with pytest.raises(LayersNotFoundError):
        LRDistribution.from_spectrum(model, 1e-4)
