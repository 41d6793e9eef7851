"""Writing: whole or not at all, over files only."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lr_dist.errors import UnreadableFileError, UnwritableFileError
from lr_dist.reading import read_bytes
from lr_dist.runs import atomic
from lr_dist.runs.atomic import write_bytes, write_json, write_text


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".lr-dist-")]


def test_text_is_written_in_utf8_and_folders_are_made(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a" / "b" / "page.html", "ü\n\ud800")
    assert path.read_bytes() == "ü\n\\ud800".encode()
    assert leftovers(path.parent) == []


def test_permissions_of_a_file_stay_and_a_new_one_follows_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "x"
    mask = os.umask(0o027)
    try:
        write_text(path, "1")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(mask)
    path.chmod(0o604)
    write_text(path, "2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_is_named_and_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"old": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "write":
        import resource
        import signal

        # A real limit of the system on the size of files: the write itself fails.
        monkeypatch.setattr(atomic, "_FULL", (errno.EFBIG,))
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(UnwritableFileError, match=r"result\.json cannot be written: the disk is full"):
                write_bytes(path, bytes(100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
    else:
        monkeypatch.setattr(os, call, full)
        with pytest.raises(UnwritableFileError, match=r"the disk is full.*Make room"):
            write_text(path, "new")
    assert path.read_text() == '{\n "old": 1\n}\n'
    assert leftovers(tmp_path) == []


def test_a_disk_that_is_full_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnwritableFileError, match="/dev/full cannot be written: the disk is full"):
        write_text("/dev/full", "x")


def test_a_device_stays_a_device() -> None:
    before = os.stat("/dev/null")
    write_text("/dev/null", "x")
    after = os.stat("/dev/null")
    assert stat.S_ISCHR(after.st_mode)
    assert (before.st_ino, before.st_rdev) == (after.st_ino, after.st_rdev)


def test_a_link_to_a_device_is_followed_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    write_text(link, "x")
    assert link.is_symlink()
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_to_a_file_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "page").write_text("old")
    link = tmp_path / "link"
    link.symlink_to("real/page")
    write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "real" / "page").read_text() == "new"


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_that_is_a_file_is_appended_to_and_not_replaced(tmp_path: Path, name: str) -> None:
    """The shell's `> out.csv` must end in the file that the shell opened, after what was printed before."""
    out = tmp_path / "out.csv"
    code = f"from lr_dist.runs.atomic import write_text; print('first'); write_text({name!r}, 'second\\n')"
    with out.open("wb") as file:
        number = os.fstat(file.fileno()).st_ino
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert out.stat().st_ino == number
    assert out.read_text() == "first\nsecond\n"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    write_bytes(pipe, b"x" * 200_000)
    reader.join(10)
    assert found == [b"x" * 200_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "PIPE_SECONDS", 0.2)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnwritableFileError, match="a pipe without a reader"):
        write_text(tmp_path / "pipe", "x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a folder"),
        ("file/below", "Not a directory"),
        ("x" * 300, "the name is too long"),
        ("nul\0", "null"),
        ("loop", "symbolic links"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UnwritableFileError, match=rf"(?s)cannot be written: .*{message}.*Give another --output\."):
        write_text(tmp_path / name, "x", instead="Give another --output.")
    assert (tmp_path / "file").read_text() == "kept"
    assert leftovers(tmp_path) == []


def test_a_longest_name_can_be_written(tmp_path: Path) -> None:
    assert write_text(tmp_path / ("x" * 255), "x").read_text() == "x"


def test_the_home_folder_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert write_text("~/out.html", "x") == tmp_path / "out.html"
    assert not (tmp_path / "~").exists()


def test_a_user_without_a_home_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    with pytest.raises(UnwritableFileError, match="no home folder"):
        write_text("~/out.html", "x")


# Reading -------------------------------------------------------------------------------------------------


def test_reading_ends_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a" * 3_000_000)
    assert len(read_bytes(tmp_path / "x", 2_500_000)) == 2_500_000
    assert len(read_bytes("/dev/zero", 1000)) == 1000


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(b"lr: 1\n" * 30_000))
    writer.start()
    assert read_bytes(tmp_path / "pipe", 10**6) == b"lr: 1\n" * 30_000
    writer.join(10)


def test_a_pipe_that_nothing_comes_from_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lr_dist.reading.PIPE_SECONDS", 0.2)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFileError, match="pipe"):
        read_bytes(tmp_path / "pipe", 100)
