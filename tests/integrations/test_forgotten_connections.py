"""Connections that a firewall has forgotten, as far as they can be made: sessions of PostgreSQL that answer nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mppool import PoolManager
from mppool.odbc import OdbcRecipe
from tests.integrations.postgresql import Database


@contextmanager
def silent(pids: set[int]) -> Iterator[None]:
    """These sessions say nothing any more, for a while."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("check_timeout", [0.5, 2.0])
def test_all_of_them_are_replaced_within_the_bound_of_one_check(
    runtime_dir: Path, postgresql: Database, check_timeout: float
) -> None:
    """psqlodbc obeys no timeout of a session that answers nothing: the check is given up beside its caller."""
    with PoolManager("forgotten", linger=0.0) as manager:
        pool = manager.pool(
            "p",
            OdbcRecipe(postgresql.connection_string, autocommit=True),
            max_size=3,
            check_idle_for=0,
            check_timeout=check_timeout,
        )
        leases = [pool.checkout(timeout=20) for _ in range(3)]
        before = set(postgresql.session_pids())
        for lease in leases:
            lease.release()
        with silent(before):
            began = time.monotonic()
            leases = [pool.checkout(timeout=20) for _ in range(3)]
            took = time.monotonic() - began
            for lease in leases:
                assert lease.resource.execute("select 1").fetchone()[0] == 1
                lease.release()
        assert took < 2 * check_timeout + 5
        assert pool.stats()["counters"]["hung_checks"] >= 1
