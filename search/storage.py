"""Where studies live: opened, checked, with the errors that a user can act on."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lr_dist.errors import StorageError
from lr_dist.extras import require_extras

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

HEARTBEAT_S, GRACE_S = 60, 180
SQLITE_TIMEOUT_S = 120
ATTEMPTS = 5


def default_storage(output: str | Path) -> str:
    """The URL of the SQLite file in the output folder."""
    return f"sqlite:///{Path(output).expanduser().resolve() / 'study.db'}"


def open_storage(url: str) -> BaseStorage:
    """Open a storage for many workers.

    Databases keep heartbeats: a trial whose worker has been silent for three minutes is queued again. SQLite waits for
    its lock for two minutes instead of failing with "database is locked".

    Args:
        url: `sqlite:///FILE`, `postgresql://USER:PASSWORD@HOST/DATABASE`, any other SQLAlchemy URL; `journal:FILE`;
            or `grpc://HOST:PORT` of a running `optuna.storages.run_grpc_proxy_server`.

    Raises:
        StorageError: it cannot be reached, read or written, or another version of Optuna made it.
        MissingExtraError: Optuna is not installed.
    """
    require_extras("search")
    kind = url.partition(":")[0]
    with _named_errors(url), _quiet():
        if kind == "journal":
            return _journal(url.removeprefix("journal:"))
        if kind == "grpc":
            return _grpc(url)
        return _database(url)


def _database(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    parsed = make_url(url)
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise StorageError("A study in memory is lost with the process; give a file: sqlite:///PATH/study.db.")
        _check_file(Path(parsed.database))
        engine["connect_args"] = {"timeout": SQLITE_TIMEOUT_S}
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(
                url,
                engine_kwargs=engine,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
        except (IntegrityError, ProgrammingError, AssertionError):
            # Two workers that find an empty database both make its tables; the second one finds them made.
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.5 * (attempt + 1))
    raise AssertionError("unreachable")


def _journal(name: str) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = Path(name).expanduser()
    _check_file(path)
    if path.exists():
        with path.open("rb") as file:
            first = file.readline()
        try:
            if first and "op_code" not in json.loads(first):
                raise ValueError("its first line is no log entry")
        except ValueError as error:
            raise StorageError(f"{path} is no journal of Optuna: {error}. Give another file.") from error
    return JournalStorage(JournalFileBackend(str(path)))


def _grpc(url: str) -> BaseStorage:
    from optuna.storages import GrpcStorageProxy
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    proxy = GrpcStorageProxy(host=parsed.host or "localhost", port=parsed.port or 13000)
    proxy.wait_server_ready(timeout=10)
    return proxy


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise StorageError(f"{path} is a folder; give a file in it, e.g. {path / 'study.db'}.")
    if not path.parent.is_dir():
        raise StorageError(f"The folder {path.parent} of the storage does not exist; make it, or give another file.")


@contextlib.contextmanager
def _named_errors(url: str) -> Iterator[None]:
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    shown = _without_password(url)
    try:
        yield
    except StorageError:
        raise
    except (ArgumentError, NoSuchModuleError) as error:
        raise StorageError(
            f"{shown!r} is no storage URL ({_first_line(error)}). Write sqlite:///PATH/study.db, "
            "postgresql://USER:PASSWORD@HOST/DATABASE, journal:PATH or grpc://HOST:PORT."
        ) from error
    except (ImportError, ModuleNotFoundError) as error:
        raise StorageError(
            f"The storage {shown} needs a driver that is not installed: {_first_line(error)}. For PostgreSQL: "
            "pip install 'lr-dist[postgres]'."
        ) from error
    except RuntimeError as error:
        raise StorageError(
            f"The storage {shown} was made by another version of Optuna; nothing was changed. {_first_line(error)}"
        ) from error
    except (SQLAlchemyError, OSError, ConnectionError, TimeoutError) as error:
        raise StorageError(
            f"The storage {shown} cannot be opened: {_first_line(error)}. Check the address, the permissions, and that "
            "the server runs."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that heartbeats, journals and retries are experimental features of Optuna."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
