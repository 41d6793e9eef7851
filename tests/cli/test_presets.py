"""What `lr-dist presets list | show | plot` prints and writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from lr_dist import LRDistribution
from lr_dist.cli.presets import list_command, plot_command, show_command
from lr_dist.errors import ConfigurationError, LayerCountError, UnknownPresetError, UnwritableFileError
from lr_dist.presets import Preset, Provenance


@pytest.fixture(params=[80, 120])
def console(request: pytest.FixtureRequest) -> Console:
    return Console(width=request.param, record=True, highlight=False)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preset with words that rich would read as markup, and a broken one."""
    folder = tmp_path / "own"
    folder.mkdir()
    source = Provenance("[bold]", "m", ("a>b",), None, 3, "1", "2026-01-31", ("[/nothing]", "second"))
    distribution = LRDistribution.flat(1e-4).freeze("embeddings", "layers.0")
    preset = Preset("a-marked-up", "Says [/bold] and [red].", distribution, source)
    (folder / "a-marked-up.yaml").write_text(preset.to_yaml())
    (folder / "broken.yaml").write_text("a: [")
    monkeypatch.setenv("LR_DIST_PRESETS", str(folder))
    return folder


def test_the_list_names_every_preset_its_kind_and_source_and_what_is_broken(console: Console) -> None:
    list_command(console)
    text = console.export_text()
    rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines()]
    kinds = {row[1]: (row[2], row[3]) for row in rows if len(row) == 5 and row[2]}
    assert kinds["kenneweg2022"] == ("absolute", "shipped")
    assert kinds["kenneweg2022-relative"] == ("relative", "shipped")
    assert "Says [/bold] and" in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("broken")] == [["broken:", "broken:"]]
    # A clipped table would lose its right edge.
    assert all(len(line) <= console.width for line in text.splitlines() if "│" in line or "━" in line)
    assert all(line.rstrip().endswith("│") for line in text.splitlines() if line.startswith("│"))


def test_show_prints_purpose_provenance_and_the_rate_of_every_group(console: Console) -> None:
    show_command("a-marked-up", layers=3, console=console)
    text = console.export_text()
    assert "Says [/bold] and [red]." in text
    words = [line.split() for line in text.splitlines()]
    assert ["trials", "not", "stated"] in words
    assert ["evidence", "[/nothing]"] in words
    cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in text.splitlines() if line.startswith("│")]
    expected = [["embeddings", "frozen"], ["layers.0", "frozen"], ["layers.1", "0.0001"], ["layers.2", "0.0001"]]
    assert cells == [*expected, ["head", "0.0001"]]


def test_show_draws_longer_bars_for_higher_rates(console: Console) -> None:
    show_command("kenneweg2022-relative", console=console)
    text = console.export_text()
    bars = {line.split("│")[1].strip(): line.count("━") for line in text.splitlines() if line.startswith("│")}
    assert "x optimizer's rate" in text
    assert (bars["layers.2"], bars["head"]) == (1, 28)
    assert bars["layers.0"] == bars["layers.1"] > bars["embeddings"] > bars["layers.3"]


def test_show_refuses_an_unknown_name_and_a_wrong_number_of_layers(console: Console) -> None:
    with pytest.raises(UnknownPresetError):
        show_command("nothing", console=console)
    with pytest.raises(LayerCountError):
        show_command("kenneweg2022", layers=0, console=console)
    assert console.export_text() == ""


def test_plot_writes_a_png_and_says_where(console: Console, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new folder" / "figure.png"
    assert plot_command("kenneweg2022", path, layers=24, console=console) == path
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert console.export_text().strip() == f"wrote {path}"


def test_plot_refuses_another_ending_and_a_place_that_cannot_be_written(console: Console, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigurationError, match=r"must end in \.png"):
        plot_command("kenneweg2022", tmp_path / "figure.pdf", console=console)
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableFileError, match="cannot be written"):
        plot_command("kenneweg2022", tmp_path / "file" / "figure.png", console=console)


def test_show_prints_schedule_limits_and_a_table_for_every_phase(console: Console) -> None:
    show_command("lp-ft", layers=2, console=console)
    text = " ".join(console.export_text().split())
    assert "schedule cosine to 0, 20 epochs" in text
    assert "not shown for Text, transformers with Adam" in text
    assert "phase 1 (50%): relative rates on 2 layers" in text
    assert "phase 2 (the rest): relative rates on 2 layers" in text


def test_show_takes_any_plan_and_any_file(console: Console, own_folder: Path) -> None:
    show_command("flat:lr=1e-4 | flat:lr=2e-5", layers=1, console=console)
    text = console.export_text()
    assert "stage 1: absolute rates" in text
    assert "stage 2 and later: absolute rates" in text
    show_command(str(own_folder / "a-marked-up.yaml"), layers=1, console=console)
    assert "Says [/bold] and [red]." in console.export_text()


def test_by_default_a_preset_is_shown_on_the_depth_it_was_made_for(console: Console) -> None:
    show_command("electra-large", console=console)
    assert "on 24 layers" in console.export_text()
    show_command("flat:lr=1e-4", console=console)
    assert "on 12 layers" in console.export_text()


def test_the_list_marks_the_published_profile_for_what_it_is(console: Console) -> None:
    list_command(console)
    text = " ".join(console.export_text().replace("│", " ").split())
    assert "Caution: Found on BERT base and full tasks by the paper. A small model learns nothing" in text
    assert "relative plan" in text


def test_plot_draws_every_phase_and_the_recorded_spread(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    bands: list[tuple[list[float], list[float]]] = []
    draw = Axes.fill_between

    def record(axes: Axes, x: range, low: list[float], high: list[float], **options: object) -> object:
        bands.append((low, high))
        return draw(axes, x, low, high, **options)

    monkeypatch.setattr(Axes, "fill_between", record)
    plot_command("lp-ft", tmp_path / "phases.png", console=console)
    assert bands == []
    plot_command("kenneweg2022", tmp_path / "spread.png", console=console)
    [(low, high)] = bands
    # Embeddings: 3.29745e-6 with a factor of 3.51 between the pairs.
    assert (low[0], high[0]) == pytest.approx((3.29745e-6 / 3.51, 3.29745e-6 * 3.51))
    with pytest.raises(ConfigurationError, match="no name for its figure"):
        plot_command("flat:lr=1e-4", console=console)
