"""Run tests of this folder under `pytorch_lightning`, the twin of `lightning.pytorch`, as if the latter were missing.

    python tests/twin.py tests/test_callback.py tests/test_gradual.py -k resume

The tests are copied with the other package's name in their imports; the arguments are pytest's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RENAMED = {
    "lightning.pytorch": "pytorch_lightning",
    "lightning.fabric": "lightning_fabric",
    "import lightning as L": "import pytorch_lightning as L",
}
# A plugin of pytest, loaded before anything is imported.
WITHOUT_LIGHTNING = 'import sys\n\nsys.modules["lightning"] = None\n'


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Copy the tests to `folder`, and run pytest there."""
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for file in (folder / "tests").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for name, twin in RENAMED.items():
            text = text.replace(name, twin)
        file.write_text(text, encoding="utf-8")
    (folder / "without_lightning.py").write_text(WITHOUT_LIGHTNING, encoding="utf-8")
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "without_lightning", "-p", "no:cacheprovider", "-q", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        done = run(Path(name), *sys.argv[1:])
    print(done.stdout)
    sys.exit(done.returncode)
