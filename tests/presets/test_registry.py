"""Presets: the schema, the sources, their names, and whatever stands where a distribution is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lr_dist import LRDistribution, load_preset, register_preset
from lr_dist.errors import (
    DuplicatePresetError,
    InvalidDistributionError,
    InvalidPresetError,
    InvalidRateError,
    InvalidYAMLError,
    LRDistError,
    UnknownPresetError,
    UnreadableFileError,
)
from lr_dist.presets import (
    Preset,
    Provenance,
    get_preset,
    list_presets,
    read_preset,
    resolve_distribution,
    unregister_preset,
)
from lr_dist.yaml_io import dump_yaml

KENNEWEG = ["kenneweg2022", "kenneweg2022-relative", "kenneweg2022-taskshift", "kenneweg2022-taskshift-relative"]


def make_preset(name: str = "mine", lr: float = 3e-5) -> Preset:
    provenance = Provenance("a study", "bert", ("sst2>rte",), 50, None, "1", "2026-01-31", ("result.json",))
    return Preset(name, "For the tests.", LRDistribution.decay(lr, 0.5), provenance)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own folder of presets."""
    path = tmp_path / "own presets"
    path.mkdir()
    monkeypatch.setenv("LR_DIST_PRESETS", str(path))
    return path


@pytest.fixture(autouse=True)
def nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("LR_DIST_PRESETS", raising=False)
    yield
    for entry in list_presets():
        if entry.source.startswith("registered"):
            unregister_preset(entry.name)


def save(preset: Preset, folder: Path, name: str | None = None) -> Path:
    path = folder / (name or f"{preset.name}.yaml")
    path.write_text(preset.to_yaml(), encoding="utf-8")
    return path


# Schema --------------------------------------------------------------------------------------------------


def test_a_preset_reads_back_from_its_own_yaml(tmp_path: Path) -> None:
    preset = make_preset()
    assert read_preset(save(preset, tmp_path)) == preset


@pytest.mark.parametrize("key", ["trials", "seeds"])
@pytest.mark.parametrize("count", [0, True, 2.0, 10**13, pytest.param(10**5000, id="5000 digits")])
def test_a_count_that_no_file_could_hold_is_refused(key: str, count: Any) -> None:
    data = make_preset().provenance.to_dict()
    with pytest.raises(InvalidPresetError, match=f"provenance.{key} must be a whole number"):
        Provenance.from_dict({**data, key: count})


@pytest.mark.parametrize("version", [1.0, True, "1", None, 2])
def test_only_the_whole_number_1_is_a_schema_version(version: Any) -> None:
    with pytest.raises(InvalidPresetError, match="schema_version is"):
        Preset.from_dict({**make_preset().to_dict(), "schema_version": version})


@pytest.mark.parametrize("name", [None, 5, [], {}, b"mine"])
def test_a_name_that_is_no_text_is_unknown(name: Any) -> None:
    for look_up in (load_preset, unregister_preset):
        with pytest.raises(UnknownPresetError):
            look_up(name)
    with pytest.raises(UnreadableFileError, match="cannot be read"):
        read_preset(name)


def test_texts_that_look_like_numbers_stay_texts_in_a_file(tmp_path: Path) -> None:
    provenance = Provenance("1e-5", "08", ("null",), None, 3, "1.10", "2026-01-31", ("12:30", "true"))
    preset = Preset("1e5", "~", LRDistribution.flat(1e-5), provenance)
    assert read_preset(save(preset, tmp_path)) == preset


def edited(**changes: Any) -> dict[str, Any]:
    """The data of a good preset with some keys changed; `a__b` is key b in a; ... removes."""
    data = make_preset().to_dict()
    for key, value in changes.items():
        *outer, last = key.split("__")
        target = data[outer[0]] if outer else data
        target[last] = value
        if value is ...:
            del target[last]
    return data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "unknown key 'colour' in the preset"),
        ({"purpose": ...}, "missing key 'purpose' in the preset"),
        ({"schema_version": 2}, "schema_version is 2; this lr-dist reads version 1"),
        ({"schema_version": "1"}, "schema_version is '1'"),
        ({"schema_version": True}, "schema_version is True"),
        ({"name": "Big"}, "name 'Big' does not match"),
        ({"name": "../etc/passwd"}, "name '../etc/passwd' does not match"),
        ({"name": "a" * 65}, "does not match"),
        ({"name": "mine\n"}, "does not match"),
        ({"name": 7}, "name 7 does not match"),
        ({"purpose": ""}, "purpose must be one line"),
        ({"purpose": "two\nlines"}, "purpose must be one line"),
        ({"purpose": "red \x1b[31m"}, "without control characters"),
        ({"purpose": "x" * 161}, "purpose has 161 characters"),
        ({"distribution": {"family": "flat"}}, "distribution: flat needs lr"),
        ({"distribution": {"family": "flat", "lr": -1}}, "distribution: lr=-1 is not a learning rate"),
        ({"distribution": "flat:lr=1"}, "distribution: A distribution is a mapping"),
        ({"provenance": None}, "provenance must be a mapping"),
        ({"provenance__seed": 1}, "unknown key 'seed' in provenance"),
        ({"provenance__evidence": ...}, "missing key 'evidence' in provenance"),
        ({"provenance__source": 3}, "provenance.source must be one line"),
        ({"provenance__tasks": "sst2"}, "provenance.tasks must be a list"),
        ({"provenance__tasks": []}, "provenance.tasks must be a list of at least one"),
        ({"provenance__evidence": ["ok", 3]}, r"provenance.evidence\[1\] must be one line"),
        ({"provenance__trials": 0}, "provenance.trials must be a whole number"),
        ({"provenance__trials": 1.5}, "provenance.trials must be a whole number"),
        ({"provenance__seeds": True}, "provenance.seeds must be a whole number"),
        ({"provenance__version": 1.0}, "provenance.version must be one line of text"),
        ({"provenance__date": "2026-02-30"}, "provenance.date must be a day"),
        ({"provenance__date": "20260201"}, "provenance.date must be a day"),
        ({"provenance__date": 20260201}, "provenance.date must be a day"),
    ],
)
def test_a_preset_that_breaks_the_schema_raises_with_file_and_key(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(dump_yaml(edited(**changes)), encoding="utf-8")
    with pytest.raises(InvalidPresetError, match=message) as info:
        read_preset(path)
    assert str(info.value).startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["", "- a\n- b", "7", "just text", "null"])
def test_a_file_that_holds_no_mapping_is_no_preset(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InvalidPresetError, match="must be a mapping with the keys schema_version"):
        read_preset(path)


def test_hostile_yaml_in_a_preset_is_refused_with_the_file_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    good = make_preset().to_yaml()
    for text in (good + "name: other\n", good.replace("name: mine", "name: !!python/name:os.system"), good + "x: &a 1"):
        path.write_text(text)
        with pytest.raises(InvalidYAMLError, match=r"mine\.yaml"):
            read_preset(path)


# Shipped -------------------------------------------------------------------------------------------------


def test_the_shipped_presets_load_and_serve_6_12_and_24_layers() -> None:
    entries = [entry for entry in list_presets() if entry.source == "shipped"]
    assert {*KENNEWEG, "electra", "mae-vit-b", "ulmfit", "lp-ft"} <= {entry.name for entry in entries}
    assert [entry.problem for entry in entries] == [None] * len(entries)
    for entry in entries:
        for num_layers in (6, 12, 24):
            assert len(load_preset(entry.name).rates(num_layers)) == num_layers + 2
        relative = entry.name.endswith("-relative") or entry.name in ("ulmfit", "lp-ft")
        assert load_preset(entry.name).relative == relative
    assert [load_preset(name).family for name in KENNEWEG] == ["grouped"] * 4


def test_the_relative_presets_are_the_absolute_ones_at_the_papers_flat_rate() -> None:
    for name in ("kenneweg2022", "kenneweg2022-taskshift"):
        at_1e_5 = load_preset(f"{name}-relative").absolute(1e-5).rates(12)
        assert at_1e_5 == pytest.approx(load_preset(name).rates(12), rel=1e-12)


def test_get_preset_tells_where_a_preset_comes_from() -> None:
    preset = get_preset("kenneweg2022")
    assert preset.distribution == load_preset("kenneweg2022")
    assert preset.provenance.trials == 159
    assert "tuned low flat rate" in " ".join(preset.provenance.evidence)


def test_an_unknown_name_raises_and_suggests_close_ones() -> None:
    with pytest.raises(UnknownPresetError, match=r"no preset 'keneweg2022'\. Close names: kenneweg2022"):
        load_preset("keneweg2022")
    with pytest.raises(UnknownPresetError, match=r"The presets are .*kenneweg2022, kenneweg2022-relative"):
        load_preset("zzz")
    with pytest.raises(UnknownPresetError):
        load_preset(["kenneweg2022"])  # type: ignore[arg-type]


# Own folders ---------------------------------------------------------------------------------------------


def test_a_preset_in_an_own_folder_loads_by_its_name(folder: Path) -> None:
    path = save(make_preset(), folder)
    assert load_preset("mine") == LRDistribution.decay(3e-5, 0.5)
    assert [(e.name, e.source, e.problem) for e in list_presets() if e.name == "mine"] == [("mine", str(path), None)]


def test_several_folders_are_searched_and_one_named_twice_is_no_duplicate(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    other.mkdir()
    link.symlink_to(other)
    save(make_preset("one"), folder)
    save(make_preset("two"), other, "two.yml")
    monkeypatch.setenv("LR_DIST_PRESETS", os.pathsep.join(map(str, [folder, "", other, other, link])))
    assert load_preset("one") == load_preset("two") == make_preset().distribution


def test_two_files_of_one_name_raise_and_both_are_named(folder: Path) -> None:
    first, second = save(make_preset(), folder), save(make_preset(lr=1e-3), folder, "mine.yml")
    with pytest.raises(DuplicatePresetError) as info:
        load_preset("mine")
    assert str(first) in str(info.value)
    assert str(second) in str(info.value)
    assert ["is offered by" in str(e.problem) for e in list_presets() if e.name == "mine"] == [True, True]


def test_a_file_with_a_shipped_name_raises_and_both_places_are_named(folder: Path) -> None:
    path = save(make_preset("kenneweg2022"), folder)
    with pytest.raises(DuplicatePresetError, match="offered by lr-dist itself") as info:
        load_preset("kenneweg2022")
    assert str(path) in str(info.value)


def test_broken_files_leave_every_other_preset_loadable_and_are_listed_as_broken(folder: Path) -> None:
    (folder / "broken.yaml").write_text("a: [")
    (folder / "Not A Name.yaml").write_text("")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\0")
    (folder / "directory.yaml").mkdir()
    (folder / ".#lock.yaml").symlink_to(folder / "nowhere")
    (folder / "notes.txt").write_text("no preset")
    save(make_preset("renamed"), folder, "other-name.yaml")
    save(make_preset("good"), folder)
    assert load_preset("good") == make_preset().distribution
    assert load_preset("kenneweg2022").family == "grouped"
    problems = {e.name: e.problem for e in list_presets() if e.source != "shipped"}
    assert list(problems) == ["Not A Name", "binary", "broken", "directory", "good", "other-name"]
    assert problems.pop("good") is None
    assert all(str(folder) in str(problem) for problem in problems.values())
    with pytest.raises(InvalidYAMLError, match=r"broken\.yaml is not valid YAML"):
        load_preset("broken")
    with pytest.raises(InvalidPresetError, match="name is 'renamed', but the file's name says 'other-name'"):
        load_preset("other-name")
    with pytest.raises(UnreadableFileError, match="Is a directory"):
        load_preset("directory")


def test_a_folder_that_does_not_exist_is_named_where_a_preset_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LR_DIST_PRESETS", str(tmp_path / "nowhere"))
    assert load_preset("kenneweg2022").family == "grouped"
    with pytest.raises(UnknownPresetError, match=r"Not searched.*nowhere cannot be read as a folder"):
        load_preset("mine")
    assert [e.name for e in list_presets() if e.problem] == [f"LR_DIST_PRESETS {tmp_path / 'nowhere'}"]


# Registered ----------------------------------------------------------------------------------------------


def test_a_registered_preset_loads_until_it_is_taken_back() -> None:
    register_preset(make_preset())
    assert load_preset("mine") == LRDistribution.decay(3e-5, 0.5)
    unregister_preset("mine")
    with pytest.raises(UnknownPresetError):
        load_preset("mine")
    with pytest.raises(UnknownPresetError, match="registered: none"):
        unregister_preset("mine")


def test_registering_a_name_twice_raises_and_names_both_lines() -> None:
    register_preset(make_preset())
    with pytest.raises(DuplicatePresetError, match=r"registered at .*test_registry.py:\d+ and by registered at"):
        register_preset(make_preset())
    with pytest.raises(DuplicatePresetError, match="lr-dist itself"):
        register_preset(make_preset("kenneweg2022"))
    with pytest.raises(InvalidPresetError, match="takes a Preset"):
        register_preset(LRDistribution.flat(1.0))  # type: ignore[arg-type]


# Entry points --------------------------------------------------------------------------------------------


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Install a package as pip would lay it down: a module and its dist-info, in a folder on sys.path."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = set(sys.modules)

    def lay_down(module: str, code: str) -> Path:
        (site / f"{module}.py").write_text(code)
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[lr_dist.presets]\n{module} = {module}:PRESETS\n")
        return site

    yield lay_down
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_packages_entry_point_may_name_a_folder(install: Callable[[str, str], Path]) -> None:
    site = install("lrd_folder", "from pathlib import Path\nPRESETS = Path(__file__).parent / 'data'\n")
    (site / "data").mkdir()
    path = save(make_preset("packaged"), site / "data")
    assert load_preset("packaged") == make_preset().distribution
    assert next(e.source for e in list_presets() if e.name == "packaged") == str(path)


CODE = """
from lr_dist import LRDistribution
from lr_dist.presets import Preset, Provenance
source = Provenance("s", "m", ("t",), 1, 1, "1", "2026-01-31", ("e",))
PRESETS = [Preset("packaged", "p", LRDistribution.flat(7e-5), source)]
"""


def test_a_packages_entry_point_may_be_a_list_of_presets(install: Callable[[str, str], Path]) -> None:
    install("lrd_listed", CODE)
    assert load_preset("packaged") == LRDistribution.flat(7e-5)
    with pytest.raises(DuplicatePresetError, match="entry point lrd_listed = lrd_listed:PRESETS and by registered"):
        register_preset(make_preset("packaged"))


def test_a_broken_package_is_listed_and_takes_no_preset_away(install: Callable[[str, str], Path]) -> None:
    install("lrd_raises", "raise RuntimeError('no license')")
    install("lrd_wrong", "PRESETS = 7")
    assert load_preset("kenneweg2022").family == "grouped"
    problems = {e.source: e.problem for e in list_presets() if e.problem}
    assert problems["entry point lrd_raises = lrd_raises:PRESETS"] == "RuntimeError: no license"
    assert "or a list of Preset, not 7" in str(problems["entry point lrd_wrong = lrd_wrong:PRESETS"])
    with pytest.raises(UnknownPresetError, match=r"Not searched.*no license"):
        load_preset("mine")


# Whatever stands where a distribution is asked for -------------------------------------------------------


def test_every_way_of_writing_a_distribution_is_resolved(tmp_path: Path) -> None:
    distribution = LRDistribution.decay(3e-5, 0.5)
    plain, preset = tmp_path / "plain.yaml", save(make_preset(), tmp_path, "any-name.YML")
    distribution.save(plain)
    assert resolve_distribution(distribution) is distribution
    for spec in (distribution.to_dict(), str(distribution), str(plain), plain, str(preset), make_preset().to_dict()):
        assert resolve_distribution(spec) == distribution
    assert resolve_distribution(" kenneweg2022 ") == load_preset("kenneweg2022")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("nonsense", UnknownPresetError, "no preset 'nonsense'"),
        ("", UnknownPresetError, "no preset ''"),
        ("missing.yaml", UnreadableFileError, "'missing.yaml' cannot be read: No such file"),
        (r"C:\missing.yaml", UnreadableFileError, "cannot be read"),
        ("a\0b.yaml", UnreadableFileError, "cannot be read"),
        ("flat", InvalidDistributionError, "'flat' is a family without its values"),
        (7, InvalidDistributionError, "7 is not a distribution"),
        (None, InvalidDistributionError, "None is not a distribution"),
    ],
)
def test_what_cannot_be_resolved_raises_and_explains_all_three_ways(
    spec: Any, error: type[LRDistError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message.replace("\\", "\\\\")) as info:
        resolve_distribution(spec)
    assert "a preset's name" in str(info.value)
    assert ".yaml or .yml" in str(info.value)
    assert "family:key=value" in str(info.value)


def test_a_file_with_a_bad_distribution_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("family: flat\nlr: -1")
    with pytest.raises(InvalidRateError, match=r"bad\.yaml: lr=-1 is not a learning rate"):
        resolve_distribution(path)
    path.write_text("<<: {lr: 1}\nfamily: flat\n")
    with pytest.raises(InvalidDistributionError, match=r"bad\.yaml: flat has no key '<<'"):
        resolve_distribution(path)
    path.write_text("")
    with pytest.raises(InvalidDistributionError, match=r"bad\.yaml: A distribution is a mapping"):
        resolve_distribution(path)


# What else may lie among the presets ----------------------------------------------------------------------


def test_a_name_that_is_not_utf8_hides_no_other_preset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lr_dist.cli import main

    (folder / os.fsdecode(b"\xff\xfe.yaml")).write_text("a: 1")
    (folder / "\x1b[2J.yaml").write_text("a: 1")
    save(make_preset(), folder)
    assert load_preset("mine") == make_preset().distribution
    with pytest.raises(UnknownPresetError, match="nothing-like-it"):
        load_preset("nothing-like-it")
    assert main(["presets", "list"]) == 0
    printed = capsys.readouterr().out
    assert "mine" in printed
    assert "\\xff\\xfe" in printed
    assert "\x1b" not in printed


def test_a_pipe_among_the_presets_is_listed_as_broken_and_never_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.yaml")
    save(make_preset(), folder)
    (broken,) = [entry for entry in list_presets() if entry.name == "pipe"]
    assert "is not a file" in str(broken.problem)
    assert load_preset("mine") == make_preset().distribution
    with pytest.raises(UnreadableFileError):
        load_preset("pipe")


@pytest.mark.parametrize(
    "error", ["SystemExit(3)", "GeneratorExit()", "RecursionError('deep')", "Exception('\\x1b[2J')"]
)
def test_an_entry_point_that_ends_the_process_hides_no_preset(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_presets.py").write_text(f"raise {error}")
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lr_dist.presets]\ntheirs = their_presets:presets\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_preset("kenneweg2022") is not None
    (broken,) = [entry for entry in list_presets() if "theirs" in entry.name]
    assert broken.preset is None
    assert "\x1b" not in str(broken.problem)
