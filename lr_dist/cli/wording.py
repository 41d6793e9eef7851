"""What the values of options that several commands have are, in the same words everywhere.

Options that come from a dataclass have their help from its docstrings, with the same words; `tests/cli/test_help.py`
compares all of them.
"""

from __future__ import annotations

MODEL = "minilm (packaged, works offline), a name on the Hugging Face hub, or a path"
TASKS = "GLUE names, demo-*, TASK@length, TASK@embedding, NAME=FOLDER"
PRECISION = "32-true, bf16-mixed, or auto (the faster one on the machine)"
