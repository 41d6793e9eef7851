"""Seconds until `import lr_dist` and `lr-dist --help` are done, each in a new process; medians."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from common import parser, publish

COMMANDS = {
    "python_alone": [sys.executable, "-c", "pass"],
    "import_lr_dist": [sys.executable, "-c", "import lr_dist"],
    "lr_dist_help": [sys.executable, "-m", "lr_dist.cli", "--help"],
}
HEAVY = ("torch", "lightning", "optuna", "datasets", "transformers", "matplotlib")


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--runs", type=int, default=9)
    arguments = p.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for run in range(arguments.runs + 1):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if run:  # the first round fills the disk cache
                seconds[name].append(time.perf_counter() - began)
    loaded = f"import sys, lr_dist; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout.strip()
    medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    publish(
        "import_time",
        {"runs": arguments.runs, "median_seconds": medians, "target_seconds": 1.0, "heavy_modules_imported": found},
        arguments.output,
    )


if __name__ == "__main__":
    main()
