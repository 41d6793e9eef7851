"""`lr-dist dashboard`: optuna-dashboard on the studies of a storage, live in the browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from lr_dist.errors import ConfigurationError
from lr_dist.extras import require_libraries

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(description="Watch studies in the browser (optuna-dashboard), while they run and afterwards.")
    p.add_argument("--storage", type=str | None, help="where the studies are (default: SQLite in the output folder)")
    p.add_argument("--output", type=str, default="runs/search", help="folder of the default storage")
    p.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on; there is no password")
    p.add_argument("--port", type=int, default=8080, help="0 for any free one")
    return p


def run(settings: Namespace) -> int:
    """Serve until Ctrl-C."""
    require_libraries("dashboard", "optuna", "optuna_dashboard")
    server = serve(settings.storage, settings.output, settings.host, settings.port)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nStopped. The studies go on without it.", flush=True)
    return 0


def serve(storage: str | None, output: str, host: str, port: int) -> WSGIServer:
    """A server that listens already; `serve_forever` answers. Prints its address and what it shows.

    Raises:
        StorageError: the storage cannot be opened.
        ConfigurationError: the address cannot be listened on, e.g. because another program does.
    """
    from optuna import get_all_study_names, logging
    from optuna_dashboard import wsgi

    from lr_dist.search.storage import default_storage, open_storage, storage_errors

    logging.set_verbosity(logging.WARNING)
    opened = open_storage(storage or default_storage(output))
    with storage_errors(opened):
        names = [name for name in get_all_study_names(opened) if not name.startswith("reference/")]
    server = listen(host, port)
    server.set_app(wsgi(opened))
    print(f"Dashboard: http://{f'[{host}]' if ':' in host else host}:{server.server_port}/dashboard/", flush=True)
    print(f"Studies: {', '.join(names) or 'none yet'}. Ctrl-C ends it.", flush=True)
    return server


def listen(host: str, port: int) -> WSGIServer:
    """Take the address.

    Raises:
        ConfigurationError: it is taken, is not this machine's, or is no address.
    """
    import socket
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    class Server(ThreadingMixIn, WSGIServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # A browser keeps connections open; they must not keep the command alive.
        daemon_threads = True

    class Handler(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """The page asks every few seconds; a line for each would bury the address."""

    if not 0 <= port <= 65535:
        raise ConfigurationError(f"--port must be from 0 (any free one) to 65535, not {port}.")
    try:
        return Server((host, port), Handler)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"Cannot listen on {host}, port {port}: {reason}. Give another --port (0 for any free one) or --host, or "
            "stop the program that listens there."
        ) from error
