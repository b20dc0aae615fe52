"""Budgets and lanes between real processes, counted by the witness and not by mppool."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mppool import (
    Budget,
    CheckoutTimeout,
    ConfigurationError,
    ConfigurationMismatch,
    InProcessManager,
    Pool,
    PoolError,
    PoolManager,
)
from tests.helpers import Fork, wait_until
from tests.processes.witness import Session, Witness

Forks = Callable[..., Fork]


class Flags:
    """A few bytes that forked processes share."""

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, 16)

    def __getitem__(self, number: int) -> bool:
        return self._bytes[number] != 0

    def set(self, number: int) -> None:
        self._bytes[number] = 1


def flood(pool: Pool[Session], over: Flags, threads: int = 2, **how: Any) -> int:
    """Use the pool all the time, in several threads, until the flag is set; how often. All are served in the end."""
    uses = [0] * threads

    def work(mine: int) -> None:
        while True:  # once at least, however late this process begins
            with pool.checkout(timeout=40, **how) as session:
                session.ask("x")
                time.sleep(0.001)
            uses[mine] += 1
            if over[0]:
                return

    workers = [threading.Thread(target=work, args=(mine,)) for mine in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(uses)


def test_two_pools_on_one_budget_never_have_more_and_each_has_its_share(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    budget = manager.budget("db", 4)
    orders = manager.pool("orders", witness.recipe(), budget=budget, check_idle_for=None)
    reports = manager.pool("reports", witness.recipe(), budget=budget, check_idle_for=None)
    over = Flags()
    floods = [fork(flood, orders, over) for _ in range(3)]
    wait_until(lambda: budget.stats()["pools"].get("orders") == 4, "one pool to have it all")
    floods += [fork(flood, reports, over) for _ in range(2)]
    wait_until(lambda: set(budget.stats()["pools"].values()) == {2}, "half for each")
    floods[0].kill()
    server = manager.server_pid
    assert server is not None
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: manager.server_pid not in (None, server), "another server")
    wait_until(lambda: set(budget.stats()["pools"].values()) == {2}, "half for each, as before")
    over.set(0)
    assert all(child.result() > 0 for child in floods[1:])
    assert witness.figures()["peak"] <= 4
    # No capacity is lost: one pool can have it all again.
    leases = [orders.checkout(timeout=20) for _ in range(4)]
    with pytest.raises(CheckoutTimeout, match="budget 'db' has 4 of max_size=4"):
        reports.checkout(timeout=0)
    for lease in leases:
        lease.release()
    assert witness.figures()["peak"] <= 4


def test_a_lane_gets_its_reserve_while_another_floods(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool(
        "p", witness.recipe(), max_size=6, lanes={"web": 2, "batch": 4}, check_idle_for=None
    )
    over = Flags()
    floods = [fork(lambda: flood(pool, over, 6, lane="batch")) for _ in range(2)]
    wait_until(lambda: pool.stats()["size"] == 6, "the idle reserve to be lent")
    wait_until(lambda: pool.stats()["waiting"] > 2, "a flood")
    held = [pool.checkout(timeout=40, lane="web") for _ in range(2)]
    lanes = pool.stats()["lanes"]
    assert lanes is not None
    assert lanes["web"]["in_use"] == 2
    for lease in held:
        lease.release()
    over.set(0)
    assert all(child.result() > 0 for child in floods)
    assert witness.figures()["peak"] <= 6


def test_of_two_hundred_tenants_one_floods_and_all_are_served(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=8, check_idle_for=None)
    over = Flags()
    flooding = fork(lambda: flood(pool, over, 16, identity="flood"))
    wait_until(lambda: pool.stats()["in_use"] >= 7, "a flood")

    def serve_tenants(first: int) -> int:
        for number in range(first, first + 100):
            with pool.checkout(timeout=40, identity=f"tenant{number}") as session:
                session.ask("x")
        return 100

    assert [fork(serve_tenants, first).result() for first in (0, 100)] == [100, 100]
    over.set(0)
    assert flooding.result() > 0
    assert witness.figures()["peak"] <= 8


# --- what users meet -----------------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Any:
    manager = InProcessManager("alone")
    yield manager
    manager.shutdown()


def test_a_budget_in_one_process(alone: InProcessManager) -> None:
    budget = alone.budget("db", 2)
    orders = alone.pool("orders", object, budget=budget)
    reports = alone.pool("reports", object, budget=budget)
    assert budget.stats()["size"] == 0
    first, second = orders.checkout(), reports.checkout()
    with pytest.raises(CheckoutTimeout, match="budget 'db'"):
        orders.checkout(timeout=0)
    assert budget.stats() == {
        "name": "db",
        "max_size": 2,
        "size": 2,
        "waiting": 0,
        "pools": {"orders": 1, "reports": 1},
    }
    assert orders.stats()["budget"] == "db"
    budget.resize(3)
    third = orders.checkout(timeout=0)
    assert alone.stats()["budgets"]["db"]["max_size"] == 3
    for lease in (first, second, third):
        lease.release()


def test_what_lies_idle_in_one_pool_is_taken_back_for_another(alone: InProcessManager) -> None:
    budget = alone.budget("db", 2)
    orders = alone.pool("orders", object, budget=budget)
    reports = alone.pool("reports", object, budget=budget)
    for lease in [reports.checkout() for _ in range(2)]:
        lease.release()
    leases = [orders.checkout(timeout=20) for _ in range(2)]
    assert budget.stats()["pools"] == {"orders": 2, "reports": 0}
    for lease in leases:
        lease.release()


def test_a_wrong_budget_is_refused_at_its_declaration(alone: InProcessManager) -> None:
    budget = alone.budget("db", 4)
    assert alone.budget("db", 4) == budget
    with pytest.raises(ConfigurationMismatch, match="max_size=4 and 5"):
        alone.budget("db", 5)
    for wrong in (0, -1, 1.5, None, True, "4"):
        with pytest.raises(ConfigurationError, match="budget 'other': max_size"):
            alone.budget("other", wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"manager\.budget"):
        alone.pool("p", object, budget="db")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="another manager"):
        alone.pool("p", object, budget=InProcessManager("other").budget("db", 3))
    alone.pool("orders", object, min_size=3, budget=budget)
    with pytest.raises(ConfigurationError, match="orders 3, reports 2"):
        alone.pool("reports", object, min_size=2, budget=budget)
    with pytest.raises(ConfigurationMismatch, match="budget"):
        alone.pool("orders", object, min_size=3)
    with pytest.raises(PoolError, match="budget 'unused'"):
        alone.budget("unused", 1).resize(2)


def test_wrong_lanes_are_refused(alone: InProcessManager) -> None:
    with pytest.raises(ConfigurationError, match="11 are reserved"):
        alone.pool("p", object, max_size=10, lanes={"web": 11})
    with pytest.raises(ConfigurationError, match="without a cap"):
        alone.pool("p", object, max_size=None, lanes={"web": 1})
    pool = alone.pool("p", object, max_size=4, lanes={"web": 2})
    with pytest.raises(ConfigurationError, match="its lanes are 'web'"):
        pool.checkout(lane="batch")
    with pytest.raises(ConfigurationError, match="its lanes are 'web'"):
        pool.acheckout(lane="batch")
    plain = alone.pool("plain", object)
    with pytest.raises(ConfigurationError, match="has no lanes"):
        plain.checkout(lane="web")
    with pool.checkout(lane="web"), pool.checkout():
        lanes = pool.stats()["lanes"]
        assert lanes is not None
        assert [lane["in_use"] for lane in lanes.values()] == [1, 1]
        assert [lane["reserved"] for lane in lanes.values()] == [2, 2]


def test_a_warm_checkout_in_a_lane_asks_nobody(alone: InProcessManager) -> None:
    pool = alone.pool("p", object, max_size=4, lanes={"web": 2})
    pool.checkout(lane="web").release()
    asked: list[Any] = []
    link = alone._member.link
    flush, call = link.flush, link.call
    link.call = lambda *arguments: asked.append(arguments) or call(*arguments)  # type: ignore[method-assign]
    link.flush = lambda *arguments: asked.append(arguments) or flush(*arguments)  # type: ignore[method-assign]
    for lane in ("web", None, "web", None):
        pool.checkout(lane=lane).release()
    assert not asked


def test_a_budget_pickles_with_its_pools(manager: PoolManager) -> None:
    budget = manager.budget("db", 3)
    pool = manager.pool("p", dict, budget=budget)
    copy: Budget = pickle.loads(pickle.dumps(budget))
    assert (copy.name, copy.max_size) == ("db", 3)
    assert pickle.loads(pickle.dumps(pool)).options.budget == "db"
