"""No secret is shown or kept, whatever it is made of and wherever it stands."""

from __future__ import annotations

import json
import shlex
import sys
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from studies import config_of, study_of

from lr_dist.cli import main
from lr_dist.errors import StorageError
from lr_dist.runs.redact import hide, hide_address, is_secret, redact, redact_command, redact_data, redact_usage
from lr_dist.search.engine.storage import open_storage, shown_storage
from lr_dist.search.page.report import render_report

# Every secret holds this; nothing else does.
CORE = "Zq7Xk"
ANY = st.text(alphabet="ab9@:/?#&=%+ '\"\\,;{}[]*~|$éß\t", max_size=8)
SECRETS = st.builds(lambda before, after: f"{before}{CORE}{after}", ANY, ANY)
NAMES = st.sampled_from(["password", "sslpassword", "passwd", "PASSWORD", "pwd", "pass", "api_key", "secret", "token"])
SCHEMES = st.sampled_from(["postgresql", "postgresql+psycopg", "mysql", "oracle", "redis", "x"])
USERS = st.sampled_from(["me", "", "me@corp", "do/main", "lr_dist"])
HOSTS = st.sampled_from(["host", "10.0.0.1:5432", "[::1]:5432", "host:port", "a,b:1", "", "h:99999"])


@st.composite
def addresses(draw: st.DrawFn) -> str:
    """Addresses with a secret, escaped or not, before the host or in the query, some of them no address at all."""
    secret = draw(SECRETS)
    if draw(st.booleans()):
        secret = quote(secret, safe="")
    place = f"{draw(HOSTS)}/db{draw(st.sampled_from(['', '?sslmode=require', '?a=b@c']))}"
    if draw(st.booleans()):
        return f"{draw(SCHEMES)}://{draw(USERS)}:{secret}@{place}"
    name = draw(NAMES)
    if draw(st.booleans()):
        name = f"%{ord(name[0]):02x}{name[1:]}"
    # A raw & would end the value.
    secret = secret.replace("&", "%26")
    sign = "&" if "?" in place else "?"
    return f"{draw(SCHEMES)}://me@{place}{sign}{name}={secret}{draw(st.sampled_from(['', '&connect_timeout=3']))}"


@settings(max_examples=500, deadline=None, database=None, derandomize=True)
@given(addresses(), st.sampled_from(["--storage", "--queued"]))
def test_an_address_is_shown_and_kept_without_its_secret(url: str, option: str) -> None:
    shown = [
        hide(url),
        hide_address(url),
        shown_storage(url),
        redact_command(["lr-dist", "combine", "a study", option, url]),
        redact_command(["lr-dist", "combine", "a study", f"{option}={url}"]),
        redact(f"The storage {url} cannot be opened: no port in {url!r}", [url]),
        redact_usage(f'error: Parser key "trials":\n  Expected an int. Got value: {url}\n', ["search", option, url]),
        json.dumps(redact_data({"storage": url, "all": [url, {"x": url}]})),
    ]
    assert [text for text in shown if CORE in text] == []
    assert hide(hide(url)) == hide(url)
    # The command is still one that a shell takes apart in the same way.
    assert shlex.split(shown[3])[:4] == ["lr-dist", "combine", "a study", option]


@settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(addresses().filter(lambda url: not url.startswith(("redis", "x:"))))
def test_a_storage_that_cannot_be_opened_says_so_without_the_secret(url: str) -> None:
    url = (
        url.replace("10.0.0.1", "127.0.0.1")
        .replace("://me@host/", "://me@127.0.0.1:1/")
        .replace("@host/", "@127.0.0.1:1/")
    )
    with pytest.raises(StorageError) as caught:
        open_storage(url.replace("@/db", "@127.0.0.1:1/db"))
    assert CORE not in "".join(traceback.format_exception(caught.value))


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(NAMES, SECRETS.filter(lambda s: "\\" not in s))
def test_settings_and_environments_are_shown_without_secrets(name: str, secret: str) -> None:
    data = {name: secret, f"PG_{name.upper()}": secret, "deep": [{"ssl_" + name: secret}], "lr": 1e-5, "none": None}
    hidden = redact_data(data)
    assert CORE not in json.dumps(hidden)
    assert (hidden["lr"], hidden["none"]) == (1e-5, None)
    assert CORE not in redact(f"Given value: {data!r}")
    assert CORE not in redact(f"{json.dumps({name: secret})}")
    assert CORE not in redact_usage(f'Parser key "storage":\n  Given value: {{"any": {secret!r}}}', [])
    assert CORE not in redact_command(["lr-dist", f"--{name}", secret if not secret.startswith("-") else "x", "rest"])


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me/a:b@c/study.db",
        "journal:/shared/me@work/study.log",
        "postgresql://me@db.example.org/lr?sslmode=require&passfile=/home/me/.pgpass&sslkey=/k",
        "grpc://10.0.0.1:13000",
        "http://127.0.0.1:8080/dashboard/",
        "decay:lr=4e-4,factor=0.7 @ 20% > flat:lr=1e-5",
        "sst2@length",
        "--tokens=5",
        "runs/compare",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert hide(text) == text
    assert redact(text) == text
    assert shlex.split(redact_command([text])) == [text]


def test_the_user_the_host_and_the_other_options_stay() -> None:
    url = "postgresql://me:secret@host:5432/db?sslmode=require&password=other&x=1"
    assert hide(url) == "postgresql://me:***@host:5432/db?sslmode=require&password=***&x=1"
    assert hide_address("me:secret@host/db") == "***@host/db"
    assert hide("https://hf_token@example.org/me") == "https://***@example.org/me"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("PGPASSWORD", "sslpassword", "HF_TOKEN", "apiKey", "AWS_SECRET_ACCESS_KEY")),
        *((name, False) for name in ("passfile", "sslkey", "key", "tokens", "compass", "lr")),
    ],
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret(name) == secret


URL = f"{{}}?password={CORE}&sslpassword={CORE}"


def test_no_output_of_a_command_holds_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command line as people give it, kept in a preset and shown on a page."""
    storage = f"sqlite:///{tmp_path}/study.db"
    study_of(config_of(), 4, name="study", storage=open_storage(storage))
    # SQLite takes no password: the commands are told of one and see the file all the same.
    monkeypatch.setattr(
        "lr_dist.search.engine.storage.open_existing",
        lambda url: open_storage(storage) if CORE in url else open_storage(url),
    )
    for url in (f"postgresql://me:{CORE}@host/db", f"postgresql://me@host/db?password={CORE}"):
        for arguments in (
            ["combine", "study", "--storage", url, "--output-file", str(tmp_path / "mine.yaml")],
            ["search", "export", "--study", "study", "--storage", url, "--csv", str(tmp_path / "trials.csv")],
            ["search", "status", "--study", "study", "--storage", url],
            ["search", "report", "--study", "study", "--storage", url, "--output-file", str(tmp_path / "report.html")],
            ["search", "report", "--study", "none", "--storage", url],
        ):
            monkeypatch.setattr(sys, "argv", ["lr-dist", *arguments])
            assert main(arguments) == (2 if "none" in arguments else 0)
    assert "***" in (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    said = capfd.readouterr()
    for text in [
        said.out,
        said.err,
        *(p.read_text() for p in tmp_path.iterdir() if p.suffix in (".yaml", ".csv", ".html")),
    ]:
        assert CORE not in text


def test_the_page_s_command_is_without_the_password() -> None:
    page = render_report(study_of(config_of(), 3), storage=f"postgresql://me:{CORE}@host/db?sslpassword={CORE}")
    assert CORE not in page
    assert "postgresql://me:***@host/db?sslpassword=***" in page


@pytest.mark.parametrize("command", ["search", "combine", "dashboard"])
def test_a_usage_error_about_a_storage_or_beside_one_does_not_show_it(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "search.yaml"
    config.write_text(f"storage: {{drivername: postgresql, username: me, geheim: {CORE}}}\n", encoding="utf-8")
    url = f"postgresql://me:{CORE}@host/db"
    for arguments in (
        ["search", "--config", str(config)],
        [command, "--no-such-option", url],
        ["search", "--trials", url],
        ["dashboard", "--port", url],
    ):
        try:
            status: object = main(arguments)
        except SystemExit as end:
            status = end.code
        assert status == 2
    said = capfd.readouterr()
    assert "error:" in said.err
    assert CORE not in said.out + said.err
