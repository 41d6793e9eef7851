"""Real processes that run cases together, started once for many of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from strategies.runs import Case

_TESTS = Path(__file__).parents[1]
# Importing torch, Lightning and transformers takes seconds, on a busy machine minutes; it cannot hang.
_START_TIMEOUT = 300.0


class Processes:
    """`count` processes of `worker.py`; they start with the first case and end with this object, or with its process.

    A case that takes longer than `timeout` seconds ends them, and what they wrote to stderr is shown; the next case
    starts others. `ids` are those of the processes that were started last.
    """

    def __init__(self, count: int = 2, *, timeout: float = 110.0) -> None:
        self.count = count
        self.timeout = timeout
        self._folder = tempfile.TemporaryDirectory(prefix="strategies-")
        self.ids: list[int] = []
        self._running: list[subprocess.Popen[str]] = []
        self._tasks = 0

    def run(self, case: Case) -> list[dict[str, Any]]:
        """The outcome of `case` in each process (`runs.perform`).

        Raises:
            RuntimeError: a process ended, or the time is up.
        """
        if not self._running:
            self._start()
        self._tasks += 1
        files = [Path(self._folder.name) / f"{self._tasks}.{rank}.pt" for rank in range(self.count)]
        for process, file in zip(self._running, files, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps({"case": asdict(case), "file": str(file)}) + "\n")
            process.stdin.flush()
        self._wait(case, files, self.timeout)
        outcomes = [torch.load(file, weights_only=True) for file in files]
        for file in files:
            file.unlink()
        return outcomes

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._end()
        self._folder.cleanup()

    def _start(self) -> None:
        shared = {
            # A seed that Lightning left in the environment would shuffle their data another way than this process's.
            **{name: value for name, value in os.environ.items() if not name.startswith("PL_")},
            "PYTHONPATH": os.pathsep.join([str(_TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(find_free_network_port()),
            "WORLD_SIZE": str(self.count),
            "NODE_RANK": "0",
            # A thread each: more would only wait for one another.
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        for rank in range(self.count):
            with open(self._log(rank), "w") as log:
                process = subprocess.Popen(
                    [sys.executable, str(_TESTS / "strategies" / "worker.py"), f"{self._folder.name}/ready.{rank}"],
                    env={**shared, "LOCAL_RANK": str(rank)},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    text=True,
                )
            self._running.append(process)
        self.ids = [process.pid for process in self._running]
        # Importing takes a second on an idle machine, and much more on a busy one.
        ready = [Path(self._folder.name) / f"ready.{rank}" for rank in range(self.count)]
        self._wait("the start", ready, _START_TIMEOUT)

    def _wait(self, what: object, files: Sequence[Path], timeout: float) -> None:
        end = time.monotonic() + timeout
        while not all(file.exists() for file in files):
            ended = [rank for rank, process in enumerate(self._running) if process.poll() is not None]
            if ended or time.monotonic() > end:
                waiting = [rank for rank, file in enumerate(files) if not file.exists()]
                how = f"process {ended} ended" if ended else f"no answer from process {waiting} in {timeout:g} s"
                logs = "\n".join(f"[process {r}] {self._log(r).read_text()[-4000:]}" for r in range(self.count))
                self._end()
                raise RuntimeError(f"{what}: {how}.\n{logs}")
            time.sleep(0.01)

    def _end(self) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._running = []
        for ready in Path(self._folder.name).glob("ready.*"):
            ready.unlink()

    def _log(self, rank: int) -> Path:
        return Path(self._folder.name) / f"process{rank}.log"
