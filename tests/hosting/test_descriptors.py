"""A host, or a worker, that has no descriptors left: a clear error, others go on, and so does everything afterwards."""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mppool import PoolManager
from mppool.dbapi import DbApiRecipe
from mppool.errors import PoolError
from tests.helpers import run_python, wait_until

MEMORY = DbApiRecipe(sqlite3.connect, ":memory:")

_WORKER = """
import os, resource, sqlite3, sys
from mppool import PoolManager, ServerUnavailable
from mppool.dbapi import DbApiRecipe
from mppool.hosting import streams

resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
left = {left}
greeted = streams.greeting_on

def short(*arguments):
    "What comes finds so many descriptors left: other threads have taken all others."
    taken = []
    while True:
        try:
            taken.append(os.dup(0))
        except OSError:
            break
    for _ in range(left):
        os.close(taken.pop())
    try:
        return greeted(*arguments)
    finally:
        for one in taken:
            os.close(one)

with PoolManager("t") as manager:
    pool = manager.pool("p", DbApiRecipe(sqlite3.connect, ":memory:"), placement="host", max_size=3)
    with pool.checkout(timeout=30) as first:
        first.execute("select 1").fetchone()
        before = len(os.listdir("/proc/self/fd"))
        streams.greeting_on = short
        try:
            pool.checkout(timeout=30)
        except ServerUnavailable as error:
            assert "no descriptor is left" in str(error), error
        else:
            sys.exit("it was not refused")
        streams.greeting_on = greeted
        assert len(os.listdir("/proc/self/fd")) == before
        assert first.execute("select 2").fetchone() == (2,)
        with pool.checkout(timeout=30) as second:
            print(second.execute("select 3").fetchone())
"""


@pytest.mark.parametrize("left", [0, 1, 3, 4])
def test_a_worker_without_room_for_the_descriptors_of_a_host_is_told(
    runtime_dir: Path, left: int
) -> None:
    """Four come; the memory that says whether a lease is kept needs a fifth for a moment."""
    assert run_python(_WORKER.format(left=left)).stdout == "(3,)\n"


@contextmanager
def _short(pid: int, left: int) -> Iterator[None]:
    """Another process may open so many descriptors more."""
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = [number for number in range(max(used) + left + 2) if number not in used]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[left], limits[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_a_host_without_descriptors_keeps_what_it_has(manager: PoolManager, left: int) -> None:
    pool = manager.pool("p", MEMORY, placement="host", max_size=3)
    with pool.checkout(timeout=30) as first:
        first.execute("create table t (n integer)")
        host = next(
            one["pid"] for one in pool.stats()["processes"] if one["label"] == "host 1 of p"
        )
        with _short(host, left), pytest.raises(PoolError) as refused:
            pool.checkout(timeout=1.5)
        if left > 1:  # else it cannot say so
            assert f"its host, process {host}, lets no process in" in str(refused.value)
        assert first.execute("select count(*) from t").fetchone() == (0,)

        def serves_another() -> bool:
            with pool.checkout(timeout=30) as second:
                return bool(second.execute("select 1").fetchone() == (1,))

        wait_until(serves_another, "it lets workers in again")
        assert first.execute("select count(*) from t").fetchone() == (0,)
    assert host in {one["pid"] for one in pool.stats()["processes"]}
