"""All that shares one limit at once, between real processes: two pools on a budget, lanes, 200 tenants of which one floods.

In seconds that depends on the machine (in simulated time: `tests/core/test_everybody.py`). So it is counted for how long
the flood had what it has beside those that it must not keep waiting.
"""

from __future__ import annotations

import mmap
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from mppool import Pool, PoolManager
from tests.helpers import Fork, wait_until
from tests.processes.test_budgets import Flags
from tests.processes.witness import Session, Witness

CAP, TENANTS, PROCESSES, THREADS = 8, 200, 4, 10
MOST = 16
"""Threads of a flood."""

OVER, GATE = 0, 1

Forks = Callable[..., Fork]


class Used:
    """For how many microseconds each thread has had something, for forked processes to share; each has one writer."""

    def __init__(self, count: int) -> None:
        self._bytes = mmap.mmap(-1, 8 * count)

    def add(self, number: int, seconds: float) -> None:
        struct.pack_into("q", self._bytes, 8 * number, self[number] + round(seconds * 1e6))

    def __getitem__(self, number: int) -> int:
        (value,) = struct.unpack_from("q", self._bytes, 8 * number)
        return int(value)

    def seconds(self, first: int, count: int = MOST) -> float:
        return sum(self[number] for number in range(first, first + count)) / 1e6


def flood(
    pool: Pool[Session], flags: Flags, used: Used, first: int, threads: int = MOST, **how: Any
) -> None:
    """Use the pool all the time, in so many threads, until the flag is set. first: of their figures."""

    def work(number: int) -> None:
        while not flags[OVER]:
            with pool.checkout(timeout=120, **how) as session:
                began = time.monotonic()
                session.ask("x")
                time.sleep(0.002)
                used.add(number, time.monotonic() - began)

    workers = [threading.Thread(target=work, args=(first + one,)) for one in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def serve_tenants(pool: Pool[Session], flags: Flags, first: int, count: int) -> None:
    """Each tenant once, many at a time, from the moment at which the gate is opened."""
    wait_until(lambda: flags[GATE], "the gate is opened")
    tenants = list(range(first, first + count))

    def work() -> None:
        while True:
            try:
                tenant = tenants.pop()
            except IndexError:
                return
            with pool.checkout(timeout=120, identity=f"tenant {tenant}") as session:
                session.ask("x")

    workers = [threading.Thread(target=work) for _ in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def test_every_pool_lane_and_tenant_has_its_share_beside_floods(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    budget = manager.budget("db", CAP)
    orders = manager.pool(
        "orders", witness.recipe(), max_size=CAP // 2, budget=budget, check_idle_for=None,
        lanes={"web": 1, "batch": CAP // 2 - 1},
    )  # fmt: skip
    reports = manager.pool("reports", witness.recipe(), budget=budget, check_idle_for=None)
    flags, used = Flags(), Used(64)
    batch, tenant, web = 0, 16, 32
    floods = [fork(lambda: flood(reports, flags, used, tenant, identity="flood"))]
    wait_until(lambda: budget.stats()["pools"].get("reports") == CAP, "one has all of the budget")
    floods.append(fork(lambda: flood(orders, flags, used, batch, lane="batch")))
    wait_until(
        lambda: budget.stats()["pools"] == {"orders": CAP // 2, "reports": CAP // 2},
        "half for each pool",
    )
    floods.append(fork(lambda: flood(orders, flags, used, web, 2, lane="web")))
    wait_until(lambda: used.seconds(web) > 0.02, "the other lane is served")
    each = TENANTS // PROCESSES
    served = [
        fork(serve_tenants, reports, flags, each * number, each - (number == 0))
        for number in range(PROCESSES)
    ]
    began, before = time.monotonic(), [used.seconds(one) for one in (tenant, batch, web)]
    flags.set(GATE)
    for child in served:
        child.result()
    seconds = time.monotonic() - began
    of_flood, of_batch, of_web = (
        used.seconds(one) - earlier
        for one, earlier in zip((tenant, batch, web), before, strict=True)
    )
    # Forty tenants wait all the time, each with nothing: one that has something comes after them.
    assert of_flood < seconds * CAP / 2 * 0.5, "the flood had half of its pool"
    # The other pool went on, and both of its lanes.
    assert of_batch > 0
    assert of_web > 0
    flags.set(OVER)
    for child in floods:
        child.result()
    figures = witness.figures()
    assert figures["over"] == []
    assert figures["peak"] <= CAP
