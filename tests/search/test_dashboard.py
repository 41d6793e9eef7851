"""`lr-dist dashboard`: a real server, opened by a real browser."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from studies import config_of, study_of

from lr_dist.cli import main
from lr_dist.search.engine.storage import open_storage

NAME = "sst2>qqp, knots & friends"


@contextmanager
def dashboard(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(process, address) of a dashboard on a free port."""
    command = [sys.executable, "-m", "lr_dist.cli", "dashboard", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Dashboard: http://127.0.0.1:"), line or process.communicate()[1]
        # Read here: `communicate` does not see what is in this file's buffer.
        assert process.stdout.readline().endswith("Ctrl-C ends it.\n")
        yield process, line.split()[1]
    finally:
        process.kill()
        process.communicate()


def names_at(address: str) -> list[str]:
    with urllib.request.urlopen(address.replace("/dashboard/", "/api/studies"), timeout=60) as answer:
        return [study["study_name"] for study in json.load(answer)["study_summaries"]]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('dashboard')}/study.db"
    study_of(config_of(), 4, name=NAME, storage=open_storage(url))
    return url


def test_a_browser_opens_the_dashboard_and_sees_the_study(url: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser: neither chromium nor google-chrome is installed (Debian: apt-get install chromium)")
    with dashboard("--storage", url) as (_, address):
        seen = subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"),
                *("--virtual-time-budget=15000", "--dump-dom", address),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    # Only the page's own script puts it there: the HTML that is served has no names.
    assert "sst2&gt;qqp, knots &amp; friends" in seen.stdout, seen.stderr[-2000:]
    assert "NOW LOADING" not in seen.stdout


def test_ctrl_c_ends_it_cleanly(url: str) -> None:
    with dashboard("--storage", url) as (process, address):
        assert names_at(address) == [NAME]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Stopped" in out
    assert "Traceback" not in err


def test_the_default_is_the_search_s_own_file_and_a_journal_is_served_too(tmp_path: Path) -> None:
    study_of(config_of(), 1, name="by default", storage=open_storage(f"sqlite:///{tmp_path}/study.db"))
    with dashboard("--output", str(tmp_path)) as (_, address):
        assert names_at(address) == ["by default"]
    journal = f"journal:{tmp_path}/study.log"
    study_of(config_of(), 1, name="in a journal", storage=open_storage(journal))
    with dashboard("--storage", journal) as (_, address):
        assert names_at(address) == ["in a journal"]


def status_for(address: str, host: str, path: str = "/api/studies") -> int:
    """The status of an answer to a request that says it is for `host`."""
    url = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=60)
    try:
        connection.putrequest("GET", path, skip_host=True)
        if host:
            connection.putheader("Host", host)
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


def test_only_hosts_that_are_allowed_are_answered(url: str) -> None:
    with dashboard("--storage", url, "--allow-host", "Studies.example.org", "gpu-box") as (_, address):
        answered = ["127.0.0.1", "localhost:1", "[::1]:8080", "10.1.2.3", "studies.example.org:443", "gpu-box."]
        assert {host: status_for(address, host) for host in answered} == dict.fromkeys(answered, 200)
        # A page at one of these names that leads to this machine reads and changes nothing.
        refused = ["evil.example.org", "127.0.0.1.evil.example.org", "localhost.evil.org:80", "1", "", "[evil]", "a@b"]
        assert {host: status_for(address, host) for host in refused} == dict.fromkeys(refused, 403)
        assert status_for(address, "evil.example.org", "/dashboard/") == 403


def test_a_taken_port_is_a_named_error(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["dashboard", "--storage", url, "--port", port]) == 2
    error = capsys.readouterr().err
    assert f"ConfigurationError: Cannot listen on 127.0.0.1, port {port}: Address already in use" in error


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--port", "65536"], "--port must be from 0 (any free one) to 65535, not 65536"),
        (["--host", "203.0.113.1"], "Cannot listen on 203.0.113.1"),
        (["--host", "no host"], "Cannot listen on no host"),
        (["--host", "a" * 64], "Cannot listen on aaa"),
        (["--storage", "sqlite:////no/such/folder/study.db"], "StorageError: The folder /no/such/folder"),
        (["--storage", "nonsense"], "StorageError"),
    ],
)
def test_an_address_or_a_storage_that_cannot_work_is_a_named_error(
    options: list[str], says: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dashboard", "--storage", url, "--port", "0", *options]) == 2
    assert says in capsys.readouterr().err


def test_without_its_package_the_command_names_the_extra(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    assert main(["dashboard", "--storage", url]) == 2
    assert "pip install 'lr-dist[dashboard]'" in capsys.readouterr().err
