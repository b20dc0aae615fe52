"""Checks that hang: a connection that a firewall has forgotten gives no answer, and no error either (row A22)."""

from __future__ import annotations

import contextvars
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mppool import CheckoutTimeout, InProcessManager, Pool, PoolManager, Recipe
from mppool.process.executor import MOST_THREADS
from mppool.recipe import Opening
from tests.helpers import wait_until

Declare = Callable[..., Pool[Any]]


class Connections(Recipe[dict[str, Any]]):
    """Connections in memory. Those in `forgotten` answer nothing, to a check or a close, until `network` is back."""

    def __init__(self) -> None:
        self.network = threading.Event()
        self.forgotten: set[int] = set()
        self.closes_hang = False
        self.closed: list[int] = []
        self.hanging = 0

    def open(self, opening: Opening) -> dict[str, Any]:
        return {"number": opening.number}

    def check(self, connection: dict[str, Any]) -> bool:
        self._ask(connection)
        return True

    def close(self, connection: dict[str, Any]) -> None:
        if self.closes_hang:
            self._ask(connection)
        self.closed.append(connection["number"])

    def _ask(self, connection: dict[str, Any]) -> None:
        if connection["number"] in self.forgotten:
            self.hanging += 1
            self.network.wait(60)
            self.hanging -= 1

    def forget_all(self, pool: Pool[Any], count: int) -> None:
        leases = [pool.checkout(timeout=10) for _ in range(count)]
        self.forgotten = {lease.resource["number"] for lease in leases}
        for lease in leases:
            lease.release()


@pytest.fixture
def connections() -> Iterator[Connections]:
    recipe = Connections()
    yield recipe
    recipe.network.set()
    wait_until(lambda: not recipe.hanging, "nothing hangs any more")


def counters(pool: Pool[Any]) -> dict[str, int]:
    return dict(pool.stats()["counters"])


@pytest.mark.parametrize("closes_hang", [False, True])
def test_where_a_check_hangs_the_resource_and_its_siblings_are_replaced(
    manager: PoolManager, connections: Connections, closes_hang: bool
) -> None:
    pool = manager.pool("p", connections, max_size=5, check_idle_for=0, check_timeout=0.3)
    connections.forget_all(pool, 5)
    connections.closes_hang = closes_hang
    leases = [pool.checkout(timeout=20) for _ in range(5)]
    assert all(lease.resource["number"] >= 5 for lease in leases)
    assert pool.stats()["size"] == 5
    assert counters(pool)["hung_checks"] == 1
    connections.network.set()
    wait_until(lambda: sorted(connections.closed) == [0, 1, 2, 3, 4], "all to be closed after all")
    for lease in leases:
        lease.release()
    assert pool.stats()["size"] == 5


def test_all_processes_replace_what_is_as_old(manager: PoolManager, hire: Any) -> None:
    recipe = Connections()
    pool = manager.pool("p", recipe, max_size=4, check_idle_for=0, check_timeout=0.3)
    (one,) = hire(pool, 1)
    one.do("checkout_and_release")
    lease = pool.checkout(timeout=10)
    before = {entry["id"] for entry in pool.stats()["resources"]}
    recipe.forgotten = {lease.resource["number"]}
    lease.release()
    with pool.checkout(timeout=10):
        after = {entry["id"] for entry in pool.stats()["resources"]}
    assert not before & after
    recipe.network.set()


def test_a_checkout_keeps_to_its_timeout_although_a_check_hangs(
    manager: PoolManager, connections: Connections
) -> None:
    pool = manager.pool("p", connections, max_size=1, check_idle_for=0, check_timeout=4.0)
    connections.forget_all(pool, 1)
    began = time.monotonic()
    with pytest.raises(CheckoutTimeout, match="check"):
        pool.checkout(timeout=0.6)
    assert time.monotonic() - began < 4.0
    with pool.checkout(
        timeout=20
    ) as connection:  # the check is given up although nobody waits for it
        assert connection["number"] == 1
    assert counters(pool)["timeouts"] == 1


def test_a_check_that_outlasts_its_caller_and_says_yes_loses_nothing(
    manager: PoolManager, connections: Connections
) -> None:
    pool = manager.pool("p", connections, max_size=1, check_idle_for=0, check_timeout=30.0)
    connections.forget_all(pool, 1)
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0)
    connections.forgotten.clear()
    connections.network.set()
    with pool.checkout(timeout=20) as connection:
        assert connection["number"] == 0
    assert counters(pool)["opened"] == 1


def test_a_background_check_that_hangs_is_given_up(
    manager: PoolManager, connections: Connections
) -> None:
    pool = manager.pool(
        "p", connections, max_size=2, check_interval=0.1, check_idle_for=None, check_timeout=0.3
    )
    connections.forget_all(pool, 2)
    wait_until(lambda: pool.stats()["size"] == 0, "both to be gone")
    with pool.checkout(timeout=20) as connection:
        assert connection["number"] == 2


def test_hung_checks_keep_no_other_check_from_running(
    manager: PoolManager, connections: Connections
) -> None:
    pool = manager.pool("p", connections, max_size=200, check_idle_for=0, check_timeout=0.1)
    for hanging in range(MOST_THREADS + 6):
        lease = pool.checkout(timeout=20)
        connections.forgotten = {lease.resource["number"]}
        lease.release()
        pool.checkout(timeout=20).release()  # the check hangs, and another one is opened
        # Its thread may have come to it only after the check was given up.
        wait_until(lambda n=hanging + 1: connections.hanging == n, "the check to hang")
        thread = threading.Thread(target=lambda: pool.checkout(timeout=20).release())
        thread.start()
        thread.join()
    assert counters(pool)["hung_checks"] >= MOST_THREADS + 6  # healthy ones on a busy machine, too


def test_the_context_of_the_caller_is_that_of_the_check(manager: PoolManager) -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
    seen: list[str] = []

    def check(resource: Any) -> bool:
        seen.append(who.get())
        return True

    pool = manager.pool("p", list, check=check, check_idle_for=0)
    pool.checkout().release()
    who.set("me")
    pool.checkout().release()
    assert seen == ["me"]


def test_what_may_be_used_in_one_thread_only_is_checked_there() -> None:
    manager = InProcessManager()
    pool = manager.pool(
        "sqlite",
        lambda: sqlite3.connect(":memory:"),
        check=lambda c: c.execute("select 1").fetchone() == (1,),
        check_idle_for=0,
        close=lambda c: None,
        open_in_caller=True,
    )
    for _ in range(4):
        with pool.checkout() as connection:
            connection.execute("select 1")
    assert counters(pool)["opened"] == 1
    assert counters(pool)["check_errors"] == 0


def test_without_a_check_timeout_checks_run_in_the_thread_of_their_caller(
    manager: PoolManager,
) -> None:
    threads: list[int] = []

    def check(resource: Any) -> bool:
        threads.append(threading.get_ident())
        return True

    pool = manager.pool("p", list, check=check, check_idle_for=0, check_timeout=None)
    pool.checkout().release()
    pool.checkout().release()
    assert threads == [threading.get_ident()]


def test_a_recipe_that_bounds_its_check_says_that_there_was_no_answer(
    manager: PoolManager, connections: Connections
) -> None:
    """A TimeoutError: the siblings go too, and a close that hangs keeps no slot."""

    class Bounded(Connections):
        def check_within(self, connection: dict[str, Any], seconds: float) -> bool:
            if connection["number"] in self.forgotten:
                raise TimeoutError(f"no answer within {seconds:g} s")
            return True

    recipe = Bounded()
    pool = manager.pool("p", recipe, max_size=3, check_idle_for=0, check_timeout=0.4)
    recipe.forget_all(pool, 3)
    recipe.closes_hang = True
    leases = [pool.checkout(timeout=10) for _ in range(3)]
    assert all(lease.resource["number"] >= 3 for lease in leases)
    assert counters(pool)["hung_checks"] == 1
    recipe.network.set()
    wait_until(lambda: sorted(recipe.closed) == [0, 1, 2], "all to be closed after all")
    for lease in leases:
        lease.release()


def test_a_check_that_complains_of_its_thread_runs_in_that_of_its_caller(
    manager: PoolManager,
) -> None:
    """For what was opened anywhere and wants to be used where it was used first."""
    mine = threading.get_ident()

    def check(resource: Any) -> bool:
        if threading.get_ident() != mine:
            raise RuntimeError("to be used in that same thread only")
        return True

    pool = manager.pool("p", list, check=check, check_idle_for=0)
    for _ in range(4):
        pool.checkout().release()
    assert counters(pool)["opened"] == 1
    assert counters(pool)["check_errors"] == 0
