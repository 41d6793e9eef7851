"""RetentionMonitor: the right numbers, a training that does not notice, and exact resume."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from exact import Case, Saver, assert_same, run
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lr_dist import ExactResume
from lr_dist.errors import (
    ConfigurationError,
    InexactResumeWarning,
    ModelMismatchError,
    ResumeMismatchError,
    UnsupportedStrategyError,
)
from lr_dist.retention.cka import cka_by_layer
from lr_dist.retention.drift import drift
from lr_dist.retention.hidden_states import hidden_states
from lr_dist.retention.monitor import RetentionMonitor

LAYERS = ["embeddings", "layers.0", "layers.1", "layers.2", "head"]


def texts(count: int = 10) -> list[dict[str, Tensor]]:
    """Two batches of padded texts."""
    ids = torch.randint(1, 40, (count, 7), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(7) < torch.arange(count)[:, None] % 5 + 3).long()
    return [{"input_ids": ids[rows], "attention_mask": mask[rows]} for rows in torch.arange(count).chunk(2)]


def monitor(batches: Any = None, **options: Any) -> RetentionMonitor:
    if "every_n_epochs" not in options:
        options = {"every_n_steps": 2, **options}
    return RetentionMonitor(texts() if batches is None else batches, **options)


def adamw(module: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=2e-3)


def rows(watching: RetentionMonitor) -> list[Any]:
    return [replace(row, seconds=0.0) for row in watching.history]


def test_the_numbers_are_those_of_the_two_models(tmp_path: Path) -> None:
    module, watching = tiny.Classifier(adamw), monitor()
    before = copy.deepcopy(module.model)
    tiny.fit(module, watching, data=tiny.batches(5), logger=CSVLogger(tmp_path, "logs", "a"))
    assert [row.step for row in watching.history] == [0, 2, 4, 5]
    first, last = watching.history[0], watching.history[-1]
    assert list(first.drift) == LAYERS
    assert set(first.drift.values()) == {0.0}
    assert first.cka == pytest.approx(dict.fromkeys(LAYERS[:-1], 1.0), abs=1e-9)
    assert last.drift == pytest.approx(drift(before, module.model), rel=1e-5)
    assert min(last.drift.values()) > 0
    expected = cka_by_layer(hidden_states(before, texts()), hidden_states(module.model, texts()))
    assert last.cka == pytest.approx(expected, abs=1e-9)
    assert last.cka["layers.2"] < 0.9999
    logged = (tmp_path / "logs" / "a" / "metrics.csv").read_text().splitlines()
    assert {"drift/head", "cka/layers.1", "step"} <= set(logged[0].split(","))
    assert len(logged) == 1 + 4


@pytest.mark.parametrize("named", ["bare", "state dict"])
def test_a_given_reference_is_compared_with_instead(named: str) -> None:
    module, other = tiny.Classifier(adamw), tiny.bert(seed=4)
    watching = monitor(reference=other if named == "bare" else other.state_dict())
    before = copy.deepcopy(module.model)
    tiny.fit(module, watching, data=tiny.batches(4))
    assert watching.history[0].drift == pytest.approx(drift(other, before), rel=1e-5)
    assert watching.history[-1].drift == pytest.approx(drift(other, module.model), rel=1e-5)
    expected = cka_by_layer(hidden_states(other, texts()), hidden_states(module.model, texts()))
    assert watching.history[-1].cka == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ModelMismatchError, match=r"layer\.2.* is missing in it"):
        tiny.fit(tiny.Classifier(adamw), monitor(reference=tiny.bert(layers=2)))


def test_frozen_weights_count_in_the_size_of_their_layer() -> None:
    module, watching = tiny.Classifier(adamw), monitor()
    module.model.bert.encoder.layer[1].intermediate.requires_grad_(False)
    before = copy.deepcopy(module.model)
    tiny.fit(module, watching, data=tiny.batches(2))
    assert watching.history[-1].drift == pytest.approx(drift(before, module.model), rel=1e-5)


@pytest.mark.parametrize("every", [{"every_n_steps": 1}, {"every_n_epochs": 1}], ids=["steps", "epochs"])
def test_a_watched_fit_ends_bit_for_bit_where_the_other_does(every: dict[str, int]) -> None:
    # Dropout, a shuffled loader, validation, accumulation; numbers of Python, numpy and torch in every step.
    case = Case(
        data=lambda: tiny.shuffled(4),
        validation=lambda: tiny.batches(2, seed=9),
        options={"max_epochs": 2, "accumulate_grad_batches": 2},
    )
    shuffled = torch.utils.data.DataLoader(tiny.batches(3, seed=7).dataset, batch_size=4, shuffle=True)
    watching = monitor(shuffled, reference=tiny.bert(seed=4), **every)
    watched, plain = run(case, watching, layerwise=False), run(case, layerwise=False)
    assert len(watching.history) == (5 if "every_n_steps" in every else 3)
    assert_same(watched, plain)


def test_gradients_between_accumulated_batches_stay() -> None:
    seen: list[Tensor] = []

    class Looks(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(pl_module.model.classifier.weight.grad.clone())
            assert all(p.requires_grad for p in pl_module.parameters())
            assert pl_module.training

    def fitted(*callbacks: Any) -> list[Tensor]:
        seen.clear()
        tiny.fit(tiny.Classifier(adamw), *callbacks, Looks(), data=tiny.batches(4), accumulate_grad_batches=4)
        return list(seen)

    watched, plain = fitted(monitor(every_n_steps=1)), fitted()
    assert all(torch.equal(one, other) for one, other in zip(watched, plain, strict=True))


@pytest.mark.parametrize(
    ("hook", "every", "given"),
    [
        ("on_train_batch_end", {"every_n_steps": 3}, False),
        ("on_train_batch_end", {"every_n_epochs": 1}, True),
        ("on_train_epoch_end", {"every_n_epochs": 1}, False),
    ],
)
def test_a_resumed_fit_measures_and_ends_as_the_unbroken_one(
    hook: str, every: dict[str, int], given: bool, tmp_path: Path
) -> None:
    case = Case(data=lambda: tiny.shuffled(4), options={"max_epochs": 2})
    options: dict[str, Any] = {**every, **({"reference": tiny.bert(seed=4)} if given else {})}
    saver, watching = Saver(tmp_path, hook), monitor(**options)
    unbroken = run(case, saver, ExactResume(), watching, layerwise=False)
    chosen = [path for (_, batches), path in saver.paths.items() if batches in (3, 4)]
    assert chosen
    for path in chosen:
        again = monitor(**options)
        resumed = run(case, ExactResume(), again, layerwise=False, seed=2, ckpt=path, weights_only=True)
        assert rows(again) == rows(watching), path.name
        assert_same(resumed, unbroken)


def test_a_checkpoint_of_another_monitor_or_of_none(tmp_path: Path) -> None:
    def saved(*callbacks: Any) -> Path:
        path = tmp_path / f"{len(callbacks)}.ckpt"
        tiny.fit(tiny.Classifier(adamw), *callbacks, data=tiny.batches(4)).save_checkpoint(path)
        return path

    path = saved(monitor())
    for other in (monitor(reference=tiny.bert(seed=1)), monitor(pool="tokens")):
        with pytest.raises(ResumeMismatchError, match="'pool': 'mean'"):
            tiny.fit(tiny.Classifier(adamw), other, data=tiny.batches(4), ckpt=path, max_epochs=2)
    watching = monitor()
    with pytest.warns(InexactResumeWarning, match="count from the step at which this run resumes"):
        tiny.fit(tiny.Classifier(adamw), watching, data=tiny.batches(4), ckpt=saved(), max_epochs=2)
    assert [row.step for row in watching.history] == [4, 6, 8]
    assert set(watching.history[0].drift.values()) == {0.0}


def test_plain_texts_are_tokenised_once(tmp_path: Path) -> None:
    from transformers import BertTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "red", "blue"],
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    sentences = ["the cat sat on the mat", "a dog ran", "the red mat", "a blue cat ran on the red mat", "dog"]
    watching = RetentionMonitor(sentences, tokenizer=tokenizer, every_n_steps=2, pool="tokens")
    tiny.fit(tiny.Classifier(adamw), watching, data=tiny.batches(2))
    assert list(watching.history[-1].cka) == LAYERS[:-1]
    for wrong, words_of_error in (
        ({"texts": sentences}, "tokenizer=..."),
        ({"texts": [], "tokenizer": tokenizer}, "no texts"),
        ({"texts": ["a cat", " "], "tokenizer": tokenizer}, "Text 1 is empty"),
        ({"texts": texts(), "tokenizer": tokenizer}, "Leave it out"),
        ({"texts": iter(texts())}, "list of batches"),
        ({"texts": "a cat"}, "list of plain texts"),
        ({"texts": None, "pool": "median"}, "pool must be"),
        ({"texts": None, "every_n_steps": 0}, "every_n_steps"),
        ({"texts": None, "every_n_steps": 1, "every_n_epochs": 1}, "not both"),
    ):
        with pytest.raises(ConfigurationError, match=words_of_error):
            RetentionMonitor(**wrong)


def test_too_few_texts_and_unknown_strategies_are_named_before_a_step() -> None:
    module = tiny.Classifier(adamw)
    before = tiny.weights(module)
    with pytest.raises(ConfigurationError, match="at least 4 rows"):
        tiny.fit(module, monitor(texts(3)))
    data = tiny.batches(3)
    with pytest.raises(ConfigurationError, match="training's own loader"):
        tiny.fit(module, monitor(data), data=data)
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())
    from lightning.pytorch.strategies import FSDPStrategy

    class Stands(FSDPStrategy):
        """FSDP1 itself wants a GPU."""

    trainer = tiny.trainer()
    trainer.strategy.__class__ = Stands
    with pytest.raises(UnsupportedStrategyError, match=r"ModelParallelStrategy \(FSDP2\)"):
        monitor().setup(trainer, module, "fit")


def test_without_texts_the_drift_alone_is_measured() -> None:
    watching = RetentionMonitor(every_n_epochs=1)
    tiny.fit(tiny.Classifier(adamw), watching, data=tiny.batches(3))
    assert [row.step for row in watching.history] == [0, 3]
    assert watching.history[-1].cka == {}
    assert watching.history[-1].drift["head"] > 0
