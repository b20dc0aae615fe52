"""Statistics over processes: everything is there, is right after a known history, and disturbs nobody."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from mppool import CheckoutTimeout, Pool, PoolManager
from mppool.stats.names import BOUNDS
from tests.helpers import wait_until
from tests.processes.options.scene import HookedThings, Scene

Declare = Callable[..., Pool[Any]]
Hire = Callable[..., Any]

# As the public interface names them.
GAUGES = {
    "name", "placement", "max_size", "min_size", "size", "opening", "in_use", "idle", "waiting",
    "breaker", "identities", "counters", "histograms", "processes", "resources",
}  # fmt: skip
COUNTERS = {
    "opened", "open_failed", "closed", "checkouts", "timeouts", "refused", "expired_idle",
    "expired_lifetime", "worn_out", "unhealthy", "killed", "leaked", "moved", "died_with_process",
    "checks", "check_errors", "hook_errors", "reopened", "evicted_identities",
}  # fmt: skip
OF_PROCESS = {"pid", "label", "in_use", "idle", "waiting", "checkouts"}
OF_RESOURCE = {
    "id", "pid", "state", "identity_key", "uses", "age", "idle_for", "held_for", "description",
}  # fmt: skip
OF_MANAGER = {"name", "epoch", "server_pid", "uptime", "processes", "pools", "tokens"}


def total(stats: dict[str, Any], histogram: str) -> int:
    return sum(stats["histograms"][histogram]["counts"])


def test_everything_that_is_named_is_there_before_anything_has_begun(
    declare: Declare, manager: PoolManager
) -> None:
    pool = declare()
    stats = pool.stats()
    assert set(stats) >= GAUGES
    assert set(stats["counters"]) >= COUNTERS
    assert set(stats["counters"].values()) == {0}
    assert set(manager.stats()) >= OF_MANAGER
    assert manager.server_pid is None  # to look starts nothing


def test_a_known_history_in_two_processes(declare: Declare, hire: Hire, scene: Scene) -> None:
    pool = declare(HookedThings, max_size=3, max_uses=5)
    one, two = hire(pool, 2)
    one.do("checkout", "held", identity="alice")
    for _ in range(5):
        two.do("checkout")
        two.do("release")
    two.do("checkout", "idle soon")
    two.do("checkout", "in use")
    two.do("release", "idle soon")
    with pytest.raises(CheckoutTimeout):
        one.do("checkout", timeout=0.01)
    stats = pool.stats()
    json.loads(json.dumps(stats, allow_nan=False))
    assert (stats["size"], stats["in_use"], stats["idle"], stats["waiting"]) in (
        (3, 2, 1, 0),
        (2, 2, 0, 0),  # its process was asked for what lies idle, and has closed it
    )
    assert (stats["identities"], stats["opening"], stats["breaker"]) == (2, 0, "closed")
    counters = stats["counters"]
    expected = {
        "opened": 4, "checkouts": 8, "worn_out": 1, "timeouts": 1,
        "open_failed": 0, "refused": 0, "unhealthy": 0, "leaked": 0, "hook_errors": 0,
    }  # fmt: skip
    assert {name: counters[name] for name in expected} == expected
    assert counters["closed"] == counters["worn_out"] + counters["moved"]
    by_pid = {process["pid"]: process for process in stats["processes"]}
    assert all(set(process) >= OF_PROCESS for process in by_pid.values())
    assert (by_pid[one.pid]["checkouts"], by_pid[one.pid]["in_use"]) == (1, 1)
    assert (by_pid[two.pid]["checkouts"], by_pid[two.pid]["in_use"]) == (7, 1)
    assert all(set(resource) >= OF_RESOURCE for resource in stats["resources"])
    (alices,) = (r for r in stats["resources"] if r["identity_key"] == "alice")
    assert (alices["pid"], alices["state"], alices["uses"]) == (one.pid, "in_use", 1)
    assert (alices["description"], alices["shoe size"], alices["number"]) == ("thing 0", 42, 0)
    assert alices["age"] >= alices["held_for"] > 0
    assert alices["idle_for"] is None
    assert (total(stats, "open"), total(stats, "wait"), total(stats, "use")) == (4, 8, 6)
    assert stats["histograms"]["wait"]["bounds"] == list(BOUNDS)
    assert len(stats["histograms"]["wait"]["counts"]) == len(BOUNDS) + 1


def test_the_figures_of_the_dead_stay_counted(declare: Declare, hire: Hire) -> None:
    pool = declare(max_size=3)
    one = hire(pool)
    for _ in range(4):
        one.do("checkout")
        one.do("release")
    assert pool.stats()["counters"]["checkouts"] == 4
    pool.checkout().release()
    one.kill()
    wait_until(lambda: pool.stats()["counters"]["died_with_process"] == 1, "its death to be seen")
    stats = pool.stats()
    assert stats["counters"]["checkouts"] == total(stats, "use") == 5
    assert [process["pid"] for process in stats["processes"]] == [os.getpid()]


def test_long_uses_and_waits_are_in_their_buckets(declare: Declare, hire: Hire) -> None:
    pool = declare(max_size=1)
    holder, waiter = hire(pool, 2)
    beyond = BOUNDS.index(0.1) + 1
    holder.do("checkout")
    before = pool.stats()  # the first wait was for the server to start
    waiter.tell("checkout", timeout=20)
    wait_until(lambda: pool.stats()["waiting"] == 1, "it to wait")
    time.sleep(0.11)
    holder.do("release")
    waiter.answer()
    after = pool.stats()
    for histogram in ("wait", "use"):
        counts = [
            sum(stats["histograms"][histogram]["counts"][beyond:]) for stats in (before, after)
        ]
        assert counts[1] - counts[0] == 1


def test_reading_moves_nothing(declare: Declare, hire: Hire, scene: Scene) -> None:
    pool = declare(max_size=4)
    one = hire(pool)
    one.do("checkout")
    one.do("release")
    before = pool.stats()
    for _ in range(20):
        after = pool.stats()
    assert after["counters"] == before["counters"]
    assert after["resources"][0]["uses"] == 1
    assert after["resources"][0]["idle_for"] > before["resources"][0]["idle_for"]
    assert scene.count("open") == 1


def test_gauges_add_up_while_processes_work(declare: Declare, hire: Hire) -> None:
    pool = declare(max_size=3)
    colleagues = hire(pool, 3)
    for turn in range(30):
        for colleague in colleagues:
            colleague.tell("checkout", timeout=20)
            colleague.tell("release")
        stats = pool.stats()
        states = [resource["state"] for resource in stats["resources"]]
        assert len(states) == stats["size"] <= 3
        assert stats["in_use"] + stats["idle"] + stats["opening"] <= stats["size"], turn
        for colleague in colleagues:
            colleague.answer()
            colleague.answer()


def test_a_pool_that_this_process_has_only_declared(
    declare: Declare, hire: Hire, manager: PoolManager
) -> None:
    one = hire(declare())
    one.do("checkout")  # there is a server now, and it knows nothing of what follows
    other = manager.pool("other", list, max_size=7)
    assert other.stats()["max_size"] == 7
    assert {"things", "other"} <= set(manager.stats()["pools"])


def test_statistics_of_many_resources_are_complete(manager: PoolManager) -> None:
    """They travel in parts."""
    pool = manager.pool("many", list, max_size=None, stats=lambda r: {"shoe size": 42})
    leases = [pool.checkout(timeout=20) for _ in range(1100)]
    wait_until(lambda: pool.stats()["in_use"] == 1100, "it to be told in time")
    resources = pool.stats()["resources"]
    assert len({resource["id"] for resource in resources}) == 1100
    assert {resource["state"] for resource in resources} == {"in_use"}
    assert {resource.get("shoe size") for resource in resources} <= {42, None}
    for lease in leases:
        lease.release()


def test_without_a_server_they_say_what_this_process_holds(manager: PoolManager) -> None:
    """A server that was told to end leaves what is lent with its users; it counts for the next one."""
    pool: Pool[object] = manager.pool("p", object, max_size=3)
    lease = pool.checkout()
    manager.shutdown()
    stats = manager.stats()
    assert stats["server_pid"] is None
    assert (pool.stats()["size"], pool.stats()["in_use"]) == (1, 1)
    assert [one["pid"] for one in pool.stats()["resources"]] == [os.getpid()]
    lease.release()
    assert (pool.stats()["size"], pool.stats()["idle"]) == (1, 1)
    assert manager.server_pid is None
    pool.close()
    assert pool.stats()["size"] == 0
