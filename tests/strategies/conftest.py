"""Two processes for all tests of strategies: to import torch and Lightning for each would take most of the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from strategies.launch import Processes
from strategies.runs import Case


@pytest.fixture(scope="session")
def pair() -> Iterator[Processes]:
    """Two processes, which start with the first case."""
    with Processes(2) as processes:
        yield processes


@pytest.fixture
def together(pair: Processes) -> Callable[[Case], list[dict[str, Any]]]:
    """Runs a case in two processes and returns the outcome of each."""
    return pair.run
