"""Shared by the tests of bad input."""

from __future__ import annotations

import sys
from pathlib import Path

# pytest's import mode importlib leaves sys.path alone; `import kinds` needs this folder.
sys.path.insert(0, str(Path(__file__).parent))
