"""Threads that wait: nobody is left without anything on its way while there is room."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mppool import CheckoutTimeout, InProcessManager, OpenFailed, PoolManager, Recipe
from tests.helpers import wait_until

PATIENCE = 20.0


class Slow(Recipe[object]):
    """Opens in its turn: `delays` says how each opening waits."""

    def __init__(self, *delays: Callable[[], object], open_in_caller: bool = False) -> None:
        self.open_in_caller = open_in_caller
        self.opened_so_far = 0
        self._delays = list(delays)

    def fingerprint(self) -> str:
        return "slow"

    def open(self, opening: Any) -> object:
        self.opened_so_far += 1
        if self._delays:
            self._delays.pop(0)()
        return object()


@pytest.fixture(params=["server", "in process"])
def either(request: Any, manager: PoolManager) -> Any:
    return manager if request.param == "server" else InProcessManager()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def waiting(pool: Any) -> int:
    return len(pool._local.idle.line.all_waiters())


def test_who_opens_for_itself_takes_nobodys_ticket(either: Any, threads: Any) -> None:
    go_on = threading.Event()
    recipe = Slow(lambda: go_on.wait(3 * PATIENCE), open_in_caller=True)
    pool = either.pool("p", recipe, max_size=1, timeout=PATIENCE)
    pool._local.durations.opening_s = 60.0  # so the first opening is counted on for long
    first = threads.submit(pool.checkout)
    wait_until(lambda: recipe.opened_so_far == 1, "the first opening")
    second = threads.submit(pool.checkout)
    wait_until(lambda: waiting(pool) == 1, "the second thread waits")
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0.01)
    time.sleep(0.1)  # what nobody waits for is given up meanwhile
    pool.resize(max_size=2)
    try:
        second.result(PATIENCE / 2).release()
    finally:
        go_on.set()
        first.result(PATIENCE).release()


def test_an_opening_that_hangs_does_not_keep_who_was_queued_from_asking(
    either: Any, threads: Any
) -> None:
    go_on = threading.Event()
    recipe = Slow(lambda: None, lambda: go_on.wait(PATIENCE))
    pool = either.pool("p", recipe, max_size=1, timeout=PATIENCE)
    with pool.checkout():
        pool._local.durations.use_s = 60.0  # so nobody starves soon
        second = threads.submit(pool.checkout)
        wait_until(lambda: waiting(pool) == 1, "the second thread waits")
        time.sleep(0.2)
        pool.resize(max_size=5)
        try:
            second.result(PATIENCE / 2).release()
        finally:
            go_on.set()


def test_the_thread_that_asked_hears_why_its_opening_failed(either: Any) -> None:
    """It does not ask again between the failure and its being told: it would be refused without the cause."""

    def opener() -> object:
        raise LookupError("nowhere")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(100):
            pool = either.pool(f"p{number}", opener, max_size=2)
            with pytest.raises(OpenFailed) as refused:
                pool.checkout(timeout=20)
            assert isinstance(refused.value.__cause__, LookupError)
    finally:
        sys.setswitchinterval(interval)


def test_as_many_resources_are_opened_at_a_time_as_threads_wait() -> None:
    """There used to be 64 at most, and a login of 0.2 s took 300 threads more than a second."""
    everybody = threading.Barrier(150, timeout=PATIENCE)
    pool = InProcessManager().pool("p", Slow(*[everybody.wait] * 150), max_size=None)
    with ThreadPoolExecutor(150) as executor:
        leases = list(executor.map(lambda _: pool.checkout(timeout=PATIENCE), range(150)))
    assert len(leases) == 150
    for lease in leases:
        lease.release()
