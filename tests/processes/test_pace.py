"""Replacing at a pace, watching a host name, and opening `min_size` without a checkout: over real processes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mppool import ConfigurationError, InProcessManager, PoolManager, endpoints
from mppool.base_manager import Manager
from tests.helpers import PATIENCE, Fork, wait_until

Forks = Callable[..., Fork]


@pytest.fixture(params=["in_process", "server"])
def either(request: pytest.FixtureRequest, manager: PoolManager) -> Iterator[Manager]:
    if request.param == "server":
        yield manager
        return
    with InProcessManager() as made:
        yield made


def test_a_reset_at_a_pace_lends_what_is_old_until_its_time(either: Manager) -> None:
    pool = either.pool("p", list, max_size=4)
    leases = [pool.checkout() for _ in range(4)]
    old = [lease.resource for lease in leases]
    for lease in leases:
        lease.release()
    pool.reset(over=1e6)
    with pool.checkout() as resource:  # long before its time, but for one in millions
        assert any(resource is one for one in old)
    assert pool.stats()["counters"]["closed"] == 0
    pool.reset()
    wait_until(lambda: pool.stats()["counters"]["closed"] == 4, "the rest goes at once")


def test_a_reset_at_a_pace_ends_everything_in_its_time_in_all_processes(
    manager: PoolManager, fork: Forks
) -> None:
    pool = manager.pool("p", list, max_size=4, max_idle=None)

    def hold() -> int:
        leases = [pool.checkout() for _ in range(2)]
        for lease in leases:
            lease.release()
        # Not before it is known to be closed: what a process holds at its end is counted otherwise.
        wait_until(lambda: pool.stats()["counters"]["closed"] >= 3, "what lay idle anywhere ends")
        return pool.idle_here

    leases = [pool.checkout() for _ in range(2)]
    leases[0].release()
    child = fork(hold)
    wait_until(lambda: pool.stats()["idle"] == 3, "both hold two")
    pool.reset(over=0.3)
    assert child.result() == 0
    wait_until(lambda: pool.idle_here == 0, "what lay idle here ends")
    assert not leases[1].released  # what is in use goes when it is released
    leases[1].release()
    counters = wait_until(
        lambda: (said := pool.stats()["counters"])["closed"] == 4 and said, "all are closed"
    )
    assert counters["opened"] == 4


@pytest.mark.parametrize("over", [-1.0, float("inf"), "60", None])
def test_what_is_no_pace_is_refused(either: Manager, over: Any) -> None:
    pool = either.pool("p", list)
    with pytest.raises(ConfigurationError, match="over="):
        pool.reset(over=over)


# --- a host name -----------------------------------------------------------------------------------------


class Resolver:
    """Says what a file says: processes see a change at once, or when they are told to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def says(self, *addresses: str) -> None:
        self.path.write_text(" ".join(addresses))

    def __call__(self, host: str, port: Any, **_: Any) -> list[tuple[Any, ...]]:
        assert host == "db.test"
        said = self.path.read_text().split()
        if not said:
            raise socket.gaierror("no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 5432)) for one in said]


@pytest.fixture
def resolver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Resolver:
    made = Resolver(tmp_path / "addresses")
    made.says("10.0.0.1")
    monkeypatch.setattr(endpoints.socket, "getaddrinfo", made)  # type: ignore[attr-defined]
    return made


def test_a_host_name_that_points_elsewhere_begins_one_generation_for_all_processes(
    manager: PoolManager, fork: Forks, resolver: Resolver
) -> None:
    pool = manager.pool("p", list, max_size=4, max_idle=None)
    watch = endpoints.watch(pool, "db.test", interval=0.02, over=0.1)

    def knows() -> bool:
        pool.checkout().release()  # who has nothing open does not look
        return watch.addresses == {"10.0.0.9"}

    def look() -> tuple[int, list[str]]:
        pool.checkout().release()
        # It resolves by itself, after the fork too, and sees the change perhaps before and perhaps after the other.
        wait_until(lambda: pool.idle_here == 0, "what is open here goes")
        wait_until(knows, "the change")
        return pool.stats()["generation"], sorted(watch.addresses)

    pool.checkout().release()
    wait_until(lambda: watch.addresses == {"10.0.0.1"}, "the first look")
    child = fork(look)
    wait_until(lambda: pool.stats()["idle"] == 2, "both hold one")
    assert pool.stats()["generation"] == 0
    resolver.says("10.0.0.9")
    wait_until(lambda: pool.idle_here == 0, "what is open here goes")
    assert child.result() == (1, ["10.0.0.9"])
    wait_until(knows, "this one knows")
    assert pool.stats()["generation"] == 1


def test_an_answer_with_a_known_address_and_none_are_no_change(
    either: Manager, resolver: Resolver
) -> None:
    pool = either.pool("p", list, max_size=4)
    watch = endpoints.watch(pool, "db.test", interval=0.01, over=0.0)
    with pool.checkout():
        wait_until(lambda: watch.addresses, "the first look")
        resolver.says("10.0.0.1", "10.0.0.2")
        wait_until(lambda: len(watch.addresses) == 2, "more addresses")
        resolver.says("10.0.0.2")
        wait_until(lambda: watch.addresses == {"10.0.0.2"}, "one of them has gone")
        resolver.says()
        assert pool.stats()["generation"] == 0
        watch.stop()
    resolver.says("10.0.0.9")
    pool.checkout(identity="anna").release()
    assert watch.addresses == {"10.0.0.2"}


def test_what_cannot_be_watched_is_refused(either: Manager) -> None:
    pool = either.pool("p", list)
    for host, more in [("", {}), (7, {}), ("db", {"interval": 0}), ("db", {"over": -1})]:
        with pytest.raises(ConfigurationError):
            endpoints.watch(pool, host, **more)  # type: ignore[arg-type]


# --- filled without a checkout ---------------------------------------------------------------------------


def test_start_fills_pools_without_a_checkout(manager: PoolManager) -> None:
    filled = manager.pool("filled", list, max_size=5, min_size=3, max_opening=1)
    kept = manager.pool("kept", list, max_size=5, min_size=3, prefill=False)
    manager.start()
    assert filled.stats()["size"] == 0
    manager.start(fill=True)
    assert filled.wait_ready(PATIENCE)
    stats = filled.stats()
    assert (stats["size"], stats["idle"], stats["counters"]["checkouts"]) == (3, 3, 0)
    assert kept.stats()["size"] == 0


def test_the_other_managers_fill_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with InProcessManager() as manager:
        pool = manager.pool("p", list, min_size=2)
        manager.start(fill=True)
        assert pool.wait_ready(PATIENCE)
    monkeypatch.setenv("MPPOOL_ALONE", "1")
    alone = PoolManager("alone")
    pool = alone.pool("p", list, min_size=2)
    alone.start(fill=True)
    assert pool.wait_ready(PATIENCE)
    alone.close()
