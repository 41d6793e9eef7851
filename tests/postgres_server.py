"""A PostgreSQL server of one's own, on loopback: for the tests and for the benchmark of the storage."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """A server that can be stopped and started.

    Attributes:
        programs: folder with initdb and pg_ctl.
        folder: of its data, its log and its socket.
        port: on 127.0.0.1.
        durable: whether a commit waits for the disk, as on a real server; the tests need not.
    """

    programs: Path
    folder: Path
    port: int
    durable: bool = False

    @property
    def url(self) -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}"

    def database(self, name: str) -> str:
        """The URL of a new, empty database."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "tester", name)
        return f"{self.url}/{name}"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        options += "" if self.durable else " -c fsync=off"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-l", log, "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", mode, "-w", "stop")

    def cpu_seconds(self) -> float:
        """Processor time of the server and of all its processes so far, those that have ended included."""
        import psutil

        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        own = psutil.Process(pid)
        while True:
            try:
                return sum(sum(process.cpu_times()[:4]) for process in [own, *own.children()])
            except psutil.NoSuchProcess as error:
                # A connection's process that ends between the two looks is in the server's own time at the next.
                if error.pid == pid:
                    raise

    def create(self) -> None:
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "tester", "-A", "trust", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        # The server refuses to run as root.
        prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*prefix, str(self.programs / program), *arguments]
        # Not captured: the server would hold the pipe open.
        done = subprocess.run(
            command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=90
        )
        assert done.returncode == 0, f"{program} failed; see {self.folder / 'log'}"


def installed() -> Path | None:
    """The folder of PostgreSQL's programs; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [
        Path(path) for path in [shutil.which("initdb")] if path
    ]
    return found[-1].parent if found else None


@contextmanager
def running(programs: Path, *, durable: bool = False, keep: Path | None = None) -> Iterator[Server]:
    """A server, stopped at the end; its data are new and gone afterwards, or stay in the folder `keep`."""
    # A socket's path may have 107 characters at most, and the server's user has to reach it.
    folder = keep or Path(subprocess.check_output(["mktemp", "-d", "/tmp/lr-dist-pg-XXXXXX"], text=True).strip())
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    server = Server(programs, folder, _free_port(), durable)
    try:
        if not (folder / "data" / "PG_VERSION").exists():
            server.create()
        server.start()
        yield server
    finally:
        # Whoever used it may have stopped it already.
        with suppress(AssertionError):
            server.stop("fast" if keep else "immediate")
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
