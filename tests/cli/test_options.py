"""Options of the commands come from the frozen configurations: name, type, default and help are written there only."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ActionConfigFile, ArgumentParser

import lr_dist.cli
from lr_dist.cli import COMMANDS, amalgamate, compare, main, search
from lr_dist.cli.options import add_options, field_docstrings, options_of, read_options
from lr_dist.knowledge.amalgamation.config import AmalgamationConfig
from lr_dist.search.trials.config import SearchConfig
from lr_dist.sequence.compare_config import CompareConfig
from lr_dist.sequence.settings import SequenceSettings

ROOT = Path(lr_dist.cli.__file__).parent
CONFIGS = {
    "amalgamate": (amalgamate, AmalgamationConfig),
    "compare": (compare, CompareConfig),
    "search": (search, SearchConfig),
}


@dataclass(frozen=True)
class Inner:
    steps: int = 3
    """Number of steps, 100% of them."""

    kind: str = field(default="a", metadata={"option": "inner"})
    """Kind of the inner part."""


@dataclass(frozen=True)
class Base:
    named_last: bool = field(default=False, kw_only=True)
    """Of the base class,
    in two lines."""


@dataclass(frozen=True)
class Outer(Base):
    names: tuple[str | Mapping[str, Any], ...] = ()
    """Names, `quoted`."""

    sizes: tuple[int, ...] = (1, 2)
    """Sizes."""

    inner: Inner = field(default_factory=lambda: Inner(steps=7))

    rates: tuple[float, ...] = field(default=(1e-4,), metadata={"brackets": True})
    """Rates."""

    pairs: tuple[tuple[str, ...], ...] = ()
    """Pairs."""

    share: int | float | None = None
    """A share."""

    fixed: Mapping[str, float] = field(default_factory=dict)
    """Fixed values."""


def parse(*arguments: str) -> Outer:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile)
    add_options(parser, Outer)
    return read_options(Outer, parser.parse_args(arguments))


def leaves(config: type) -> list[str]:
    """The docstring of each field, those of dataclasses in fields included."""
    found = []
    for each in fields(config):
        inner = each.default_factory() if callable(each.default_factory) else None
        found += leaves(type(inner)) if is_dataclass(inner) else [field_docstrings(config)[each.name]]
    return found


def typed(file: Path) -> list[tuple[str, str]]:
    """Each option that a file types by hand, with its help."""
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    found = []
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            flag = call.args[0]
            if isinstance(flag, ast.Constant):
                helps = [ast.unparse(word.value) for word in call.keywords if word.arg == "help"]
                found.append((flag.value, helps[0] if helps else ""))
    return found


def test_without_options_the_dataclass_has_its_defaults() -> None:
    assert parse() == Outer(inner=Inner(7))


def test_values_of_every_kind_are_read_as_the_fields_hold_them() -> None:
    words = ["--names", "x", "{y: 1}", "--sizes", "4", "5", "6", "--steps", "9", "--inner", "b", "--named-last", "true"]
    words += ["--rates", "[1e-3, 2]", "--pairs", "[[a, b], [c, d]]", "--share", "0.25", "--fixed", "{head: 0}"]
    expected = Outer(
        ("x", {"y": 1}), (4, 5, 6), Inner(9, "b"), (1e-3, 2.0), (("a", "b"), ("c", "d")), 0.25, {"head": 0.0}
    )
    assert parse(*words) == replace(expected, named_last=True)


def test_a_yaml_file_has_the_names_of_the_fields(tmp_path: Path) -> None:
    file = tmp_path / "outer.yaml"
    file.write_text(
        "names: [x]\nsizes: [4]\nsteps: 9\ninner: b\nrates: [1.0]\nnamed_last: true\npairs: null\nshare: 5\n"
    )
    assert parse("--config", str(file)) == Outer(("x",), (4,), Inner(9, "b"), (1.0,), (), 5, named_last=True)


def test_options_are_in_the_order_of_the_constructor_with_their_help() -> None:
    options = list(options_of(Outer))
    names = ["names", "sizes", "steps", "inner", "rates", "pairs", "share", "fixed", "named_last"]
    assert [option.name for option in options] == names
    helps = {option.flag: option.help for option in options}
    assert helps["--names"] == "Names, quoted."
    assert helps["--named-last"] == "Of the base class, in two lines."
    parser = ArgumentParser()
    add_options(parser, Outer)
    assert "Number of steps, 100% of them. (type" in " ".join(parser.format_help().split())


@pytest.mark.parametrize("command", CONFIGS)
def test_every_field_is_an_option_with_its_default_and_its_docstring(command: str) -> None:
    module, config = CONFIGS[command]
    options = list(options_of(config))
    assert len(options) == len(leaves(config))
    assert {option.help for option in options} == {text.replace("`", "") for text in leaves(config)}
    actions = {text: action for action in module.parser()._actions for text in action.option_strings}
    for option in options:
        assert actions[option.flag].default == option.default
        assert actions[option.flag].help == option.help
        assert re.match(r"[A-Z].*[.]$", option.help), f"{option.flag}: help is a sentence, not {option.help!r}"


@pytest.mark.parametrize("command", CONFIGS)
def test_defaults_are_those_of_the_dataclass(command: str) -> None:
    module, config = CONFIGS[command]
    parser = module.parser()
    if config is CompareConfig:
        values: dict[str, Any] = {"tasks": ("a", "b"), "distributions": ("flat:lr=1e-4",)}
        words = ["--tasks", "a", "b", "--distributions", "flat:lr=1e-4"]
    elif config is AmalgamationConfig:
        values = {"teachers": ("a", "b"), "text": "c"}
        words = ["--teachers", "a", "b", "--text", "c"]
    else:
        values, words = {"sequences": (("a", "b"),)}, ["--sequences", "[[a, b]]"]
    assert read_options(config, parser.parse_args(words)) == config(**values)


def test_a_share_of_the_training_examples_may_be_set_aside() -> None:
    words = ["--tasks", "a", "b", "--distributions", "flat:lr=1e-4", "--dev-size"]
    read = [
        read_options(CompareConfig, compare.parser().parse_args([*words, size])).dev_size for size in ("200", "0.1")
    ]
    assert read == [200, 0.1]
    assert [type(size) for size in read] == [int, float]


def test_a_list_may_be_empty_where_the_dataclass_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--tasks"]) == 2
    assert "ConfigurationError: Nothing to learn: give --tasks" in capsys.readouterr().err
    assert read_options(SearchConfig, search.parser().parse_args(["--sequences", "[[a, b]]", "--queued"])).queued == ()


def test_the_method_of_a_search_is_a_part_of_its_identity() -> None:
    words = ["--sequences", "[[a, b]]", "--method", "l2-sp:alpha=0.5"]
    config = read_options(SearchConfig, search.parser().parse_args(words))
    assert config.methods == ("l2-sp:alpha=0.5",)
    assert config.identity("w", [])["settings"]["method"] == "l2-sp:alpha=0.5"
    assert replace(config, method="finetune").identity("w", [])["settings"]["method"] == "finetune"


def test_a_search_scores_on_dev_and_a_comparison_on_validation() -> None:
    of_search = {option.name: option.default for option in options_of(SearchConfig)}
    of_compare = {option.name: option.default for option in options_of(CompareConfig)}
    assert (of_search["evaluate_on"], of_compare["evaluate_on"]) == ("dev", "validation")
    assert SequenceSettings().evaluate_on == "validation"


def test_no_option_is_typed_twice() -> None:
    derived = {option.flag for _, config in CONFIGS.values() for option in options_of(config)}
    by_hand = {file.name: typed(file) for file in sorted(ROOT.glob("*.py"))}
    assert "--workers" in dict(by_hand["search.py"])
    assert not {flag for flag, _ in [*by_hand["compare.py"], *by_hand["search.py"]]} & derived
    # Another option of the same name, such as --layers of two commands, has its own help.
    times = Counter(option for options in by_hand.values() for option in options)
    assert [option for option, number in times.items() if number > 1] == []


def test_the_help_of_every_command_is_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    for file in sorted(ROOT.glob("*.py")):
        for flag, text in typed(file):
            assert re.match(r"""f?['"][A-Z].*[.]['"]$""", text), f"{file.name}: {flag} has the help {text}"
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert re.match(rf"usage: lr-dist (\[options\] )?{command} ", capsys.readouterr().out)


def test_the_method_is_added_to_distributions_and_not_to_arms() -> None:
    config = CompareConfig(
        tasks=("a", "b"), distributions=("flat:lr=1e-4", {"preset": "x"}), arms=("y",), method="l2-sp:alpha=0.01"
    )
    mapping = {"rates": {"preset": "x"}, "methods": ["l2-sp:alpha=0.01"]}
    assert config.all_arms == ("flat:lr=1e-4 + l2-sp:alpha=0.01", mapping, "y")
    assert replace(config, method="finetune").all_arms == ("flat:lr=1e-4", {"preset": "x"}, "y")
