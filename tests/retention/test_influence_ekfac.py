"""EK-FAC influence: exact where the theory says so, the same as kronfluence's, and with the right inverse products."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import bert
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from lr_dist.errors import InfluenceError, ModelMismatchError, SingularCurvatureError, UnsupportedModelError
from lr_dist.retention.influence import factors
from lr_dist.retention.influence.ekfac import (
    MeanQuery,
    Queries,
    gradient_products,
    stage_influence,
    two_stage_influence,
)
from lr_dist.retention.influence.exact import TrainedStage, influence
from lr_dist.retention.influence.factors import Factors, InverseCurvature, fit_factors
from lr_dist.retention.influence.model_stage import ModelStage
from lr_dist.retention.influence.objectives import Classification, MaskedTokens, Regression, drawn


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Factors that several tests use are fitted once."""
    return tmp_path_factory.mktemp("factors")


def stack(rows: list[Any]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def linear_stage(n: int = 40) -> ModelStage:
    """Least squares with a bias, at its minimum, in float64."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=draw, dtype=torch.float64) * torch.tensor([3.0, 1, 1, 0.3]).double()
    y = x.sum(1) + torch.randn(n, generator=draw, dtype=torch.float64)
    whole = torch.cat([x, torch.ones(n, 1).double()], 1)
    solution = torch.linalg.lstsq(whole, y[:, None]).solution[:, 0]
    model = nn.Sequential(nn.Linear(4, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(solution[None, :4])
        model[0].bias.copy_(solution[4:])
    rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    return ModelStage(model, Regression(lambda m, batch: m(batch["x"])), rows, stack)


def texts(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 40, (count, 7), generator=draw)
    mask = torch.ones_like(tokens)
    mask[1::2, 5:] = 0  # every second text is shorter
    return [
        {"input_ids": t, "attention_mask": m, "labels": (t[0] > 20).long()} for t, m in zip(tokens, mask, strict=True)
    ]


def logits(model: nn.Module, batch: Any) -> Tensor:
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def bert_stage(seed: int = 0, *, model: nn.Module | None = None, count: int = 24) -> ModelStage:
    return ModelStage(model or bert(seed=seed, layers=2), Classification(logits), texts(count), stack, batch_size=8)


def asked(count: int = 3) -> Queries:
    return Queries([stack(texts(count, seed=9))], Classification(logits).losses)


def dense(factors: Factors, name: str, damping: float) -> Tensor:
    each = factors.layers[name]
    basis = torch.kron(each.outputs, each.inputs).double()
    return basis @ torch.diag(each.values.double().flatten() + damping) @ basis.T


def test_scalar_linear_regression_with_expected_labels_is_exact(tmp_path: Path) -> None:
    stage = linear_stage()
    x = torch.stack([row["x"] for row in stage.rows])
    y = torch.stack([row["labels"] for row in stage.rows])
    exact_stage = TrainedStage(
        lambda p: (x @ p["w"] + p["b"] - y).square() / 2,
        {"w": stage.model[0].weight.detach()[0], "b": stage.model[0].bias.detach()[0]},  # type: ignore[index]
        damping=0.01,
    )
    exact = influence(exact_stage, lambda p: (x[:3] @ p["w"] + p["b"] - 1).square() / 2)
    batch = {"x": x[:3], "labels": torch.ones(3).double()}
    queries = Queries([batch], stage.objective.losses)
    found = {}
    for labels in ("expected", "sampled"):
        factors = fit_factors(stage, tmp_path, labels=labels)  # type: ignore[arg-type]
        assert factors.about["labels"] == labels
        inverse = InverseCurvature(factors, factors.constant_damping(0.01))
        found[labels] = stage_influence(stage, inverse, queries).total
    torch.testing.assert_close(found["expected"], exact, rtol=1e-6, atol=1e-8)
    assert (found["sampled"] - exact).norm() > 0.01 * exact.norm()


def test_scores_are_those_of_kronfluence(tmp_path: Path) -> None:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import ScoreArguments
    from kronfluence.utils.dataset import DataLoaderKwargs

    from lr_dist.retention.influence import factors as module

    stage, queries = bert_stage(), asked()
    factors = fit_factors(stage, tmp_path)
    ours = stage_influence(stage, InverseCurvature(factors, factors.constant_damping(1e-3)), queries)

    base = type(module._task(stage, "sampled"))

    class Asking(base):  # type: ignore[misc, valid-type]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return stage.objective.losses(model, batch).sum()

        compute_measurement = compute_train_loss

    key = next(tmp_path.iterdir()).name
    task = Asking()
    analyzer = Analyzer(
        key,
        prepare_model(copy.deepcopy(stage.model), task),
        task,
        cpu=True,
        output_dir=str(tmp_path),
        disable_tqdm=True,
    )
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=stack))
    analyzer.compute_pairwise_scores(
        scores_name="theirs",
        factors_name="factors",
        query_dataset=texts(3, seed=9),  # type: ignore[arg-type]
        train_dataset=stage.rows,  # type: ignore[arg-type]
        per_device_query_batch_size=3,
        per_device_train_batch_size=8,
        score_args=ScoreArguments(damping_factor=1e-3),
    )
    theirs = analyzer.load_pairwise_scores("theirs")
    assert theirs is not None
    torch.testing.assert_close(-ours.total, theirs["all_modules"], rtol=1e-3, atol=1e-4 * float(ours.total.abs().max()))


def test_two_stages_apply_both_inverses(kept: Path) -> None:
    one, two, queries = bert_stage(0), bert_stage(1), asked()
    first, second = fit_factors(one, kept), fit_factors(two, kept)
    pull = 0.5 * second.mean_value()
    inverse = InverseCurvature(first, first.relative_damping(0.1))
    found = two_stage_influence(one, two, inverse, second, queries, pull=pull)
    # The classifier takes part too: both models have it.
    name = "bert.encoder.layer.1.output.dense"
    asks = queries.gradients(two.model, [name])[name].double().flatten(1)
    candidates = Queries([stack(list(one.rows))], one.objective.losses)
    trains = candidates.gradients(one.model, [name])[name].double().flatten(1)
    back = torch.linalg.solve(
        dense(first, name, inverse.damping[name]), torch.linalg.solve(dense(second, name, pull), asks.T)
    )
    expected = -pull * back.T @ trains.T
    got = found.layers[name].double()
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=1e-4 * float(expected.abs().max()))
    plain = gradient_products(one, two, queries).layers[name].double()
    torch.testing.assert_close(plain, -asks @ trains.T, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.total, torch.stack(list(found.layers.values())).sum(0))


def test_a_large_pull_leaves_the_first_stages_own_scores(kept: Path) -> None:
    one = bert_stage(0)
    first = fit_factors(one, kept)
    inverse = InverseCurvature(first, first.relative_damping(0.1))
    bound = two_stage_influence(one, one, inverse, first, asked(), pull=1e6)
    torch.testing.assert_close(bound.total, stage_influence(one, inverse, asked()).total, rtol=1e-3, atol=1e-5)


def test_expected_labels_give_the_fisher_matrix_of_a_classifier(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=draw, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 4, bias=False)).double()
    rows = [{"x": a, "labels": torch.tensor(i % 4)} for i, a in enumerate(x)]
    stage = ModelStage(model, Classification(lambda m, batch: m(batch["x"])), rows, stack)
    with torch.no_grad():
        p = model(x).softmax(-1)
    fisher = (
        sum(torch.kron(torch.diag(p[i]) - torch.outer(p[i], p[i]), torch.outer(x[i], x[i])) for i in range(12)) / 12
    )
    factors = fit_factors(stage, tmp_path, labels="expected")
    each = factors.layers["0"]
    basis = torch.kron(each.outputs, each.inputs)
    torch.testing.assert_close(each.values.flatten(), torch.diag(basis.T @ fisher @ basis), rtol=1e-5, atol=1e-7)


def test_sampled_labels_follow_the_models_probabilities() -> None:
    p = torch.tensor([0.1, 0.6, 0.3])
    uniform = (torch.arange(1000) + 0.5) / 1000
    draws = drawn(p.log().expand(1000, 3), uniform)
    assert torch.bincount(draws, minlength=3).tolist() == [100, 600, 300]


def many() -> ModelStage:
    """Enough batches to be fitted in parts."""
    return ModelStage(bert(layers=1), Classification(logits), texts(32), stack, batch_size=2)


def test_sampled_labels_give_the_gauss_newton_matrix_of_the_mean_loss_of_masked_tokens() -> None:
    rows, words = 40_000, 3
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(1, 4, words, dtype=torch.float64, generator=draw)
    outputs = one.repeat(rows, 1, 1).requires_grad_()
    labels = torch.tensor([[0, -100, 1, 2]]).expand(rows, -1)
    uniform = torch.rand(rows, 4, dtype=torch.float64, generator=draw)
    loss = MaskedTokens(lambda m, b: m).sampled_loss(outputs, labels, uniform)
    gradients = torch.autograd.grad(loss, outputs)[0].flatten(1)
    mean_loss = lambda z: MaskedTokens(lambda m, b: m).from_outputs(z.view(1, 4, words), labels[:1]).sum()  # noqa: E731
    # Of a linear model, the Gauss-Newton matrix is the Hessian.
    exact = torch.func.hessian(mean_loss)(one.flatten())
    assert exact.diagonal().max() > 0.05
    assert (gradients.T @ gradients / rows - exact).abs().max() < 0.005


def test_factors_are_read_again_and_a_stopped_fit_goes_on_to_the_same_factors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = many()
    whole = fit_factors(stage, tmp_path / "whole")
    folder = next((tmp_path / "whole").iterdir())
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert not [path for path in times if "partition" in path.name]
    again = fit_factors(stage, tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in times} == times

    from kronfluence.computer import factor_computer

    fit, parts = factor_computer.fit_lambda_matrices_with_loader, []

    def stopping(**arguments: Any) -> Any:
        parts.append(0)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return fit(**arguments)

    with monkeypatch.context() as patch:
        patch.setattr(factor_computer, "fit_lambda_matrices_with_loader", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit_factors(many(), tmp_path / "stopped")
    left = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "stopped").rglob("*.safetensors")}
    assert any("lambda" in name and "partition1" in name for name in left)
    resumed = fit_factors(stage, tmp_path / "stopped")
    covariance = next((tmp_path / "stopped").rglob("activation_covariance.safetensors"))
    assert covariance.stat().st_mtime_ns == left[covariance.name]
    for name, each in whole.layers.items():
        for other in (again, resumed):
            assert torch.equal(other.layers[name].values, each.values)
            assert torch.equal(other.layers[name].inputs, each.inputs)


def test_damaged_factors_are_fitted_again(tmp_path: Path) -> None:
    stage = linear_stage(n=10)
    whole = fit_factors(stage, tmp_path)
    damaged = next(tmp_path.rglob("lambda_matrix.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert torch.equal(fit_factors(stage, tmp_path).layers["0"].values, whole.layers["0"].values)


def test_a_new_fit_that_cannot_be_read_is_an_error_and_not_fitted_for_ever(tmp_path: Path, monkeypatch) -> None:
    fits = []
    whole = factors._fit
    monkeypatch.setattr(factors, "_fit", lambda *arguments: (fits.append(1), whole(*arguments)))

    def unreadable(*arguments: Any) -> Any:
        raise KeyError("0")

    monkeypatch.setattr(factors, "_read", unreadable)
    with pytest.raises(KeyError):
        fit_factors(linear_stage(n=10), tmp_path)
    assert len(fits) == 1


def test_another_stage_kind_of_labels_or_seed_has_factors_of_its_own(tmp_path: Path) -> None:
    stage = linear_stage(n=10)
    for arguments in ({}, {"seed": 1}, {"labels": "expected"}):
        fit_factors(stage, tmp_path, **arguments)  # type: ignore[arg-type]
    with torch.no_grad():
        stage.model[0].bias.add_(1)  # type: ignore[index, operator]
    fit_factors(stage, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def masked_stage() -> ModelStage:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    rows = texts(16)
    for row in rows:
        row["labels"] = torch.where(torch.arange(7) % 3 == 1, row["input_ids"], -100)
    return ModelStage(BertForMaskedLM(config), MaskedTokens(logits), rows, stack, repeats=2)


def test_a_tied_decoder_is_left_out_and_masks_are_averaged(tmp_path: Path) -> None:
    stage = masked_stage()
    assert stage.excluded == {"cls.predictions.decoder": "its weight is tied to another module's"}
    assert "cls.predictions.transform.dense" in stage.layers
    factors = fit_factors(stage, tmp_path)
    assert factors.about["left_out"] == stage.excluded
    inverse = InverseCurvature(factors, factors.relative_damping())
    queries = Queries([stack(list(stage.rows[:2]))], stage.objective.losses)
    scores = stage_influence(stage, inverse, queries).total
    single = ModelStage(stage.model, stage.objective, stage.rows, stack)
    each = stage_influence(single, inverse, queries).total
    torch.testing.assert_close(scores, (each[:, ::2] + each[:, 1::2]) / 2)
    with pytest.raises(InfluenceError, match=r"sampled"):
        fit_factors(stage, tmp_path, labels="expected")


def test_a_mean_query_is_the_mean_of_its_rows(kept: Path) -> None:
    stage = bert_stage()
    factors = fit_factors(stage, kept)
    inverse = InverseCurvature(factors, factors.relative_damping())
    batches = [stack(texts(3, seed=9)), stack(texts(5, seed=8))]
    each = stage_influence(stage, inverse, Queries(batches, stage.objective.losses)).total
    mean = stage_influence(stage, inverse, MeanQuery(batches, stage.objective.losses)).total
    torch.testing.assert_close(mean, each.mean(0, keepdim=True), rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was(kept: Path) -> None:
    stage = bert_stage()
    stage.model.train()
    stage.model.bert.embeddings.requires_grad_(False)  # type: ignore[union-attr, operator]
    before = {name: (p.requires_grad, p.clone()) for name, p in stage.model.named_parameters()}
    factors = fit_factors(stage, kept)
    stage_influence(stage, InverseCurvature(factors, factors.relative_damping()), asked())
    assert stage.model.training
    assert all(
        p.requires_grad == before[n][0] and torch.equal(p, before[n][1]) for n, p in stage.model.named_parameters()
    )
    assert all(p.grad is None for p in stage.model.parameters())


def test_a_query_changes_neither_damping_nor_later_scores(kept: Path) -> None:
    stage = bert_stage()
    factors = fit_factors(stage, kept)
    inverse = InverseCurvature(factors, factors.relative_damping())
    damping = dict(inverse.damping)
    once = stage_influence(stage, inverse, asked()).total
    assert torch.equal(stage_influence(stage, inverse, asked()).total, once)
    assert inverse.damping == damping
    assert factors.relative_damping() == damping


def test_what_cannot_be_computed_is_named(tmp_path: Path) -> None:
    rows = [{"x": torch.ones(4), "labels": torch.tensor(1.0)}]
    objective = Regression(lambda m, batch: m(batch["x"]))
    with pytest.raises(UnsupportedModelError, match=r"nn\.Sequential"):
        ModelStage(nn.Linear(4, 1), objective, rows, stack)
    with pytest.raises(UnsupportedModelError, match=r"no nn\.Linear"):
        ModelStage(nn.Sequential(nn.LayerNorm(4)), Regression(lambda m, b: m(b["x"]).sum(-1)), rows, stack)
    with pytest.raises(InfluenceError, match=r"at least one example"):
        ModelStage(nn.Sequential(nn.Linear(4, 1)), objective, [], stack)
    stage = ModelStage(nn.Sequential(nn.Linear(4, 1)), objective, rows, stack)
    factors = fit_factors(stage, tmp_path, labels="expected")
    with pytest.raises(SingularCurvatureError, match=r"eigenvalue"):
        InverseCurvature(factors, factors.constant_damping(0.0))  # one example, five weights
    with pytest.raises(InfluenceError, match=r"labels must be sampled"):
        fit_factors(stage, tmp_path, labels="true")  # type: ignore[arg-type]
    inverse = InverseCurvature(factors, factors.relative_damping())
    with pytest.raises(InfluenceError, match=r"No queries"):
        stage_influence(stage, inverse, Queries([], objective.losses))
    with pytest.raises(InfluenceError, match=r"pull must be"):
        two_stage_influence(stage, stage, inverse, factors, asked(), pull=0.0)
    other = ModelStage(nn.Sequential(nn.Linear(4, 2)), Regression(lambda m, b: m(b["x"]).sum(1)), rows, stack)
    with pytest.raises(ModelMismatchError, match=r"two architectures"):
        gradient_products(stage, other, asked())
    with pytest.raises(ModelMismatchError, match=r"another model"):
        stage_influence(other, inverse, asked())
    with pytest.raises(ModelMismatchError, match=r"share no linear layer"):
        gradient_products(stage, bert_stage(), asked())


def test_a_model_that_mixes_the_rows_is_refused() -> None:
    rows = [{"x": torch.ones(3, 4), "labels": torch.tensor(1.0)} for _ in range(2)]
    flat = Regression(lambda m, b: m(b["x"].flatten(0, 1)).reshape(len(b["x"]), -1).sum(1))
    stage = ModelStage(nn.Sequential(nn.Linear(4, 1)), flat, rows, stack)
    with pytest.raises(UnsupportedModelError, match=r"6 rows for 2 examples"):
        gradient_products(stage, stage, Queries([stack(list(rows))], flat.losses))


def test_kronfluence_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kronfluence", None)
    from lr_dist import extras
    from lr_dist.errors import MissingExtraError

    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "kronfluence" else find(name))
    with pytest.raises(MissingExtraError, match=r"lr-dist\[influence\]"):
        fit_factors(linear_stage(n=5), tmp_path)
