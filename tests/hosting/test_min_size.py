"""`min_size` over hosts: it is kept although hosts end, and nobody asks for anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from mppool import PoolManager
from mppool.hosting.tending import LONGEST_PAUSE_S, LOOK_S, SHORT_LIFE_S, Tender
from tests.helpers import PATIENCE, Fork, is_alive, wait_until
from tests.hosting.things import Thing


def host_of(pool: Any) -> int:
    """The pid of the host that is there; 0: there is none."""
    hosts = [one["pid"] for one in pool.stats()["processes"] if one["label"].startswith("host")]
    alive = [pid for pid in hosts if is_alive(pid)]
    return alive[0] if alive else 0


def test_a_dead_host_is_replaced_and_min_size_filled_without_demand(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, min_size=2, max_size=3, placement="host", timeout=PATIENCE)
    pool.wait_ready(PATIENCE)

    def used_in_a_child() -> Any:
        with pool.checkout() as thing:
            return thing.echo(5)

    # A worker that has ended has nothing to do with it; this one goes on.
    assert Fork(used_in_a_child).result() == 5
    for _ in range(2):  # the second one has not lived for long
        host = host_of(pool)
        os.kill(host, signal.SIGKILL)
        wait_until(lambda: not is_alive(host), "the end of the host")  # noqa: B023
        wait_until(lambda: host_of(pool) not in (0, host), "another host")  # noqa: B023
        wait_until(lambda: pool.stats()["idle"] == 2, "min_size")


def test_a_process_that_has_closed_starts_no_hosts(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, min_size=1, placement="host", timeout=PATIENCE)
    pool.wait_ready(PATIENCE)
    tender = pool.streams.tender
    assert not tender.is_over()
    manager.close()
    assert tender.is_over()
    pool.wait_ready(PATIENCE)
    assert not tender.is_over()
    pool.close()
    assert tender.is_over()


class Pool:
    """What a Tender is told to start. fails: how often it cannot."""

    name = "p"
    is_closed = False

    def __init__(self) -> None:
        self.started: list[int] = []
        self.fails = 0

    def do_soon(self, function: Callable[[], None]) -> None:
        function()

    def start_host(self, number: int) -> None:
        self.started.append(number)
        if self.fails:
            self.fails -= 1
            raise OSError("no")


@pytest.fixture
def ended() -> int:
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_lives_shortly_is_started_after_pauses_that_grow(ended: int) -> None:
    pool, tender = Pool(), Tender()
    tender.note(pool, 3, os.getpid())
    since = tender._hosts[3].since
    assert tender.look(since) == since + LOOK_S
    assert pool.started == []
    pauses = []
    for _ in range(8):
        tender.note(pool, 3, ended)
        since = tender._hosts[3].since
        tender.look(since)
        pauses.append(tender._hosts[3].pause_s)
        assert pool.started == []
        tender._hosts[3].pid = -1  # so that the next is another one
    assert pauses == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    tender.note(pool, 3, ended)
    tender.look(tender._hosts[3].since + SHORT_LIFE_S)  # it has lived for long enough
    assert pool.started == [3]


def test_a_start_that_fails_is_tried_again_and_one_that_is_under_way_is_not(ended: int) -> None:
    pool, tender = Pool(), Tender()
    pool.fails = 1
    tender.note(pool, 0, ended)
    tender._hosts[0].since -= SHORT_LIFE_S
    now = time.monotonic()
    tender.look(now)
    assert pool.started == [0]
    tender.look(now)
    assert pool.started == [0]
    tender.look(now + LONGEST_PAUSE_S)
    assert pool.started == [0, 0]
    tender.look(now + 2 * LONGEST_PAUSE_S)  # the new one has not been reached yet
    assert pool.started == [0, 0]
    tender.forget()
    assert tender.is_over()
    del pool
