"""What every property of this folder needs: how many cases it gets, and that errors are ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings

from lr_dist.errors import LRDistError

# `at_length.py` sets it before it imports the tests: how many cases each of its calls of a property runs.
ENV_CASES = "LR_DIST_FUZZ_CASES"
# A message is read by a person: it quotes a value, never a megabyte.
LONGEST_MESSAGE = 2_000

T = TypeVar("T")


def cases(in_ci: int) -> settings:
    """The settings of a property: `in_ci` cases, the same in every run; or as many other ones as ENV_CASES says.

    A failure prints the shrunk case and a blob for `hypothesis.reproduce_failure`.
    """
    at_length = os.environ.get(ENV_CASES)
    return settings(
        max_examples=int(at_length) if at_length else in_ci,
        derandomize=at_length is None,
        database=None,
        deadline=None,
        print_blob=True,
        # Without Phase.explain, which runs a failing case again and again to comment it.
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large),
    )


def ours(call: Callable[..., T], *args: Any, **options: Any) -> T | LRDistError:
    """What `call` returns, or the error of ours that it raises; any other error comes through and fails the test."""
    try:
        return call(*args, **options)
    except LRDistError as error:
        raised = error
    message = str(raised)
    assert message.strip(), repr(raised)
    assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message[:300]}"
    message.encode("utf-8")  # half a character could not be printed
    return raised
