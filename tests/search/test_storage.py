"""What can be wrong with a storage is named before anything is written."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from lr_dist.errors import LRDistError, StorageError
from lr_dist.search.engine.storage import (
    DEAD_CONNECTION_S,
    default_storage,
    open_existing,
    open_storage,
    storage_errors,
)
from lr_dist.search.engine.worker import drain

PLAN = [{"params": {}, "attrs": {}}] * 3


def fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lr_of(trial: optuna.Trial) -> tuple[float, ...]:
    return (trial.suggest_float("lr", 1e-7, 1.0, log=True),)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is not a storage URL"),
        ("study.db", "is not a storage URL"),
        ("nosuch://host/db", "is not a storage URL .*nosuch"),
        ("postgresql://user:secret@host:port/db", "is not a storage URL"),
        ("mysql://user:secret@127.0.0.1/db", "needs a driver that is not installed"),
        ("sqlite://", "in memory is lost"),
        ("sqlite:///:memory:", "in memory is lost"),
        ("sqlite:////proc/study.db", "cannot be opened: unable to open database file"),
        ("journal:/proc/study.log", "cannot be opened"),
        ("journal:/dev/full", "/dev/full is a device"),
        ("sqlite:////dev/null", "/dev/null is a device"),
    ],
)
def test_an_address_that_cannot_work_is_named_with_what_to_write(url, message):
    with pytest.raises(StorageError, match=message) as error:
        open_storage(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("form", ["sqlite:///{}", "journal:{}"])
def test_a_folder_that_is_missing_or_no_folder_is_named(form, tmp_path):
    with pytest.raises(StorageError, match=r"The folder .*none of the storage does not exist"):
        open_storage(form.format(tmp_path / "none" / "study"))
    with pytest.raises(StorageError, match="is a folder; give a file in it"):
        open_storage(form.format(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens_there():
    url = f"postgresql://me:secret@127.0.0.1:{free_port()}/db"
    with pytest.raises(StorageError, match=r"cannot be opened: .*refused") as error:
        open_storage(url)
    assert "secret" not in str(error.value)
    assert "me:***@127.0.0.1" in str(error.value)


@pytest.mark.parametrize("form", ["sqlite:///{}", "journal:{}"])
@pytest.mark.parametrize("content", [b"my only copy of something\n" * 50, b"\x00\xff" * 999, b'["a list"]\n', b"short"])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(form, content, tmp_path):
    file = tmp_path / "study"
    file.write_bytes(content)
    with pytest.raises(StorageError, match=r"not a database|not an Optuna journal"):
        open_storage(form.format(file))
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("version", "advice"), [("v99.0.0.a", "Use the version of Optuna that made it"), ("v2.6.0.a", "storage upgrade")]
)
def test_tables_of_another_version_of_optuna_are_refused_and_left_as_they_are(version, advice, tmp_path):
    file = tmp_path / "study.db"
    storage = open_storage(f"sqlite:///{file}")
    optuna.create_study(storage=storage, study_name="study")
    storage.engine.dispose()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [version])
        # A version that has not this table yet; opening must not add it.
        connection.execute("DROP TABLE trial_heartbeats")
    connection.close()
    before = fingerprint(file)
    with pytest.raises(StorageError, match=f"{version}.*nothing was changed.*{advice}"):
        open_storage(f"sqlite:///{file}")
    assert fingerprint(file) == before


def test_tables_of_another_version_on_postgresql_are_refused_likewise(postgres):
    url = postgres.database("another_version")
    storage = open_storage(url)
    with storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = 'v99'"))
        connection.execute(sqlalchemy.text("DROP TABLE trial_heartbeats"))
    with pytest.raises(StorageError, match="v99"):
        open_storage(url)
    assert "trial_heartbeats" not in sqlalchemy.inspect(storage.engine).get_table_names()


def test_a_database_that_was_only_begun_is_finished(tmp_path):
    file = tmp_path / "study.db"
    storage = open_storage(f"sqlite:///{file}")
    storage.engine.dispose()
    with sqlite3.connect(file) as connection:
        connection.execute("DELETE FROM alembic_version")
        connection.execute("DROP TABLE trial_heartbeats")
    connection.close()
    study = optuna.create_study(storage=open_storage(f"sqlite:///{file}"))
    drain(study, lr_of, PLAN)
    assert len(study.trials) == 3


def role(postgres: Any, url: str, *commands: str) -> str:
    """Run SQL as the administrator; the same database's URL for the role `guest`."""
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for command in commands:
            connection.execute(sqlalchemy.text(command))
    engine.dispose()
    return url.replace("tester@", "guest:secret@")


GUEST = "DO $$ BEGIN CREATE ROLE guest LOGIN PASSWORD 'secret'; EXCEPTION WHEN duplicate_object THEN NULL; END $$"


def test_a_role_that_may_not_make_tables_is_told_so(postgres):
    url = role(postgres, postgres.database("no_rights"), GUEST, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with pytest.raises(StorageError, match="cannot be opened: permission denied for schema public") as error:
        open_storage(url)
    assert "secret" not in str(error.value)


def test_a_role_that_may_only_read_is_told_so(postgres):
    admin = postgres.database("read_only")
    study = optuna.create_study(storage=open_storage(admin), study_name="study")
    url = role(postgres, admin, GUEST, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO guest")
    storage = open_storage(url)
    with pytest.raises(StorageError, match=r"can no longer be read or written: permission denied for table"):
        drain(optuna.load_study(storage=storage, study_name="study"), lr_of, PLAN)
    assert study.trials == []


def test_a_database_that_does_not_exist_and_a_role_that_does_not(postgres):
    with pytest.raises(StorageError, match='database "none" does not exist'):
        open_storage(f"{postgres.url}/none")
    with pytest.raises(StorageError, match='role "nobody" does not exist'):
        open_storage(f"{postgres.url.replace('tester@', 'nobody:secret@')}/postgres")


def test_a_wrong_password_is_told_and_not_shown(postgres):
    url = role(postgres, postgres.database("password"), GUEST).replace(":secret@", ":wrong@")
    settings = postgres.folder / "data" / "pg_hba.conf"
    before = settings.read_text()
    settings.write_text("host all guest 127.0.0.1/32 scram-sha-256\n" + before)
    try:
        role(postgres, f"{postgres.url}/postgres", "SELECT pg_reload_conf()")
        for _ in range(50):  # the server reads its settings when it comes to it
            try:
                open_storage(url).engine.dispose()
            except LRDistError as error:
                found = error
                break
        assert isinstance(found, StorageError)
        assert "password authentication failed" in str(found)
        assert ":wrong" not in str(found)
    finally:
        settings.write_text(before)
        role(postgres, f"{postgres.url}/postgres", "SELECT pg_reload_conf()")


def test_a_connection_to_postgresql_gives_up_what_nobody_acknowledges(postgres):
    """As the system keeps it for the socket itself; without it the system tries for a quarter of an hour."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this system has no TCP_USER_TIMEOUT")

    def times_of(url: str) -> tuple[int, ...]:
        with open_storage(url).engine.connect() as connection:
            wire = socket.socket(fileno=os.dup(connection.connection.driver_connection.fileno()))
            with wire:
                names = ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
                return tuple(wire.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names)

    url = postgres.database("wire")
    assert times_of(url) == (1000 * DEAD_CONNECTION_S, 10, 10, 2)
    # What the user says, holds.
    assert times_of(f"{url}?tcp_user_timeout=5000&keepalives_idle=7") == (5000, 7, 10, 2)


# In a network of its own: a server, an open study, and then a firewall that drops every packet to the server.
DEAD_WIRE = """
import subprocess, sys, time
import optuna
from postgres_server import installed, running
from lr_dist.errors import StorageError
from lr_dist.search.engine.storage import open_storage, storage_errors
def ip(*arguments):
    return subprocess.run(["ip", *arguments]).returncode == 0
with running(installed()) as server:
    storage = open_storage(server.database("x") + "?tcp_user_timeout=3000")
    study = optuna.create_study(storage=storage)
    study.enqueue_trial({"a": 1})
    if not (ip("rule", "add", "pref", "10", "lookup", "local")
            and ip("rule", "add", "pref", "1", "ipproto", "tcp", "dport", str(server.port), "blackhole")
            and ip("rule", "del", "pref", "0", "lookup", "local")):
        sys.exit(77)
    began = time.monotonic()
    try:
        with storage_errors(storage):
            study.enqueue_trial({"a": 2})
    except StorageError as error:
        print(f"{time.monotonic() - began:.1f} {error}")
    ip("rule", "del", "pref", "1")
"""


def test_a_wire_that_is_cut_in_the_middle_is_noticed(postgres):
    """`postgres` is not used, but says whether there is one to be started."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("a network of one's own takes root, unshare and ip (Debian: apt-get install iproute2)")
    if subprocess.run(["unshare", "-n", "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("no network of one's own may be made here")
    script = f"ip link set lo up && exec {shlex.quote(sys.executable)} -W ignore -c {shlex.quote(DEAD_WIRE)}"
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        ["unshare", "-n", "bash", "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    if done.returncode == 77:
        pytest.skip("the kernel has no rules that drop packets")
    assert done.returncode == 0, done.stderr
    seconds, message = done.stdout.split(" ", 1)
    assert "can no longer be read or written" in message
    # Not the quarter of an hour that the system takes; the rest is the new connection that is tried once, 10 s.
    assert 3 <= float(seconds) < 60


def test_two_workers_may_find_an_empty_database_at_once(postgres, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    for url in (postgres.database("empty"), f"sqlite:///{tmp_path}/study.db"):
        with ThreadPoolExecutor(4) as pool:
            storages = list(pool.map(open_storage, [url] * 4))
        assert len(storages) == 4


def test_a_database_that_goes_away_in_the_middle_is_one_line(tmp_path):
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/study.db"))

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        if trial.number == 1:
            with study._storage._backend.engine.begin() as connection:
                connection.execute(sqlalchemy.text("DROP TABLE trial_params"))
        return lr_of(trial)

    with pytest.raises(StorageError, match=r"no such table: trial_params.*same command again") as error:
        drain(study, objective, PLAN)
    assert "\n" not in str(error.value)


def test_a_study_that_is_deleted_in_the_middle_is_named(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=open_storage(url), study_name="study")

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        found = lr_of(trial)
        optuna.delete_study(study_name="study", storage=url)
        return found

    with pytest.raises(LRDistError, match="deleted"):
        drain(study, objective, PLAN)


def test_other_errors_are_not_taken_for_the_storages():
    with pytest.raises(KeyError), storage_errors("sqlite:///x.db"):
        raise KeyError("mine")


def test_the_default_file_may_lie_in_any_folder(tmp_path):
    for name in ("with space, per%cent", "ünïcode", "a#b@c:d"):
        folder = tmp_path / name
        folder.mkdir()
        study = optuna.create_study(storage=open_storage(default_storage(folder)))
        drain(study, lr_of, PLAN)
        assert (folder / "study.db").is_file()
        assert (folder / "study.db.lock").is_file()


@pytest.mark.filterwarnings("ignore::lr_dist.errors.TornRecordWarning")
def test_a_study_on_a_journal_goes_on_after_a_line_that_was_cut(tmp_path):
    file = tmp_path / "study.log"
    study = optuna.create_study(storage=open_storage(f"journal:{file}"), study_name="study", direction="maximize")
    drain(study, lr_of, PLAN)
    cut = file.read_bytes() + b'{"op_code":8,"worker_id":"x","trial_id":0,"user_a'
    file.write_bytes(cut)
    again = optuna.load_study(storage=open_storage(f"journal:{file}"), study_name="study")
    assert len(again.trials) == 3
    drain(again, lr_of, PLAN * 2)
    assert len(optuna.load_study(storage=open_storage(f"journal:{file}"), study_name="study").trials) == 6
    assert file.read_bytes().startswith(cut + b"\n")


@pytest.mark.filterwarnings("ignore::lr_dist.errors.TornRecordWarning")
def test_a_journal_whose_first_line_was_cut_begins_again(tmp_path):
    file = tmp_path / "study.log"
    file.write_bytes(b'{"op_code":0,"worker')
    study = optuna.create_study(storage=open_storage(f"journal:{file}"), direction="maximize")
    drain(study, lr_of, PLAN)
    assert len(study.trials) == 3


def test_a_journal_that_was_damaged_in_the_middle_is_named(tmp_path):
    file = tmp_path / "study.log"
    study = optuna.create_study(storage=open_storage(f"journal:{file}"), study_name="study", direction="maximize")
    drain(study, lr_of, PLAN)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:3], b"damage\n", *lines[4:]]))
    before = fingerprint(file)
    with pytest.raises(StorageError, match=r"Line 4 of the journal .* is not a valid Optuna record"):
        optuna.load_study(storage=open_storage(f"journal:{file}"), study_name="study")
    assert fingerprint(file) == before


@pytest.mark.parametrize(
    "url", [f"journal:{'n' * 3000}/log", f"sqlite:///{'n' * 3000}/study.db", "journal:~nobody-here/log"]
)
def test_a_storage_whose_path_cannot_be_is_named(url: str) -> None:
    with pytest.raises(LRDistError, match=r"cannot be read|home folder"):
        open_existing(url)
    with pytest.raises(LRDistError):
        open_storage(url)
