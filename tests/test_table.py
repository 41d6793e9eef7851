"""The table of layers: one row each, in wide and narrow terminals, and what it says of the optimizer's own rate."""

from __future__ import annotations

import io
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console

from lr_dist import LayerwiseLR
from lr_dist._distribution.table import LayerRow, print_layers

ROWS = [
    LayerRow("embeddings", 11_918_592, (3.3e-5,), "epoch 6"),
    LayerRow("layers.0", 1_774_464, (0.0,)),
    LayerRow("layers.1", 1_774_464, (1e-4, 1.6e-3), "epoch 2"),
    LayerRow("head", 770, (4e-4,), "epoch 0"),
]


def printed(width: int, rows: list[LayerRow] = ROWS, encoding: str = "utf-8", **options: Any) -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_layers(rows, title="LayerwiseLR: [/b]", console=Console(file=file, width=width), **options)
    file.seek(0)
    return file.read().splitlines()


def cells(lines: list[str]) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in lines if line.strip()}


def halves(module: Any) -> Any:
    decayed, rest = [p for p in module.parameters() if p.ndim > 1], [p for p in module.parameters() if p.ndim < 2]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=2e-5)


def of_a_fit(capsys: pytest.CaptureFixture[str], distribution: str, configure: Any = halves) -> list[str]:
    tiny.fit(tiny.Classifier(configure), LayerwiseLR(distribution), max_steps=1)
    return capsys.readouterr().out.splitlines()


def test_every_column_fits_into_80_characters() -> None:
    lines = printed(80)
    assert max(map(len, lines)) <= 80
    table = cells(lines)
    assert table["layer"] == ["learning", "rate", "ratio", "parameters", "%", "starts"]
    assert table["embeddings"] == ["3.3e-5", "0.0206", "11,918,592", "77.1", "epoch", "6"]
    assert table["layers.0"] == ["frozen", "1,774,464", "11.5"]
    # Groups of one layer with rates of their own, as in LoRA+.
    assert table["layers.1"] == ["1e-4", "/", "1.6e-3", "0.0625", "/", "1", "1,774,464", "11.5", "epoch", "2"]
    assert table["head"][2:4] == ["770", "<0.1"]
    assert lines[-1] == "15,468,290 parameters, 13,693,826 of them (88.5%) with a rate"
    assert lines[0] == "LayerwiseLR: [/b]"


@pytest.mark.parametrize("width", [120, 80, 70, 60, 50, 42])
def test_a_narrow_terminal_loses_columns_and_no_number(width: int) -> None:
    lines = printed(width, note="optimizer lr 2e-5 -> replaced by 3.3e-5 to 1.6e-3")
    table = cells(lines)
    titles = " ".join(table["layer"])
    kept = [title for title in ("ratio", "parameters", "%") if title in titles]
    assert len(kept) == 3 or width < 80
    assert kept in (["ratio", "parameters", "%"], ["ratio", "parameters"], ["parameters"], [])
    assert titles.startswith("learning rate")
    assert titles.endswith("starts")
    for row, rate in zip(ROWS, ("3.3e-5", "frozen", "1e-4", "4e-4"), strict=True):
        assert table[row.layer][0] == rate
        assert (f"{row.parameters:,}" in table[row.layer]) == ("parameters" in kept)
    assert all(len(line) <= width for line in lines if not line.startswith(("LayerwiseLR", "optimizer", "15,4")))


def test_a_terminal_without_unicode_gets_the_same_numbers() -> None:
    lines = printed(80, encoding="ascii")
    assert "".join(lines).isascii()
    assert [word for line in lines for word in line.split() if word == "11,918,592"] == ["11,918,592"]


def test_without_rates_there_are_no_columns_of_rates() -> None:
    assert cells(printed(80, [LayerRow("head", 3)]))["layer"] == ["parameters", "%"]


def test_weight_decay_halves_are_one_row_and_a_replaced_rate_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    lines = of_a_fit(capsys, "decay:lr=4e-4,factor=0.5")
    assert lines[1] == "optimizer lr 2e-5 -> replaced by 2.5e-5 to 4e-4"
    table = cells(lines)
    assert table["layers.2"] == ["2e-4", "0.5", "2,224", "28.0"]
    assert not any("no_decay" in line for line in lines)


def test_a_multiplied_rate_is_named_too(capsys: pytest.CaptureFixture[str]) -> None:
    lines = of_a_fit(capsys, "decay:lr=1,factor=0.5,relative=true")
    assert lines[1] == "optimizer lr 2e-5 -> multiplied by 0.0625 to 1"
    assert cells(lines)["embeddings"][:2] == ["1.25e-6", "0.0625"]


def test_one_rate_is_not_a_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert of_a_fit(capsys, "flat:lr=1e-4")[1] == "optimizer lr 2e-5 -> replaced by 1e-4"
