"""Open and check the storage of studies, and turn its errors into ones that a user can act on."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lr_dist.errors import PATH, LRDistError, StorageError, shown
from lr_dist.extras import require_libraries
from lr_dist.reading import expanded
from lr_dist.runs.redact import hide_address, quotes_secret, redact
from lr_dist.search.engine.optuna_private import backend_of, storage_of, study_id

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from sqlalchemy.engine import URL

HEARTBEAT_S, GRACE_S = 60, 180
SQLITE_TIMEOUT_S = 120
# A dead connection to the server is noticed after this time. Keepalives work only while no data is in flight;
# unacknowledged data is retransmitted for 15 minutes unless tcp_user_timeout (milliseconds) is set.
DEAD_CONNECTION_S = 30
POSTGRES_TIMES = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 10,
    "keepalives_count": 2,
    "tcp_user_timeout": 1000 * DEAD_CONNECTION_S,
}
ATTEMPTS = 5
FORMS = "sqlite:///PATH/study.db, postgresql://USER:PASSWORD@HOST/DATABASE, journal:PATH or grpc://HOST:PORT"


def default_storage(output: str | Path) -> str:
    """The URL of the SQLite file in the output folder."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(expanded(output).resolve() / "study.db")).render_as_string()


def open_storage(url: str) -> BaseStorage:
    """Open a storage for many workers.

    Databases record heartbeats: a trial whose worker has sent none for three minutes is failed. SQLite waits up to two
    minutes for its lock before it fails with "database is locked".

    Args:
        url: `sqlite:///FILE`, `postgresql://USER:PASSWORD@HOST/DATABASE`, any other SQLAlchemy URL; `journal:FILE`;
            or `grpc://HOST:PORT` of a running `optuna.storages.run_grpc_proxy_server`.

    Raises:
        StorageError: it cannot be reached, read or written, or was made by another version of Optuna; nothing was
            changed.
        MissingExtraError: Optuna is not installed.
    """
    require_libraries("search", "optuna")
    kind = url.partition(":")[0]
    with _opening_errors(url), _quiet():
        if kind == "journal":
            return _journal(url.removeprefix("journal:"))
        if kind == "grpc":
            return _grpc(url)
        return _database(url)


def open_existing(url: str) -> BaseStorage:
    """Open an existing storage; a missing file is not created.

    Raises:
        StorageError: as `open_storage`, and if the file does not exist.
    """
    from sqlalchemy.engine import make_url

    require_libraries("search", "optuna")
    name = url.removeprefix("journal:") if url.startswith("journal:") else None
    if url.startswith("sqlite"):
        with _opening_errors(url):
            name = make_url(url).database
    if name and name != ":memory:" and not _exists(name):
        raise StorageError(
            f"The storage {shown(name, PATH)} does not exist. Give the --storage of the search, or its --output folder "
            "that holds study.db."
        )
    return open_storage(url)


def _exists(name: str) -> bool:
    try:
        return expanded(name).exists()
    except OSError as error:
        raise StorageError(
            f"The storage {shown(name, PATH)} cannot be read: {error.strerror or error}. Give another --storage or "
            "--output."
        ) from error


@contextlib.contextmanager
def storage_errors(storage: BaseStorage | str) -> Iterator[None]:
    """Turn errors of a storage in use into a one-line `StorageError`.

    Args:
        storage: the open storage, or its URL.

    Raises:
        StorageError: it could not be read or written.
    """
    try:
        yield
    except LRDistError:
        raise
    except Exception as error:
        url = _url_of(storage)
        if is_storage_error(error):
            raise StorageError(
                f"The storage {shown_storage(storage)} can no longer be read or written: {_first_line(error, url)}. "
                "All finished trials are in it; repair it, and run the same command again."
            ) from _cause(error, url)
        if not _is_unreadable(error):
            raise
        raise StorageError(_unreadable(f"The storage {shown_storage(storage)}", error, url)) from _cause(error, url)


@contextlib.contextmanager
def study_errors(study: Study) -> Iterator[None]:
    """`storage_errors`, plus errors of a single study: it was deleted meanwhile, or one of its records is damaged.

    Raises:
        StorageError: one of these happened.
    """
    try:
        yield
    except Exception as error:
        where = f"{study.study_name!r} in {shown_storage(storage_of(study))}"
        if isinstance(error, KeyError) and _is_unreadable(error) and _is_deleted(study):
            raise StorageError(f"The study {where} was deleted while it was in use.") from error
        if _is_unreadable(error):
            url = _url_of(storage_of(study))
            raise StorageError(_unreadable(f"The study {where}", error, url)) from _cause(error, url)
        with storage_errors(storage_of(study)):
            raise


def _is_deleted(study: Study) -> bool:
    try:
        storage_of(study).get_study_user_attrs(study_id(study))
    except KeyError:
        return True
    return False


def _unreadable(what: str, error: BaseException, url: str | None) -> str:
    return (
        f"{what} holds a record that Optuna cannot read: {_first_line(error, url)}. The database is damaged, or "
        "was changed by another program; restore it from a backup, or use another one."
    )


def _is_unreadable(error: BaseException) -> bool:
    """Whether Optuna's storages or the database library raised this because of an unexpected record."""
    if not isinstance(error, (ValueError, LookupError, TypeError, AssertionError)) or isinstance(error, LRDistError):
        return False
    frame, modules = error.__traceback__, []
    while frame is not None:
        modules.append(str(frame.tb_frame.f_globals.get("__name__", "")))
        frame = frame.tb_next
    # Only errors raised in the storage itself, not in code that it calls or that uses it.
    return any(name.startswith(("optuna.storages", "sqlalchemy")) for name in modules[-8:])


def is_storage_error(error: BaseException) -> bool:
    """Whether the storage raised this error, not the trial."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, (StorageError, StorageInternalError, SQLAlchemyError)):
        return True
    # By name, so that grpc is not imported if no storage uses it.
    return any(kind.__module__.startswith("grpc") and kind.__name__ == "RpcError" for kind in type(error).__mro__)


def sqlite_file(storage: BaseStorage) -> Path | None:
    """The file of a SQLite storage; None for any other."""
    from sqlalchemy.engine import make_url

    url = getattr(backend_of(storage), "url", None)
    parsed = make_url(url) if isinstance(url, str) else None
    if parsed is None or parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return Path(parsed.database)


def shown_storage(storage: BaseStorage | str) -> str:
    """A storage's URL without its password."""
    url = _url_of(storage)
    return hide_address(url) if url is not None else type(storage).__name__


def _url_of(storage: BaseStorage | str) -> str | None:
    if isinstance(storage, str):
        return storage
    backend = backend_of(storage)
    url = getattr(backend, "url", None) or getattr(backend, "shown", None)
    return url if isinstance(url, str) else None


def _database(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    parsed = _with_driver(make_url(url))
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise StorageError("A study in memory is lost when the process ends; give a file: sqlite:///PATH/study.db.")
        _check_file(Path(parsed.database))
    options: dict[str, Any] = {"engine_kwargs": {"pool_pre_ping": True, "connect_args": _connect_args(parsed)}}
    full = parsed.render_as_string(hide_password=False)
    _check_schema(full, options)
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(
                full,
                **options,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
            )
        except (SQLAlchemyError, AssertionError) as error:
            # Two workers that open an empty database both create its tables; the second one fails, and tries again.
            if attempt == ATTEMPTS - 1 or not _already_created(error):
                raise
            time.sleep(0.5 * (attempt + 1))
    raise AssertionError("unreachable")


def _with_driver(url: URL) -> URL:
    """Use psycopg 3, which the extra installs, if only that is there: SQLAlchemy 2.0 defaults to psycopg2."""
    if url.drivername == "postgresql" and find_spec("psycopg2") is None and find_spec("psycopg") is not None:
        return url.set(drivername="postgresql+psycopg")
    return url


def _connect_args(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"timeout": SQLITE_TIMEOUT_S}
    if url.get_backend_name() == "postgresql":
        return {name: value for name, value in POSTGRES_TIMES.items() if name not in url.query}
    return {}


def _check_schema(url: str, options: dict[str, Any]) -> None:
    """Check the schema version of Optuna's tables before opening them, because opening adds missing tables."""
    import sqlalchemy
    from optuna.storages import RDBStorage

    engine = sqlalchemy.create_engine(url, **options["engine_kwargs"])
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
        stamped = "alembic_version" in tables and bool(_rows(engine, "alembic_version"))
        if not stamped or "version_info" not in tables or not _rows(engine, "version_info"):
            return
    finally:
        engine.dispose()
    existing = RDBStorage(url, **options, skip_table_creation=True, skip_compatibility_check=True)
    try:
        version, supported = existing.get_current_version(), existing.get_head_version()
        known = existing.get_all_versions()
    finally:
        existing.remove_session()
        existing.engine.dispose()
    if version == supported:
        return
    remedy = (
        "Upgrade it with `optuna storage upgrade --storage URL` (back it up first)"
        if version in known
        else "Use the version of Optuna that made it (probably a newer one)"
    )
    raise StorageError(
        f"The storage {hide_address(url)} was made by another version of Optuna (schema {version}; this one uses "
        f"{supported}); nothing was changed. {remedy}, or give another --storage."
    )


def _rows(engine: Any, table: str) -> list[Any]:
    import sqlalchemy

    with engine.connect() as connection:
        return list(connection.execute(sqlalchemy.text(f"SELECT * FROM {table}")))


def _already_created(error: BaseException) -> bool:
    text = f"{error} {error.__cause__}".lower()
    return isinstance(error, AssertionError) or any(
        sign in text for sign in ("already exists", "duplicate key", "unique constraint")
    )


def _journal(name: str) -> BaseStorage:
    from optuna.storages import JournalStorage

    from lr_dist.search.engine.journal import AppendOnlyJournal

    path = expanded(name)
    _check_file(path)
    return JournalStorage(AppendOnlyJournal(path))


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
    if path.exists() and not path.is_file():
        raise StorageError(f"{path} is a device or a pipe; give a file.")
    if not path.parent.is_dir():
        raise StorageError(f"The folder {path.parent} of the storage does not exist; create it, or give another file.")


@contextlib.contextmanager
def _opening_errors(url: str) -> Iterator[None]:
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        yield
    except LRDistError:
        raise
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise StorageError(
            f"{hide_address(url)!r} is not a storage URL ({_first_line(error, url)}). Use {FORMS}."
        ) from _cause(error, url)
    except ImportError as error:
        raise StorageError(
            f"The storage {hide_address(url)} needs a driver that is not installed: {_first_line(error, url)}. "
            f"Install it: pip install 'lr-dist[{'grpc' if url.startswith('grpc:') else 'postgres'}]'."
        ) from _cause(error, url)
    except Exception as error:
        raise StorageError(
            f"The storage {hide_address(url)} cannot be opened: {_first_line(error, url)}. Check the address, the "
            "permissions, and that the server is running."
        ) from _cause(error, url)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's warnings that heartbeats, journals and retries are experimental."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _cause(error: BaseException, url: str | None) -> BaseException | None:
    """The cause to chain to an error: None if its traceback would show a part of the password."""
    return None if url is not None and quotes_secret(error, [url]) else error


def _first_line(error: BaseException, url: str | None) -> str:
    """The driver's message, without the URL's password: Optuna and SQLAlchemy wrap it in long messages of their own."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "orig", None) is not None:
            error = cause.orig  # type: ignore[attr-defined]
            break
        cause = cause.__cause__
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    kind = f"{type(error).__name__}: " if isinstance(error, (LookupError, TypeError, AssertionError)) else ""
    return redact(kind + lines[0].strip().rstrip("."), [url] if url else [])
