"""`lr-dist dashboard`: show the studies of a storage live in the browser, with optuna-dashboard."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.studies import add_storage_options, storage_or_default
from lr_dist.cli.terminal import clean
from lr_dist.errors import ConfigurationError
from lr_dist.extras import require_libraries

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(description="Watch studies in the browser (optuna-dashboard), while they run and afterwards.")
    add_storage_options(p)
    p.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on; the dashboard has no password.")
    p.add_argument(
        "--allow-host",
        type=str,
        nargs="+",
        default=[],
        help="Host names that browsers may use, besides localhost and --host, e.g. behind a proxy.",
    )
    p.add_argument("--port", type=int, default=8080, help="Port to listen on; 0 for any free port.")
    return p


def run(settings: Namespace) -> int:
    """Serve until Ctrl-C."""
    require_libraries("dashboard", "optuna", "optuna_dashboard")
    server = serve(settings.storage, settings.output, settings.host, settings.port, settings.allow_host)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nStopped. The studies go on without it.", flush=True)
    return 0


def serve(storage: str | None, output: str, host: str, port: int, allowed_hosts: Sequence[str] = ()) -> WSGIServer:
    """A server that is listening; call `serve_forever` to answer. Prints its address and what it shows.

    Args:
        storage: its URL; None for the SQLite file in `output`.
        output: folder of the default storage.
        host, port: to listen on.
        allowed_hosts: host names that requests may use, see `only_for`.

    Raises:
        StorageError: the storage cannot be opened.
        ConfigurationError: the address cannot be used, e.g. because another program listens on it.
    """
    from optuna import get_all_study_names, logging
    from optuna_dashboard import wsgi

    from lr_dist.search.engine.storage import open_storage, storage_errors, study_errors
    from lr_dist.search.page.note import write_note
    from lr_dist.search.trials.study import load_study

    logging.set_verbosity(logging.WARNING)
    opened = open_storage(storage_or_default(storage, output))
    with storage_errors(opened):
        names = [name for name in get_all_study_names(opened) if not name.startswith(("reference/", "confirmation/"))]
    for name in names:
        # Report unreadable studies here; the page would show an empty table.
        with storage_errors(opened):
            study = load_study(opened, name)
        with study_errors(study):
            study.get_trials(deepcopy=False)
            write_note(study)
    server = listen(host, port)
    server.set_app(only_for([host, *allowed_hosts], wsgi(opened)))
    print(f"Dashboard: http://{f'[{host}]' if ':' in host else host}:{server.server_port}/dashboard/", flush=True)
    print(clean(f"Studies: {', '.join(names) or 'none yet'}. Ctrl-C ends it."), flush=True)
    return server


def only_for(names: Sequence[str], app: WSGIApplication) -> WSGIApplication:
    """Answer only to requests for an address, for localhost, or for one of these names.

    A foreign web page can make its own host name resolve to this machine (DNS rebinding). It could then read and change
    the studies through the user's browser. The browser still sends the page's host name in the header `Host`.

    Args:
        names: allowed host names, without a port.
        app: the WSGI application that answers.
    """
    allowed = {"localhost", *(name.strip("[]").lower().rstrip(".") for name in names)}

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        name = host_name(environ.get("HTTP_HOST", ""))
        if name in allowed or is_address(name):
            return app(environ, start_response)
        text = (
            f"The dashboard does not answer to the host name {ascii(name)[:200]}.\n"
            "If it is meant to, start it with: lr-dist dashboard --allow-host NAME\n"
        )
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [text.encode()]

    return checked


def host_name(header: str) -> str:
    """The name or address in a `Host` header, without its port: `[::1]:8080` -> `::1`."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower().rstrip(".")


def is_address(name: str) -> bool:
    """Whether this is an IP address, which a foreign page cannot have as its name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def listen(host: str, port: int) -> WSGIServer:
    """Listen on the address.

    Raises:
        ConfigurationError: it is in use, not an address of this machine, or invalid.
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
            """Log nothing: the page sends requests every few seconds, and their lines would hide the address."""

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
