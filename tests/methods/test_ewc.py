"""EWC's Fisher information: of single examples, with sampled or true labels, of any head and of masked texts."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from methods.fits import Module, batches, fit, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForMaskedLM

from lr_dist.errors import ConfigurationError, DivergedError, InvalidRateError
from lr_dist.methods import EWC, MAS, OnlineEWC, TaskFunctions, build_method


class Linear(L.LightningModule):
    """Softmax regression, whose Fisher information is known: E[p_c (1 - p_c) x_j^2] for the weight of class c."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(4, outputs)
        nn.init.zeros_(self.layer.bias)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def pairs(targets: torch.Tensor, batch_size: int = 8) -> DataLoader:
    x = torch.randn(len(targets), 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, targets), batch_size=batch_size)


def importance(method: Any, module: Any, data: Any, **options: Any) -> dict[str, torch.Tensor]:
    method.learn_from(module, data, **options)
    return {name: method.pull.importance[name] for name in method.pull.importance.names()}


def test_sampled_labels_give_the_fisher_information_whatever_the_targets_are():
    module, data = Linear(), pairs(torch.zeros(3000, dtype=torch.long), batch_size=100)
    x = data.dataset.tensors[0]
    p = module(x).softmax(-1)
    expected = torch.einsum("nc,nj->cj", p * (1 - p), x**2) / len(x)
    got = importance(EWC(examples=3000), module, data)["layer.weight"]
    torch.testing.assert_close(got, expected, rtol=0.15, atol=0.01)
    empirical = importance(EWC(examples=3000, labels="true"), module, data)["layer.weight"]
    assert (empirical / expected - 1).abs().max() > 0.3  # all of class 0


def test_true_labels_give_the_mean_of_squared_gradients_not_the_square_of_the_mean():
    module, data = Module(), batches(3)
    got = importance(EWC(labels="true"), module, data)
    expected = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for batch in data:
        for row in range(4):
            module.zero_grad()
            module.model(**{key: value[row : row + 1] for key, value in batch.items()}).loss.backward()
            for name, p in module.named_parameters():
                expected[name] += p.grad**2 / 12 if p.grad is not None else 0
    for name, each in got.items():
        torch.testing.assert_close(each, expected[name], rtol=1e-3, atol=1e-9)
    assert max(float(each.max()) for each in got.values()) > 1e-4


def test_a_regression_has_the_fisher_information_of_its_squared_error():
    """-log p = (y - f)^2, a variance of 1/2: 2 E[x_j^2]."""
    module, data = Linear(1), pairs(torch.zeros(2000), batch_size=100)
    got = importance(EWC(examples=2000), module, data)["layer.weight"]
    torch.testing.assert_close(got, 2 * data.dataset.tensors[0].square().mean(0)[None], rtol=0.15, atol=0.05)


def test_labels_that_are_drawn_do_not_depend_on_the_batches():
    targets = torch.zeros(30, dtype=torch.long)
    small, large = (importance(EWC(), Linear(), pairs(targets, batch_size=size)) for size in (4, 30))
    torch.testing.assert_close(small["layer.weight"], large["layer.weight"])
    again = importance(EWC(), Linear(), pairs(targets, batch_size=30))
    assert torch.equal(again["layer.weight"], large["layer.weight"])


@pytest.mark.parametrize(("examples", "used"), [(10, 10), (24, 24), (1000, 24)])
def test_as_many_examples_as_asked_for_or_all_of_them_once(examples, used):
    module, data = Linear(), pairs(torch.arange(24) % 3)
    got = importance(EWC(examples=examples, labels="true"), module, data)["layer.bias"]
    x, y = (each[:used] for each in data.dataset.tensors)
    expected = ((module(x).softmax(-1) - nn.functional.one_hot(y, 3)) ** 2).mean(0)
    torch.testing.assert_close(got, expected)


def test_dropout_is_off_and_modes_gradients_and_random_numbers_are_left_alone():
    module = Module(dropout=0.5)
    module.train()
    module.model.bert.encoder.layer[0].eval()
    module.model.classifier.bias.grad = torch.ones(2)
    modes = [each.training for each in module.modules()]
    state = torch.get_rng_state()
    got = importance(EWC(), module, batches(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert [each.training for each in module.modules()] == modes
    assert torch.equal(module.model.classifier.bias.grad, torch.ones(2))
    assert all(p.requires_grad for p in module.parameters())
    calm = importance(EWC(), Module(), batches(2))
    assert all(torch.allclose(got[name], calm[name], atol=1e-9) for name in got)


def test_what_a_masked_language_model_knows_is_protected_before_its_first_fit():
    class Masked(L.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            small = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
            self.model = BertForMaskedLM(BertConfig(**small, intermediate_size=32, max_position_embeddings=16))

    ids = torch.randint(1, 20, (12, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[:, 2] = ids[:, 2]
    labels[0] = -100  # no masked token: adds nothing, and is not NaN
    data = DataLoader([{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)], batch_size=4)
    module = Masked()
    got = importance(EWC(labels="true"), module, data)
    expected = torch.zeros_like(module.model.cls.predictions.bias)
    for row in range(1, 12):
        probabilities = module.model.eval()(ids[row : row + 1]).logits[0, 2].softmax(-1)
        expected += (probabilities - nn.functional.one_hot(ids[row, 2], 20)) ** 2 / 12
    torch.testing.assert_close(got["model.cls.predictions.bias"], expected, rtol=1e-4, atol=1e-8)
    sampled = importance(EWC(), module, data)
    assert 0 < sampled["model.cls.predictions.bias"].sum() < 10
    # And the encoder of a classifier made of it is pulled from the first step on.
    method = EWC(strength=1e4, exclude="cls")
    method.learn_from(module, data)
    ends = []
    for callbacks in ([method], []):
        classifier = Module(optimizer=torch.optim.AdamW, lr=3e-3)
        classifier.model.bert.load_state_dict(module.model.bert.state_dict(), strict=False)
        start = weights(classifier)
        fit(classifier, *callbacks)
        ends.append((weights(classifier) - start).norm())
    assert ends[0] < ends[1]


@pytest.mark.parametrize("kind", [EWC, OnlineEWC, MAS])
def test_a_loader_without_examples_or_of_unknown_form_is_refused(kind):
    with pytest.raises(ConfigurationError, match="no examples"):
        kind().learn_from(Linear(), [])
    with pytest.raises(ConfigurationError, match="TaskFunctions"):
        kind().learn_from(Linear(), [torch.ones(3, 4)])
    functions = TaskFunctions(outputs=lambda module, batch, head: module(batch))
    assert importance(kind(functions=functions), Linear(), [torch.ones(3, 4)])  # sampled: no labels needed


@pytest.mark.parametrize("kind", [EWC, MAS])
def test_weights_that_are_not_finite_are_named(kind):
    module = Linear()
    module.layer.weight.data[0, 0] = float("nan")
    with pytest.raises(DivergedError, match=r"layer\.\w+ .*not finite"):
        kind().learn_from(module, pairs(torch.zeros(8, dtype=torch.long)))


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("ewc:examples=0", ConfigurationError, "examples must be a whole number of at least 1"),
        ("ewc:examples=1.5", ConfigurationError, "examples must be a whole number"),
        ("ewc:labels=guessed", ConfigurationError, "labels must be sampled or true, not 'guessed'"),
        ("online-ewc:gamma=1.5", InvalidRateError, "gamma must be a number from 0 to 1"),
        ("mas:examples=0", ConfigurationError, "examples must be a whole number of at least 1"),
        ("si:xi=0", InvalidRateError, "xi must be a finite number greater than 0"),
        ("lwf:temperature=0", InvalidRateError, "temperature must be a finite number greater than 0"),
        ("rec-adam:k=0", InvalidRateError, "k must be a finite number greater than 0"),
        ("rec-adam:gamma=-1", ConfigurationError, "gamma .*must be a finite number of at least 0"),
    ],
)
def test_settings_that_are_not_valid_are_named(text, error, says):
    with pytest.raises(error, match=says):
        build_method(text)


def test_the_online_importance_fades_and_its_anchor_is_the_last():
    module, data = Linear(), pairs(torch.arange(24) % 3)
    method = OnlineEWC(gamma=0.5, labels="true")
    first = importance(method, module, data)["layer.weight"].clone()
    with torch.no_grad():
        module.layer.weight.add_(0.3)
    second = importance(EWC(labels="true"), module, data)["layer.weight"]
    torch.testing.assert_close(importance(method, module, data)["layer.weight"], 0.5 * first + second)
    assert torch.equal(method.pull.anchor["layer.weight"], module.layer.weight.detach())


def test_mas_is_the_mean_of_absolute_gradients_of_single_examples():
    """d ||f||^2 / d b_c = 2 f_c, whose sign differs from example to example."""
    module, data = Linear(), pairs(torch.zeros(40, dtype=torch.long))
    got = importance(MAS(), module, data)
    f = module(data.dataset.tensors[0]).detach()
    torch.testing.assert_close(got["layer.bias"], (2 * f).abs().mean(0))
    assert (got["layer.bias"] - (2 * f).mean(0).abs()).abs().max() > 0.1
    method = MAS()
    importance(method, module, data)
    torch.testing.assert_close(importance(method, module, data)["layer.bias"], 2 * (2 * f).abs().mean(0))
