"""Options that several commands have mean the same, in the same words, and no command's help needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from lr_dist.cli import COMMANDS, wording
from lr_dist.cli.arguments import prepared

# What the help of this option says in every command that has it, beside its part in that command.
SAME = {
    "--config": "YAML file with any of these options. The command line takes precedence.",
    "--data-dir": "Folder with GLUE as parquet files. By default the environment variable LR_DIST_DATA, or else",
    "--data-seed": "Seed for drawing the examples of a limit",
    "--dev-size": "Training examples to set aside as the dev split: a number, or a share between 0 and 1.",
    "--eval-limit": "to score on, always the same ones: quicker, and less exact. All by default.",
    "--evaluate-on": "Split to score on: validation (the official one, for reported results) or dev",
    "--head": "asked-LM head of the ",
    "--limit": "drawn at random; all by default.",
    "--logger": "csv, tensorboard, wandb or mlflow",
    "--lr": "The optimizer's learning rate; only relative distributions use it, which multiply it.",
    "--model": wording.MODEL,
    "--precision": wording.PRECISION,
    "--retention": "a file of plain text, one text a line",
    "--schedule": "Rate after the warm-up: cosine",
    "--seed": "Seed of ",
    "--seeds": "On the command line, 0..4 stands for 0 1 2 3 4.",
    "--start": "Folder of a fine-tuned ",
    "--storage": "sqlite:///FILE, postgresql://USER:PASSWORD@HOST/DB, journal:FILE or grpc://HOST:PORT",
    "--study": "Name of the study.",
    "--tasks": wording.TASKS,
    "--text": "a file with one text a line",
    "--tuning-seeds": "Random seeds for tuning",
    "--warmup": "steps in which the rate rises linearly",
    "--weight-decay": "AdamW's decoupled weight decay",
    "--output": "Folder ",
    "--output-file": " file ",
}
# Of one word, but of different things, which the command's name tells.
OTHER = {
    *("--arms", "--batch-size", "--epochs", "--examples", "--first", "--held-out", "--keep-stages", "--kind"),
    *(
        "--knowledge",
        "--layers",
        "--linear-probe",
        "--masks",
        "--max-length",
        "--method",
        "--per-class",
        "--rates",
        "--templates",
    ),
    *("--help", "--print_config"),
}


def options() -> Iterator[tuple[str, str, Any]]:
    """(command, option, action) of all commands and those within them."""
    for name, module in COMMANDS.items():
        command = import_module(module)
        parser = command.parser()
        if hasattr(command, "nest"):
            command.nest(parser)
        parsers = {name: parser}
        for action in parser._actions:
            for inner, each in (getattr(action, "_name_parser_map", None) or {}).items():
                parsers[f"{name} {inner}"] = each
        for full, each in parsers.items():
            for action in each._actions:
                yield from ((full, option, action) for option in action.option_strings if option.startswith("--"))


ALL = list(options())


@pytest.mark.parametrize("option", sorted(SAME))
def test_an_option_says_the_same_in_every_command(option: str) -> None:
    helps = {command: action.help for command, name, action in ALL if name == option}
    assert helps
    assert {command: text for command, text in helps.items() if SAME[option] not in text} == {}


def test_every_option_of_several_commands_is_compared() -> None:
    commands: dict[str, set[str]] = {}
    for command, option, _ in ALL:
        commands.setdefault(option, set()).add(command)
    shared = {option for option, names in commands.items() if len(names) > 1}
    assert shared - set(SAME) - OTHER == set()


def test_every_option_has_a_help_that_ends_as_a_sentence() -> None:
    assert {(command, option) for command, option, action in ALL if option != "--help" and not action.help} == set()
    assert {
        (command, option): action.help
        for command, option, action in ALL
        if option not in ("--help", "--print_config") and not action.help.rstrip("'").endswith((".", "?", ")"))
    } == {}


def test_output_is_a_folder_everywhere_and_a_file_is_output_file() -> None:
    for command, option, action in ALL:
        if option == "--output":
            assert action.help.startswith("Folder "), command
        if option == "--output-file":
            assert not action.help.startswith("Folder"), command


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("compare --seeds 0..4 --limit 5", "compare --seeds 0 1 2 3 4 --limit 5"),
        ("evidence --tuning-seeds 3 7..8 --seeds 1", "evidence --tuning-seeds 3 7 8 --seeds 1"),
        # Not of seeds, not a range, or too many.
        ("layers --names 0..4", "layers --names 0..4"),
        ("compare --seeds 4..0", "compare --seeds 4..0"),
        ("compare --seeds 0..99999999", "compare --seeds 0..99999999"),
    ],
)
def test_ranges_of_seeds_are_written_out(typed: str, read: str) -> None:
    assert prepared(typed.split()) == read.split()


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("combine s --output p.yaml", "combine s --output-file p.yaml"),
        ("combine s --search-output runs/s --output=p.yaml", "combine s --output runs/s --output-file=p.yaml"),
        ("combine s --output runs/s", "combine s --output runs/s"),
        ("report r.json --output p.html", "report r.json --output-file p.html"),
        ("plan flat:lr=1 --output p.svg", "plan flat:lr=1 --output-file p.svg"),
        ("presets plot ulmfit --output p.png", "presets plot ulmfit --output-file p.png"),
        # Here it always was a folder.
        ("search report s --output runs/s", "search report s --output runs/s"),
        ("compare --output runs/c", "compare --output runs/c"),
        ("--help", "--help"),
        ("", ""),
    ],
)
def test_an_earlier_name_of_an_option_is_read_with_a_word_on_it(
    typed: str, read: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepared(typed.split()) == read.split()
    assert ("is now" in capsys.readouterr().err) == (typed != read)
