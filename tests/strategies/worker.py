"""One of the processes that `launch.Processes` starts: performs the cases that come in, until there are no more.

Its argument is a file to make when it is ready. A line on stdin is a case and the file for its outcome. Lightning takes
this process for one that a cluster started, from LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

import torch
from strategies.runs import Case, perform

PAIRS = ("options", "layerwise", "monitored", "retained")


def main() -> None:
    if sys.platform == "linux":
        # Whatever ends the parent ends this process, in the middle of a hang too.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    processes = int(os.environ["WORLD_SIZE"])
    Path(sys.argv[1]).touch()
    for line in sys.stdin:
        task = json.loads(line)
        pairs = {name: tuple(map(tuple, task["case"].pop(name))) for name in PAIRS}
        case = Case(**task["case"], **pairs)
        print(f"--- {case.name}", file=sys.stderr, flush=True)
        outcome = perform(case, processes)
        half = Path(task["file"] + ".part")
        torch.save(outcome, half)
        half.rename(task["file"])


if __name__ == "__main__":
    main()
