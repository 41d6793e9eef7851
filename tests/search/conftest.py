"""A PostgreSQL server of the tests' own, on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from postgres_server import Server, installed, running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A running server; the tests are skipped where PostgreSQL is not installed."""
    programs = installed()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="the driver of the extra `postgres` is not installed")
    with running(programs) as server:
        yield server
