"""What a command prints when something goes wrong: one line with a name, nothing secret, nothing that acts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from result_files import LABELS, TASKS, result_data

from lr_dist.cli import main
from lr_dist.cli.boundary import guarded
from lr_dist.cli.terminal import clean, terminal
from lr_dist.errors import ConfigurationError

SECRET = "postgresql://me:hunter2@host/db"


class Panic(BaseException):
    """As what libraries written in Rust raise."""


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def deep() -> int:
    return deep() + 1


def outcome(work: Callable[[], int], capsys: pytest.CaptureFixture[str], *, whole: bool = False) -> tuple[int, str]:
    status = guarded("lr-dist test", work, arguments=[SECRET], whole=whole)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ConfigurationError("x must be 1."), 2, "lr-dist test: ConfigurationError: x must be 1.\n"),
        (KeyError("gone"), 1, "lr-dist test: KeyError: 'gone' (test_boundary.py:"),
        (Panic("rust"), 1, "Panic: rust"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 1, "UnicodeDecodeError"),
        (MemoryError(), 2, "MemoryError: this needs more memory"),
        (OSError(5, "Input/output error", "/x"), 1, "[Errno 5] Input/output error: '/x'"),
        (ValueError("a\nb\x1b[2J"), 1, r"ValueError: a b\x1b[2J"),
    ],
)
def test_every_error_is_one_line_with_its_status(
    error: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = outcome(raising(error), capsys)
    assert found == status
    assert text in said
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert ("bug of lr-dist" in said) == (status == 1)


def test_endless_recursion_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = outcome(deep, capsys)
    assert status == 1
    assert "RecursionError" in said
    assert said.count("\n") == 1


def test_an_error_that_cannot_be_shown_is_still_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    status, said = outcome(raising(Mute()), capsys)
    assert status == 1
    assert "Mute: no message" in said


def test_an_interruption_and_an_exit_keep_their_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(raising(KeyboardInterrupt()), capsys)[0] == 130
    with pytest.raises(SystemExit) as stop:
        guarded("x", raising(SystemExit(7)), arguments=[], whole=False)
    assert stop.value.code == 7


@pytest.mark.parametrize("whole", [False, True])
def test_passwords_are_in_no_line_and_in_no_traceback(whole: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        try:
            raise RuntimeError(f"connecting to {SECRET}")
        except RuntimeError as error:
            raise ValueError("password=hunter2") from error

    status, said = outcome(work, capsys, whole=whole)
    assert status == 1
    assert "hunter2" not in said
    assert ("Traceback" in said) == whole


def test_the_whole_traceback_is_shown_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["presets", "show", "no-such-preset"]
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err
    for place in range(4):
        assert main([*arguments[:place], "--traceback", *arguments[place:]]) == 2
        said = capsys.readouterr().err
        assert said.startswith("Traceback")
        assert "lr-dist presets: UnknownPresetError: There is no preset" in said


def test_a_reader_that_has_gone_is_no_error() -> None:
    code = "import sys; from lr_dist.cli.boundary import guarded\n"
    code += "def work():\n    while True: print('x' * 1000)\n"
    code += "sys.exit(guarded('x', work, arguments=[], whole=False))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""


# The terminal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "a\rb", "\u202eabc", "\ud800", "\x00"])
def test_what_acts_on_a_terminal_is_written_out(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(text))
    table.add_row(Text(text), Text(text))
    terminal().print(table, Text(text))
    printed = capsys.readouterr().out + clean(text)
    assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e", "\ud800", "\x00"} & set(printed)


def test_names_with_control_sequences_and_markup_are_printed_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(json.dumps(result_data()).replace(TASKS[0], "[/b]x\\u001b[2J"))
    path = tmp_path / "[/b]" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(data))
    for more in ([], ["--markdown", "true"], ["--against", LABELS[0]]):
        assert main(["report", str(path), *more]) == 0
        printed = capsys.readouterr().out
        assert "[/b]x\\x1b[2J" in printed.replace("\n", "")
        assert "\x1b[2J" not in printed


# --config ------------------------------------------------------------------------------------------------


def command(config: Path | str, *more: str) -> list[str]:
    return ["compare", "--config", str(config), *more]


def test_a_configuration_of_billions_of_aliases_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "c.yaml").write_text("\n".join([*lines, "seeds: *a11"]))
    assert main(command(tmp_path / "c.yaml")) == 2
    assert "InvalidYAMLError" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--fixed", "--queued", "--tasks"])
def test_a_value_with_aliases_is_not_expanded(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    bomb = "{a: &a [x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a], c: &c [*b,*b,*b,*b,*b,*b,*b,*b], d: "
    bomb += "&d [*c,*c,*c,*c,*c,*c,*c,*c], e: &e [*d,*d,*d,*d,*d,*d,*d,*d], f: [*e,*e,*e,*e,*e,*e,*e,*e]}"
    try:
        status: Any = main(["search", option, bomb])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert len(capsys.readouterr().err) < 10_000


def test_a_pipe_as_configuration_is_read_and_an_empty_one_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lr_dist.reading.PIPE_SECONDS", 0.5)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(
        target=lambda: (tmp_path / "pipe").write_text("tasks: [just-one]\ndistributions: ['flat:lr=1e-4']")
    )
    writer.start()
    assert main(command(tmp_path / "pipe")) == 2
    writer.join(10)
    assert "just-one" in capsys.readouterr().err
    assert main(command(tmp_path / "pipe")) == 2
    assert "UnreadableFileError: --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it holds nothing"),
        (b"- 1", "it holds a list"),
        (b"\xff\xfe", "InvalidYAMLError"),
        (b"a: 1\na: 2", "occurs twice"),
        (b"!!python/object/apply:os.system [true]", "tag"),
        (b"[" * 100_000, "nested deeper"),
        (b"seeds: " + b"9" * 5_000, "."),
        (b'tasks: {"": null}', "lists are written"),
    ],
)
def test_a_configuration_that_is_something_else_is_named(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    try:
        status: Any = main(command(tmp_path / "c.yaml"))
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_missing_configuration_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "none.yaml")) == 2
    assert "--config" in (said := capsys.readouterr().err)
    assert "No such file" in said


def test_a_storage_that_is_a_mapping_shows_no_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(f"storage:\n  url: {SECRET}\n")
    assert main(["search", "--config", str(tmp_path / "c.yaml")]) == 2
    said = capsys.readouterr().err
    assert "storage must be one text" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("name", ["COLUMNS", "LINES"])
def test_an_impossible_size_of_the_terminal_is_ignored(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "9" * 5_000)
    assert main(["presets", "list"]) == 0
    assert "kenneweg2022" in capsys.readouterr().out
